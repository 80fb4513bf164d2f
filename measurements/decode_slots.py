"""128 completions of very different lengths: fixed batches against slots that waiting completions take over.

The tiny Qwen2.5-VL decodes 16 prompts x 8 completions under a budget for three whole groups. Lengths are drawn from a
lognormal distribution and cut at the budget of a completion: the end token is banned but for its time, which is set by
a mark among a completion's own uniform numbers. "Fixed" samples the prompts batch after batch, as many whole groups as
fit, and each batch waits for its longest completion; "slots" samples all prompts in one call. They take turns.

Usage: python measurements/decode_slots.py [--rounds 3] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from quickstart_seeds import environment
from side_by_side import RESULTS

from data_prep.schema import make_row
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.prompts.builder import PromptBuilder
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.choosing import choose_tokens
from vlm_mhpo.rollout.hf import decoding
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.runtime.seeding import uniforms
from vlm_mhpo.types import Group, Prompt

NUM_PROMPTS, NUM_SAMPLES, MAX_TOKENS, GROUPS_AT_ONCE = 16, 8, 1024, 3
MEDIAN, SIGMA = 200.0, 0.8
# No uniform number is as large: here the completion ends.
MARK = 2.0


def length_of(seed: int) -> int:
    """Tokens of the completion that draws by this seed."""
    drawn = np.random.default_rng(seed).lognormal(np.log(MEDIAN), SIGMA)
    return int(np.clip(drawn, 1, MAX_TOKENS))


def marked(seed: int, count: int) -> np.ndarray:
    """`uniforms` with a mark at the completion's last token."""
    draws = uniforms(seed, count)
    draws[length_of(seed) - 1] = MARK
    return draws


def ends_at(end_id: int) -> Callable[..., torch.Tensor]:
    """`choose_tokens`, but the end token at a mark."""

    def choose(logits_BV: torch.Tensor, draw_B: torch.Tensor, params: SamplingParams) -> torch.Tensor:
        ends_B = draw_B == MARK
        return torch.where(ends_B, end_id, choose_tokens(logits_BV, draw_B.masked_fill(ends_B, 0.0), params))

    return choose


def build(folder: Path) -> tuple[Any, Any, list[Prompt]]:
    """The tiny policy, which ends only at a mark, its codec, and text prompts of one length."""
    policy, codec = load_policy(str(build_tiny(folder, "qwen2_5_vl")), dtype="float32")
    policy.banned_V[list(codec.end_ids)] = True
    rows = [
        make_row(id=str(n), problem=f"What is {n % 9 + 1} plus {n % 7 + 1} ?", answer="7", images=(), source="made")
        for n in range(NUM_PROMPTS)
    ]
    builder = PromptBuilder(codec, policy.family)
    return policy, codec, [builder(row) for row in rows]


def measure(rounds: int) -> dict[str, Any]:
    """Decode steps and seconds of both ways, and whether their completions are the same."""
    with tempfile.TemporaryDirectory() as folder:
        policy, codec, prompts = build(Path(folder))
    decoding.uniforms, decoding.choose_tokens = marked, ends_at(codec.end_ids[0])
    width = max(prompt.num_tokens for prompt in prompts)
    budget = GROUPS_AT_ONCE * (width + NUM_SAMPLES * MAX_TOKENS)
    sampler = HfSampler(policy, codec, max_batch_tokens=budget)
    params = SamplingParams(NUM_SAMPLES, MAX_TOKENS)
    rows: list[int] = []
    layer = policy.model.model.language_model.layers[0]
    layer.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])) if args[0].shape[1] == 1 else None)

    def fixed() -> list[Group]:
        batches = [prompts[start : start + GROUPS_AT_ONCE] for start in range(0, NUM_PROMPTS, GROUPS_AT_ONCE)]
        return [group for batch in batches for group in sampler.sample(batch, params, (0, "rollout", 0))]

    def slots() -> list[Group]:
        return sampler.sample(prompts, params, (0, "rollout", 0))

    ways: dict[str, Callable[[], list[Group]]] = {"fixed": fixed, "slots": slots}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    steps, kept = {}, {}
    for _ in range(rounds):
        for name, way in ways.items():
            rows.clear()
            began = time.perf_counter()
            kept[name] = way()
            seconds[name].append(time.perf_counter() - began)
            steps[name] = {"decode_steps": len(rows), "mean_rows": sum(rows) / len(rows)}
    return report(kept, steps, seconds, budget)


def report(
    kept: dict[str, Sequence[Group]], steps: dict[str, Any], seconds: dict[str, list[float]], budget: int
) -> dict[str, Any]:
    """What is written."""
    fixed, slots = ([each for group in kept[name] for each in group.completions] for name in ("fixed", "slots"))
    lengths = sorted(len(each.token_ids) for each in slots)
    # Without the end token, which is banned but for its time.
    pairs = [(a.log_probs[:-1], b.log_probs[:-1]) for a, b in zip(fixed, slots, strict=True) if len(b.token_ids) > 1]
    gaps = [float((one - other).abs().max()) for one, other in pairs]
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    return {
        "command": f"python measurements/decode_slots.py --rounds {len(seconds['slots'])}",
        "environment": environment(),
        "completions": len(slots),
        "max_batch_tokens": budget,
        "lengths": {
            "mean": statistics.mean(lengths),
            "median": statistics.median(lengths),
            "p90": lengths[9 * len(lengths) // 10],
            "max": lengths[-1],
        },
        **{name: steps[name] | {"seconds": seconds[name], "median_seconds": medians[name]} for name in steps},
        "ratio_of_decode_steps": steps["fixed"]["decode_steps"] / steps["slots"]["decode_steps"],
        "ratio_of_seconds": medians["fixed"] / medians["slots"],
        "same_token_ids": [each.token_ids for each in fixed] == [each.token_ids for each in slots],
        "largest_log_prob_gap": max(gaps),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS / "decode_slots.json")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(arguments.rounds)
    arguments.out.write_text(json.dumps(found, indent=1) + "\n")
    print(json.dumps(found, indent=1))
