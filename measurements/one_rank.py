"""What DeepSpeed costs a lone process: the same update by plain AdamW, and under ZeRO stages 0 and 2.

Each side has the same weights, makes the same forward and backward of packed rows in float32 on one thread, clips by
the global norm and steps. They take turns; what is told is processor time, since the machine may be busy.

Usage: python measurements/one_rank.py [--widths 128 384] [--rounds 15] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernels import NUM_SAMPLES, NUM_TOKENS, two_prompts
from side_by_side import use_one_thread, write_record

STAGES = (0, 2)


def main() -> None:
    """Measure at every width and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 384])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    from vlm_mhpo.runtime import ranks

    ranks.start(1)
    results = {f"width_{width}": measure(width, arguments.rounds) for width in arguments.widths}
    write_record("one_rank", results, arguments.out)


def measure(width: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of an update on each side: forward, backward, clipping and step."""
    from vlm_mhpo.config import OptimizerConfig

    policy, rows = policy_and_rows(width)
    settings = OptimizerConfig()
    sides = {"plain": plain(copy.deepcopy(policy), rows, settings)}
    sides |= {f"zero_{stage}": under_deepspeed(copy.deepcopy(policy), rows, settings, stage) for stage in STAGES}
    found: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, step in sides.items():
            began = time.process_time()
            step()
            found[name].append(1e3 * (time.process_time() - began))
    # Buffers are made in the first rounds.
    medians = {name: statistics.median(each[2:]) for name, each in found.items()}
    return {"milliseconds": medians, "ratio": {name: medians[name] / medians["plain"] for name in medians}}


def policy_and_rows(width: int) -> tuple[Any, Any]:
    """A tiny Qwen2.5-VL, and one packed row of each of two text prompts."""
    from vlm_mhpo.models.families import family_of
    from vlm_mhpo.models.families.base import banned_tokens
    from vlm_mhpo.models.loading import adapt
    from vlm_mhpo.models.packing import pack_rows, plan_micro_batches
    from vlm_mhpo.models.policy import Policy
    from vlm_mhpo.models.tiny import build_model, build_tokenizer

    family, tokenizer = family_of("qwen2_5_vl"), build_tokenizer()
    model = build_model("qwen2_5_vl", tokenizer, hidden_size=width)
    adapt(model, family, "sdpa")
    policy = Policy(model, family, banned_tokens(tokenizer, len(tokenizer), family.placeholders))
    prompts = two_prompts()
    completions = [[3 + (7 * row + at) % 200 for at in range(NUM_TOKENS)] for row in range(2 * NUM_SAMPLES)]
    lengths = [[NUM_TOKENS] * NUM_SAMPLES] * 2
    (items,) = plan_micro_batches([p.num_tokens for p in prompts], lengths, max_tokens=10**6)
    positions = [policy.family.positions(policy.model, prompt) for prompt in prompts]
    return policy, pack_rows(items, prompts, positions, completions, join=policy.family.join, pad_id=0)


def plain(policy: Any, rows: Any, settings: Any) -> Callable[[], None]:
    """An update without DeepSpeed."""
    from torch import nn

    from vlm_mhpo.engine.optimizer import build_optimizer

    weights = list(policy.train().parameters())
    optimizer = build_optimizer(weights, settings, offload=False)

    def step() -> None:
        log_probs_N, _ = policy(rows, temperature=1.0, chunk_size=10**4)
        log_probs_N.mean().backward()
        nn.utils.clip_grad_norm_(weights, settings.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()

    return step


def under_deepspeed(policy: Any, rows: Any, settings: Any, stage: int) -> Callable[[], None]:
    """An update by the engine."""
    from vlm_mhpo.config import DeepSpeedConfig
    from vlm_mhpo.engine.deepspeed import Engine

    engine = Engine(policy, optimizer=settings, deepspeed=DeepSpeedConfig(zero_stage=stage), dtype="float32")

    def step() -> None:
        log_probs_N, _ = engine(rows, temperature=1.0, chunk_size=10**4)
        engine.backward(log_probs_N.mean())
        engine.update(1e-6)

    return step


if __name__ == "__main__":
    main()
