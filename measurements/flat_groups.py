"""Groups of equal rewards: log-probs and updates of a rollout batch with and without leaving them out, in turns.

One rollout batch is sampled once; rewards are set by hand, so that a given share of the groups has equal ones. Then its
minibatches are made (packing, old log-probs) and all its updates run, once as a run does it and once with every
completion read. The learning rate is 0, so that the weights stay and the gradient norms of both must agree.

Usage: python measurements/flat_groups.py [--shapes quickstart realistic] [--rounds 12] [--start MODEL] [--out FILE]
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from shapes import CONFIG, SMALL_SHAPES, Shape
from side_by_side import alternate, compare, measure_shapes, timed
from speed_update import roll_out

WARMUP = 1
SHARES = (0.0, 0.3, 0.6, 0.8)
# A number of groups of which every share is a whole number, in minibatches of five.
NUM_PROMPTS = 20


def measure(shape: Shape, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
    """Both ways at each share of flat groups, alternating."""
    from vlm_mhpo.config import load_config
    from vlm_mhpo.runtime import ranks
    from vlm_mhpo.training.assembly import build_parts

    shape = replace(shape, num_prompts=NUM_PROMPTS, num_updates=4)
    sizes = [f"train.num_prompts_per_step={NUM_PROMPTS}", "train.num_minibatches=4"]
    config = load_config(CONFIG, [*overrides, *sizes])
    ranks.start(config.num_threads)
    parts = build_parts(config, config.train)
    scored = roll_out(parts, shape, config.seed)
    return {f"{share:.0%}": at_share(config, parts, with_flat(scored, share), rounds) for share in SHARES}


def with_flat(scored: Sequence[Any], share: float) -> list[Any]:
    """The groups with equal rewards in an evenly spread share of them."""
    flat = [math.floor((index + 1) * share + 1e-9) > math.floor(index * share + 1e-9) for index in range(len(scored))]
    return [
        replace(each, rewards=(1.0,) * len(each.rewards)) if equal else each
        for each, equal in zip(scored, flat, strict=True)
    ]


def at_share(config: Any, parts: Any, scored: Sequence[Any], rounds: int) -> dict[str, Any]:
    """Seconds of both ways, how many times faster leaving out is, and what it leaves out."""
    from vlm_mhpo.records.metric_table import IDLE_TOKENS

    found: dict[str, dict[str, float]] = {}
    steps = alternate({name: timed(call) for name, call in ways(config, parts, scored, found).items()}, rounds, WARMUP)
    norms = [found[name]["grad_norm"] for name in ("skipping", "reading")]
    if not math.isclose(*norms, rel_tol=1e-4):
        raise SystemExit(f"gradient norms differ, skipping and reading flat groups: {norms}")
    return {"idle_tokens": found["skipping"][IDLE_TOKENS.name], **compare(steps, "skipping", "reading")}


def ways(
    config: Any, parts: Any, scored: Sequence[Any], found: dict[str, dict[str, float]]
) -> dict[str, Callable[[], None]]:
    """Calls that do the work of a rollout batch; each leaves its metrics in `found`."""
    from vlm_mhpo.objectives import build_objective
    from vlm_mhpo.training.forwards import update_settings
    from vlm_mhpo.training.minibatches import make_minibatches
    from vlm_mhpo.training.update import update_on

    objective = build_objective(config.objective, config.rollout.max_completion_length)
    settings = update_settings(
        config.train, config.rollout, objective, beta=config.objective.beta, pad_id=parts.codec.pad_id
    )

    def call(name: str) -> None:
        mine = replace(settings, skips_idle=settings.skips_idle and name == "skipping")
        batches = make_minibatches(parts.engine, None, scored, mine, scale_rewards=config.train.scale_rewards)
        found[name] = update_on(parts.engine, objective, batches, mine, learning_rate=0.0, step=1).metrics

    return {name: lambda name=name: call(name) for name in ("skipping", "reading")}


if __name__ == "__main__":
    measure_shapes("flat_groups", __doc__, measure, SMALL_SHAPES)
