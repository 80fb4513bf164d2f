"""Whole RL steps a second, ours against TRL's GRPOTrainer, side by side.

Both load the same weights, take the same prompts and images in the same order, sample as many completions under the
same budget in float32 on one thread, score them with the same verifier, and make as many AdamW updates of a rollout
batch. They are two processes that take turns step by step; the first steps are left out. A step is sampling, rewards,
advantages and updates: nothing is evaluated, reported or saved (ours writes its row of metrics.jsonl). Wall time is of
a side's own turns; processor time counts all its threads and processes, also a background thread that prepares prompts.

Shapes: "quickstart" (16 prompts x 8, answers of some ten tokens, warm-started model) and "realistic" (8 prompts x 8,
306 image and at least 64 text tokens, every completion 128 tokens long). What is set on TRL's side, and why, stands in
trainer_sides.trl_settings. `--updates 1` is the case that suits TRL best: it then needs no forward for old log-probs.

`--random-shapes` draws shapes that nobody tuned for from a seed: prompts, completions, image size, text, ragged lengths
with a long tail, width, layers and updates. Both sides sample by themselves there, so their completions have the same
distribution of lengths and not the same lengths; "per_token" is the ratio with each side's time divided by its tokens.

For a GPU: "realistic_0.5b" and "realistic_3b" (completions of 256 tokens; 1,024 with "_1024") are the realistic shape
with models of those sizes in bfloat16, built from a config. One GPU cannot hold two trainers of the latter, so the
sides come and go. Memory is then that of the GPU. "utilisation" is the share of the device's measured matmul rate that
the mathematics of a step, or of its updates alone, comes to. Results are written shape by shape.

Usage: python measurements/speed_step.py [--shapes quickstart realistic] [--rounds 12] [--updates 4] [--start MODEL]
                                       [--trial] [--out FILE]
       python measurements/speed_step.py --random-shapes 5 --seed S [--rounds 6]
       python measurements/speed_step.py --shapes realistic_0.5b realistic_3b        (on a GPU of 80 GB)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from shapes import SMALL_SHAPES, Shape, prepare, random_shape, trial
from side_by_side import (
    Side,
    add_common_arguments,
    alternate,
    apart,
    chosen,
    compare,
    use_one_thread,
    write_record,
)
from trainer_sides import our_side, read_phases, trl_side
from utilisation import step_flops

SIDES = {"ours": our_side, "trl": trl_side}


def main() -> None:
    """Measure every shape and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, SMALL_SHAPES)
    parser.add_argument("--updates", type=int, default=4, help="optimizer updates of a rollout batch")
    parser.add_argument("--random-shapes", type=int, default=0, metavar="N", help="measure N drawn shapes instead")
    parser.add_argument("--seed", type=int, default=0, help="that they are drawn from")
    arguments = parser.parse_args()
    use_one_thread()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for shape in shapes_of(arguments):
            results[shape.name] = measure(shape, Path(folder), arguments.rounds, arguments.start)
            write_record("speed_random" if arguments.random_shapes else "speed_step", results, arguments.out)


def shapes_of(arguments: argparse.Namespace) -> list[Shape]:
    """The shapes that a command line asks for, with their updates."""
    if arguments.random_shapes:
        drawn = [random_shape(arguments.seed, index) for index in range(arguments.random_shapes)]
        return [trial(shape) for shape in drawn] if arguments.trial else drawn
    return [replace(shape, num_updates=min(arguments.updates, shape.num_prompts)) for shape in chosen(arguments)]


def measure(shape: Shape, folder: Path, rounds: int, start: Path | None) -> dict[str, Any]:
    """Both sides on one shape, alternating; `folder` keeps models for the shapes to come."""
    overrides = apart(prepare, shape, folder, start)
    take = in_turns if shape.one_at_a_time else together
    steps = take(shape, overrides, rounds)
    phases = read_phases(folder / shape.name / "run", shape.warmup)
    lengths = {name: statistics.fmean(step["mean_length"] for step in each) for name, each in steps.items()}
    flops = apart(step_flops, shape, overrides, lengths["ours"])
    seconds = {name: statistics.median(step["wall_s"] for step in each) for name, each in steps.items()}
    updates = {
        "ours": phases["update"],
        "trl": statistics.median(step["wall_s"] - step["rollout_s"] for step in steps["trl"]),
    }
    return {
        "shape": asdict(shape),
        **compare(steps, "ours", "trl"),
        "samples_per_s": {name: shape.num_samples / each for name, each in seconds.items()},
        "model_tflops": flops.step / 1e12,
        "matmul_tflops_per_s": flops.rate / 1e12,
        "utilisation": {name: flops.step / each / flops.rate for name, each in seconds.items()},
        "our_phases_wall_s": phases,
        "update_wall_s": updates,
        "update_ratio": updates["trl"] / updates["ours"],
        "update_utilisation": {name: flops.updates / each / flops.rate for name, each in updates.items()},
        # They must be alike, or the two did not do the same work.
        "mean_length": lengths,
        "per_token": (seconds["trl"] / lengths["trl"]) / (seconds["ours"] / lengths["ours"]),
        "reward": {name: statistics.fmean(step["reward"] for step in each) for name, each in steps.items()},
        "peak_memory_mb": {name: each[-1]["peak_bytes"] / 1e6 for name, each in steps.items()},
    }


def together(shape: Shape, overrides: Sequence[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Steps of both sides, which live side by side and take turns."""
    with Side(SIDES["ours"], overrides) as ours, Side(SIDES["trl"], overrides) as trl:
        return alternate({"ours": ours.step, "trl": trl.step}, rounds, shape.warmup)


def in_turns(shape: Shape, overrides: Sequence[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Steps of both sides, of which one is there at a time: each comes twice, if there are rounds for that."""
    steps: dict[str, list[dict[str, float]]] = {name: [] for name in SIDES}
    visits = min(2, rounds)
    for visit in range(visits):
        # The last run's folder is the one whose phases are read.
        suffix = "" if visit == visits - 1 else str(visit)
        own = [f"{each}{suffix}" if each.startswith("output_dir=") else each for each in overrides]
        for name, run in SIDES.items():
            with Side(run, own) as side:
                steps[name] += alternate({name: side.step}, rounds // visits, shape.warmup)[name]
    return steps


if __name__ == "__main__":
    main()
