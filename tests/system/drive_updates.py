"""Program of one rank: runs the jobs of a JSON file in turn, each on a fresh engine, and writes what came out."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.system.batches import load_tiny, scored_groups
from vlm_mhpo.checkpoint.policy_folder import save_policy
from vlm_mhpo.config import load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.errors import VlmMhpoError
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf import budget
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.forwards import log_probs_of, update_settings
from vlm_mhpo.training.minibatches import advantages_of, truncated_in
from vlm_mhpo.training.update import update_on
from vlm_mhpo.types import Minibatch


def main(requests: Path, out: Path) -> None:
    """Run every job; `NAME.rankN.json` and, from the main rank, `NAME.safetensors`."""
    ranks.start(1)
    for job in json.loads(requests.read_text()):
        try:
            result = run(job, out)
        except VlmMhpoError as error:
            result = {"error": type(error).__name__, "message": str(error)}
        (out / f"{job['name']}.rank{ranks.rank()}.json").write_text(json.dumps(result))
        ranks.barrier()


def run(job: dict[str, Any], out: Path) -> dict[str, Any]:
    """One job: an update on this rank's share of fixed groups, sampling, or constant log-probs."""
    config = load_config(job["config"], job["overrides"])
    settings = deepspeed_settings(config.deepspeed, dtype=config.model.dtype, max_grad_norm=config.train.max_grad_norm)
    held = config.model.model_dump(include={"dtype", "lora"})
    model = load_tiny(job["model"], **held, zero3_settings=settings)
    engine = Engine(model.policy, optimizer=config.train, deepspeed=config.deepspeed, dtype=config.model.dtype)
    engine.policy.train()
    every = scored_groups(model, job["case"])
    share = len(every) // ranks.world_size()
    mine = every[ranks.rank() * share : (ranks.rank() + 1) * share]
    objective = build_objective(config.objective, config.rollout.max_completion_length)
    weights = {"beta": config.objective.beta, "entropy_coef": config.objective.entropy_coef}
    update = update_settings(config.train, config.rollout, objective, **weights, pad_id=model.codec.pad_id)
    update = replace(update, skips_idle=update.skips_idle and not job.get("reads_all"))
    result: dict[str, Any] = {}
    if job.get("sample"):
        # Budgets that differ by rank stand for completions that end at different times, and a cache for one completion
        # at a time makes many forwards of them; what is free differs, too.
        budget.MOST_ON_HOST = 30 + ranks.rank()
        sampler = HfSampler(engine.policy, model.codec, max_batch_tokens=None, whole_weights=engine.whole_weights)
        params = SamplingParams(2, 3 + 4 * ranks.rank())
        groups = sampler.sample([group.group.prompt for group in mine], params, (0, "test"))
        result["budget"] = sampler.metrics()
        result["completions"] = [completion.token_ids for group in groups for completion in group.completions]
    if job.get("log_probs"):
        result["log_probs"] = [row.tolist() for row in log_probs_of(engine, engine.policy, mine, update)]
    if job.get("nan"):
        inject_nan(engine, job["nan"])
    advantages_PG = advantages_of(mine, config.train.scale_rewards, config.train.advantage)
    result["advantages"] = advantages_PG.tolist()
    batch = Minibatch(
        groups=mine,
        advantages=tuple(advantages_PG.flatten().tolist()),
        old_log_probs=tuple(c.log_probs for group in mine for c in group.group.completions),
        masked=truncated_in(mine),
    )
    batches = [batch] * job.get("num_updates", 1)
    try:
        done = update_on(engine, objective, batches, update, learning_rate=config.train.learning_rate, step=7)
        result["metrics"] = done.metrics
        if job.get("save"):
            result["whole"] = save(engine, model.codec, out / job["name"])
    finally:
        write_weights(engine, out / f"{job['name']}.safetensors")
        engine.deepspeed.destroy()
    return result


def save(engine: Engine, codec: Codec, folder: Path) -> list[str]:
    """Save the policy as a run does; the names of the weights that were whole while it was written."""
    whole, write = [], engine.policy.save

    def watched(target: Path) -> None:
        whole.extend(name for name, weight in engine.policy.model.named_parameters() if weight.numel())
        write(target)

    engine.policy.save = watched
    save_policy(engine, codec, folder)
    return whole


def inject_nan(engine: Engine, where: str) -> None:
    """On the last rank, turn the first forward's output ("loss") or one gradient ("gradient") into NaN, once."""
    if ranks.rank() != ranks.world_size() - 1:
        return
    fired: list[bool] = []

    def once(value: torch.Tensor) -> torch.Tensor:
        if fired:
            return value
        fired.append(True)
        return value * torch.nan

    policy = engine.policy
    if where == "loss":
        policy.register_forward_hook(lambda module, args, output: (once(output[0]), output[1]))
    else:
        policy.model.lm_head.register_full_backward_hook(lambda module, given, taken: (once(given[0]),))


def write_weights(engine: Engine, file: Path) -> None:
    """Whole weights under the names of the transformers model, written by the main rank."""
    with engine.whole_weights():
        if ranks.is_main():
            weights = engine.policy.model.state_dict()
            save_file({name: value.detach().clone().contiguous() for name, value in weights.items()}, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
