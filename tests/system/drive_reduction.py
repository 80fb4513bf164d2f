"""Program of one rank: the gradient that DeepSpeed hands to Adam, against the ranks' own gradients added in float64."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tests.builders import prompts_of, random_completions
from tests.system.batches import load_tiny
from vlm_mhpo.checkpoint.resharding import part_of, slots
from vlm_mhpo.config import load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.micro_batches import micro_batches

Gradient = dict[str, Tensor]
# Of a gradient: parameter, first index in it, values.
Piece = tuple[str, int, Tensor]


def main(requests: Path, out: Path) -> None:
    """Run every job; the main rank writes `NAME.json`."""
    ranks.start(1)
    for job in json.loads(requests.read_text()):
        result = run(job)
        if ranks.is_main():
            (out / f"{job['name']}.json").write_text(json.dumps(result))


def run(job: dict[str, Any]) -> dict[str, float]:
    """Relative distances from the float64 sum of the ranks' gradients, see `distances`.

    The ranks' own gradients are those of a policy of plain torch, each rounded to bfloat16 by its own backward.
    """
    config = load_config(job["config"], job["overrides"])
    settings = deepspeed_settings(config.deepspeed, dtype=config.model.dtype, max_grad_norm=1e9)
    # Before ZeRO-3 puts its own linear layer in the place of torch's.
    plain = load_tiny(job["model"], dtype=config.model.dtype)
    model = load_tiny(job["model"], dtype=config.model.dtype, zero3_settings=settings)
    engine = Engine(model.policy, optimizer=config.train, deepspeed=config.deepspeed, dtype=config.model.dtype)
    # Other completions on each rank.
    prompts = prompts_of(plain)
    ids = [random_completions(plain, (6, 3), seed=10 * ranks.rank() + index) for index in range(len(prompts))]
    batches = list(micro_batches(plain.policy, prompts, ids, max_tokens=job["max_tokens"], pad_id=0))
    # ZeRO-3 takes the mean over the ranks, so the engine hands it a loss that is so much larger.
    scale = ranks.world_size() if engine.zero_stage == 3 else 1
    own: Gradient = {}
    found: list[Piece] = []
    engine.optimizer.register_step_pre_hook(lambda *_: found.extend(gradients_of(engine)))
    for batch in batches:
        for policy, factor in ((plain.policy, scale), (engine, 1)):
            loss = factor * policy(batch.rows, temperature=1.0, chunk_size=4096)[0].sum()
            policy.backward(loss) if policy is engine else loss.backward()
        for name, weight in plain.policy.named_parameters():
            if weight.grad is not None:
                own[name] = own.get(name, 0.0) + weight.grad.double() / scale
        plain.policy.zero_grad()
    assert engine.update(0.0).applied
    result = distances(ranks.gather_objects(own), ranks.gather_objects(found))
    engine.deepspeed.destroy()
    return {"num_micro_batches": len(batches), **result}


def gradients_of(engine: Engine) -> list[Piece]:
    """Everything that this rank's optimizer steps with."""
    return [
        (slot.name, slot.begin, part_of(slot.flat.grad.float(), slot).cpu().clone())
        for slot in slots(engine)
        if slot.flat.grad is not None and slot.length
    ]


def distances(own: Sequence[Gradient], found: Sequence[Sequence[Piece]]) -> dict[str, float]:
    """Relative distance from the sum of `own`: of what the optimizers got, of the sum rounded to bfloat16 once, and of
    the first rank's part alone."""
    names = sorted(set().union(*own))
    exact = {name: sum(each[name] for each in own if name in each) for name in names}
    parts: dict[str, Tensor] = {name: torch.full_like(value, torch.nan).flatten() for name, value in exact.items()}
    for pieces in found:
        for name, begin, values in pieces:
            if name in parts:
                parts[name][begin : begin + values.numel()] = values.double()
    total = torch.cat([value.flatten() for value in exact.values()])

    def distance(values: Sequence[Tensor]) -> float:
        return float((torch.cat([value.flatten() for value in values]) - total).norm() / total.norm())

    return {
        "optimizer": distance(list(parts.values())),
        "rounded": distance([value.bfloat16().double() for value in exact.values()]),
        "first_rank": distance([own[0][name] for name in names]),
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
