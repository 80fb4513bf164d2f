"""The update phase alone: packed groups against our own unpacked path, one completion a row, side by side.

One rollout batch is sampled once; then all its updates (forward, loss, diagnostics, backward, AdamW) run in turn with
the prompt shared by its completions and with every completion as a group of its own, which repeats prompt and image
G times. Same advantages, same token budget of a forward, and a learning rate of 0, so that the weights stay the same
and the gradient norms of both must agree. What the packing can save at best is the token ratio G (P + R) / (P + G R),
of the lengths that were sampled.

Usage: python measurements/speed_update.py [--shapes quickstart realistic] [--rounds 12] [--start MODEL] [--out FILE]
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from typing import Any

from shapes import CONFIG, SMALL_SHAPES, Shape
from side_by_side import alternate, compare, measure_shapes, timed

WARMUP = 1


def measure(shape: Shape, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
    """Packed and unpacked updates of one rollout batch, alternating."""
    from vlm_mhpo.config import load_config
    from vlm_mhpo.runtime import ranks
    from vlm_mhpo.training.assembly import build_parts

    config = load_config(CONFIG, list(overrides))
    ranks.start(config.num_threads)
    parts = build_parts(config, config.train)
    scored = roll_out(parts, shape, config.seed)
    norms: dict[str, list[float]] = {"packed": [], "unpacked": []}
    calls = updates(config, parts, scored, norms)
    steps = alternate({name: timed(call) for name, call in calls.items()}, rounds, WARMUP)
    first = [norms[name][0] for name in calls]
    # In bfloat16 the rows of one completion are rounded otherwise.
    if not math.isclose(*first, rel_tol=1e-4 if shape.model == "tiny" else 0.05):
        raise SystemExit(f"gradient norms differ, packed and unpacked: {first}")
    result = compare(steps, "packed", "unpacked")
    ratio = token_ratio(scored)
    return {
        "shape": asdict(shape),
        "mean_length": statistics.fmean(len(c.token_ids) for each in scored for c in each.group.completions),
        "prompt_tokens": statistics.fmean(each.group.prompt.num_tokens for each in scored),
        **result,
        "token_ratio": ratio,
        "cpu_ratio_over_token_ratio": result["cpu_ratio"]["median"] / ratio,
        "wall_ratio_over_token_ratio": result["wall_ratio"]["median"] / ratio,
    }


def roll_out(parts: Any, shape: Shape, seed: int) -> list[Any]:
    """The scored groups of one step; rewards are set by hand, so that every group has advantages."""
    from vlm_mhpo.rollout.base import SamplingParams
    from vlm_mhpo.types import ScoredGroup

    prompts = [parts.builder(row) for row in parts.train_rows[: shape.num_prompts]]
    params = SamplingParams(shape.num_generations, shape.max_completion_length, 1.0, 1.0, 0)
    size = shape.num_generations
    rewards = tuple(float(index % 2) for index in range(size))
    return [
        ScoredGroup(group, rewards, {}, ("correct",) * size, (None,) * size)
        for group in parts.sampler.sample(prompts, params, (seed, "rollout", 0))
    ]


def updates(
    config: Any, parts: Any, scored: Sequence[Any], norms: dict[str, list[float]]
) -> dict[str, Callable[[], None]]:
    """Calls that make all updates of the rollout batch; each leaves its gradient norms in `norms`."""
    from vlm_mhpo.commands.proofs.updates import one_by_one
    from vlm_mhpo.objectives import build_objective
    from vlm_mhpo.training.forwards import update_settings
    from vlm_mhpo.training.minibatches import make_minibatches
    from vlm_mhpo.training.update import update_on

    objective = build_objective(config.objective, config.rollout.max_completion_length)
    settings = update_settings(
        config.train, config.rollout, objective, beta=config.objective.beta, pad_id=parts.codec.pad_id
    )
    packed = make_minibatches(parts.engine, None, scored, settings, scale_rewards=config.train.scale_rewards)
    batches = {
        "packed": packed,
        "unpacked": [replace(each, groups=one_by_one(each.groups), packed=None) for each in packed],
    }

    def call(name: str) -> None:
        result = update_on(parts.engine, objective, batches[name], settings, learning_rate=0.0, step=1)
        norms[name] += result.grad_norms

    return {name: lambda name=name: call(name) for name in batches}


def token_ratio(scored: Sequence[Any]) -> float:
    """Tokens of the unpacked rows over those of the packed ones."""
    unpacked = packed = 0
    for each in scored:
        prompt, lengths = each.group.prompt.num_tokens, [len(c.token_ids) for c in each.group.completions]
        unpacked += len(lengths) * prompt + sum(lengths)
        packed += prompt + sum(lengths)
    return unpacked / packed


if __name__ == "__main__":
    measure_shapes("speed_update", __doc__, measure, SMALL_SHAPES)
