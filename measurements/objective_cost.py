"""What the objective and the diagnostics cost: the updates of one rollout batch, side by side.

One rollout batch of the quickstart is sampled and verified; then rounds of its updates alternate between MHPO, GRPO,
and MHPO without any diagnostic. Processor seconds of this process are compared, so that what else the machine does
counts little. A difference of a percent drowns in the noise of the forward and backward, so the calls that make up the
diagnostics and the losses are also timed one by one.

Usage: python measurements/objective_cost.py [--rounds 12] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch
from quickstart_seeds import environment

from rewards import Scorer
from vlm_mhpo.config import Config, load_config
from vlm_mhpo.config.objectives import GrpoConfig, MhpoConfig
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.scorer import score_groups, start_scorer
from vlm_mhpo.training import update
from vlm_mhpo.training.assembly import Parts, build_parts
from vlm_mhpo.training.forwards import update_settings
from vlm_mhpo.training.minibatches import make_minibatches
from vlm_mhpo.training.token_statistics import Totals
from vlm_mhpo.training.update import update_on
from vlm_mhpo.types import ScoredGroup

ROOT = Path(__file__).resolve().parent.parent
# Small, so that the hundredth update still meets the same completions with ratios near 1.
LEARNING_RATE = 1e-6
# The functions of `vlm_mhpo.training.update` that only look.
DIAGNOSTICS = ("measure", "summarise_tokens", "summarise_ratio")


def main() -> None:
    """Measure and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--out", type=Path, default=ROOT / "measurements" / "results" / "objective_cost.json")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        config = load_config(ROOT / "configs" / "quickstart.yaml", [f"output_dir={folder}", "data.eval=null"])
        ranks.start(config.num_threads)
        parts = build_parts(config, config.train)
        with start_scorer(config.rewards, max_completion_length=config.rollout.max_completion_length) as scorer:
            begun = time.process_time()
            scored = roll_out(config, parts, scorer)
            rollout = time.process_time() - begun
        spent: Counter = Counter()
        seconds = alternate(variants(config, parts, scored, spent), arguments.rounds)
    record = {
        "command": f"python measurements/objective_cost.py --rounds {arguments.rounds}",
        **report(seconds, spent, rollout),
        "environment": environment(),
    }
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps({key: value for key, value in record.items() if key != "environment"}, indent=1))


def roll_out(config: Config, parts: Parts, scorer: Scorer) -> list[ScoredGroup]:
    """The scored groups of one step; half of the rewards are set by hand, so that every group has advantages."""
    stream = PromptStream(
        parts.train_rows,
        parts.builder.build,
        seed=config.seed,
        num_prompts=config.train.num_prompts_per_step,
        num_minibatches=config.train.num_minibatches,
    )
    params = SamplingParams(config.rollout.num_generations, config.rollout.max_completion_length, 1.0, 1.0, 0)
    groups = parts.sampler.sample(stream.for_step(0), params, (config.seed, "rollout", 0))
    return [
        replace(each, rewards=tuple(float(index % 2) for index in range(len(each.rewards))))
        for each in score_groups(scorer, groups, config.data.template)
    ]


def variants(config: Config, parts: Parts, scored: list[ScoredGroup], spent: Counter) -> dict[str, Callable[[], None]]:
    """What is measured, by name: one call is all updates of the rollout batch; `spent` collects seconds by part."""
    budget = config.rollout.max_completion_length
    objectives = {"mhpo": build_objective(MhpoConfig(), budget), "grpo": build_objective(GrpoConfig(), budget)}
    given = {"beta": config.objective.beta, "pad_id": parts.codec.pad_id}
    settings = update_settings(config.train, config.rollout, objectives["mhpo"], **given)
    batches = make_minibatches(parts.engine, None, scored, settings, scale_rewards=config.train.scale_rewards)

    def updates(name: str, **replaced: Callable) -> None:
        objective = objectives[name]
        settings = update_settings(config.train, config.rollout, objective, **given)
        timed = replace(objective, loss=clocked(objective.loss, f"loss of {name}", spent))
        with ExitStack() as stack:
            for function, replacement in replaced.items():
                stack.enter_context(mock.patch(f"vlm_mhpo.training.update.{function}", replacement))
            update_on(parts.engine, timed, batches, settings, learning_rate=LEARNING_RATE, step=1)

    def nothing(_objective, _loss, _log_probs, _old, _advantages, mask, *_rest) -> Totals:
        return Totals({"sum/kl_to_sampler": torch.zeros(())}, mask.sum())

    looking = {name: clocked(getattr(update, name), "diagnostics", spent) for name in DIAGNOSTICS}
    return {
        "mhpo": lambda: updates("mhpo", **looking),
        "grpo": lambda: updates("grpo"),
        "mhpo_without_diagnostics": lambda: updates("mhpo", measure=nothing),
    }


def clocked(call: Callable, name: str, spent: Counter) -> Callable:
    """The same call, adding its processor seconds to `spent`."""

    def timed(*arguments: object, **keywords: object) -> object:
        begun = time.process_time()
        result = call(*arguments, **keywords)
        spent[name] += time.process_time() - begun
        return result

    return timed


def alternate(calls: dict[str, Callable[[], None]], rounds: int) -> dict[str, list[float]]:
    """Processor seconds of each call, round after round; the first round warms up and is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    names = list(calls)
    for index in range(rounds + 1):
        turn = index % len(names)
        for name in (*names[turn:], *names[:turn]):
            begun = time.process_time()
            calls[name]()
            if index:
                seconds[name].append(time.process_time() - begun)
    return seconds


def report(seconds: dict[str, list[float]], spent: Counter, rollout: float) -> dict:
    """Shares of a step (rollout, verification, updates) that the diagnostics take and that MHPO adds to GRPO."""
    rounds = len(seconds["mhpo"])
    step = statistics.median(seconds["mhpo"]) + rollout

    def added(over: str) -> dict[str, float]:
        shares = [(ours - other) / step for ours, other in zip(seconds["mhpo"], seconds[over], strict=True)]
        low, middle, high = statistics.quantiles(shares, n=4)
        return {"median": middle, "quartile_low": low, "quartile_high": high}

    # MHPO runs twice a round, and the warm-up round is timed too.
    losses = {name: spent[f"loss of {name}"] / (times * (rounds + 1)) for name, times in (("mhpo", 2), ("grpo", 1))}
    return {
        "update_seconds": {name: statistics.median(values) for name, values in seconds.items()},
        "rollout_and_verification_seconds": rollout,
        "timed_calls": {
            "diagnostics_share_of_step": spent["diagnostics"] / (rounds + 1) / step,
            "mhpo_loss_share_of_step": losses["mhpo"] / step,
            "mhpo_over_grpo_loss_share_of_step": (losses["mhpo"] - losses["grpo"]) / step,
        },
        "whole_updates": {
            "diagnostics_share_of_step": added("mhpo_without_diagnostics"),
            "mhpo_over_grpo_share_of_step": added("grpo"),
        },
    }


if __name__ == "__main__":
    main()
