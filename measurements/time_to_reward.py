"""Seconds from one warm start to a sampled reward of 0.8 on the quickstart task: our recipe against TRL's GRPOTrainer.

Ours trains with MHPO as configs/quickstart.yaml says. TRL trains with its default loss at each of three learning rates,
and its best counts; it gets the same warm-started weights, prompts in the same order, G, budget, updates per rollout
batch, warm-up and decay of the learning rate, AdamW constants, verifier, dtype and thread (`trainer_sides.trl_settings`
gives the rest). All four take turns, a rollout batch each, until they have the reward or the recipe's steps are over;
a side's clock runs in its own turns only, without loading. The reward of a step is the mean over the last five rollout
batches (2,560 completions); the largest possible is 1.1.

Usage: python measurements/time_to_reward.py [--target 0.8] [--rates 1e-4 2e-4 4e-4] [--start MODEL] [--out FILE]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from shapes import RUNS
from side_by_side import Side, apart, use_one_thread, write_record
from trainer_sides import our_side, trl_side

WINDOW = 5


def main() -> None:
    """Train all sides and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", type=float, default=0.8)
    parser.add_argument("--rates", type=float, nargs="+", default=[1e-4, 2e-4, 4e-4], help="of TRL")
    parser.add_argument("--start", type=Path, help="warm-started model; default: made as the quickstart makes it")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        common = apart(overrides, Path(folder), arguments.start)
        racers = [Racer("ours", stack.enter_context(Side(our_side, common)))]
        for rate in arguments.rates:
            side = Side(trl_side, [*common, f"train.learning_rate={rate}"])
            racers.append(Racer(f"trl at {rate:g}", stack.enter_context(side)))
        race(racers, arguments.target)
    write_record("time_to_reward", summary(racers, arguments.target), arguments.out)


def overrides(folder: Path, start: Path | None) -> list[str]:
    """Of configs/quickstart.yaml: the warm start, and nothing that is not training."""
    from compare_objectives import start_overrides

    return [
        *(each for each in start_overrides(start, RUNS) if not each.startswith("data.eval")),
        f"output_dir={folder / 'run'}",
        "data.eval=null",
        "eval.every=0",
        "checkpoint.save_steps=0",
        "logging.tensorboard=false",
        "logging.report=false",
        "logging.sample_steps=0",
    ]


@dataclass(slots=True)
class Racer:
    """One side with what it has done: seconds and rewards of its steps."""

    name: str
    side: Side
    seconds: list[float] = field(default_factory=list)
    rewards: list[float] = field(default_factory=list)
    is_over: bool = False

    def advance(self, target: float) -> None:
        """One step more; over when the smoothed reward is there or the recipe has no more steps."""
        try:
            facts = self.side.step()
        except SystemExit:
            # A side ends by itself after the last step of the recipe.
            self.is_over = True
            return
        self.seconds.append(facts["wall_s"])
        self.rewards.append(facts["reward"])
        self.is_over = self.smoothed >= target
        print(f"{self.name:14} step {len(self.seconds):3d} {self.smoothed:.3f}", file=sys.stderr, flush=True)

    @property
    def smoothed(self) -> float:
        """Mean reward of the last steps; 0 before there are enough."""
        return statistics.fmean(self.rewards[-WINDOW:]) if len(self.rewards) >= WINDOW else 0.0


def race(racers: Sequence[Racer], target: float) -> None:
    """Turns, until all are over; who comes first goes round."""
    turn = 0
    while any(not racer.is_over for racer in racers):
        for racer in (*racers[turn % len(racers) :], *racers[: turn % len(racers)]):
            if not racer.is_over:
                racer.advance(target)
        turn += 1


def summary(racers: Sequence[Racer], target: float) -> dict[str, Any]:
    """Steps and seconds of each side, and ours against the best of the others."""
    sides = {
        racer.name: {
            "reached": racer.smoothed >= target,
            "steps": len(racer.seconds),
            "seconds": sum(racer.seconds),
            "last_reward": racer.smoothed,
            "rewards": racer.rewards,
        }
        for racer in racers
    }
    ours, *peers = sides.values()
    times = [peer["seconds"] for peer in peers if peer["reached"]]
    ratio = min(times) / ours["seconds"] if times and ours["reached"] else None
    return {"target": target, "window": WINDOW, "sides": sides, "best_peer_over_ours": ratio}


if __name__ == "__main__":
    main()
