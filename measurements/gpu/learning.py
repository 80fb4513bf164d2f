"""Step 5 on a GPU: the quickstart in bfloat16 beside the CPU's, then a larger model on harder tasks while time is left.

The quickstart runs on the card in bfloat16 and, at the same time, as its recipe says on one core of the same machine,
in float32; "cpu_over_gpu" is the ratio of their seconds per step, and of each stage where both got through it. Then a
Qwen2.5-VL of 0.5 billion weights, drawn at random from a config, is warm-started and trained on drawn images of bars,
triangles and counting at difficulty 2 until the time is over: its rewards and held-out accuracies, as they come.

Usage: python measurements/gpu/learning.py [--seconds 110] [--trial] [--out FILE]
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from quickstart_seeds import metrics_of, quickstart_command, read_quickstart
from shapes import CONFIG, ROOT, write_model
from side_by_side import apart, use_one_thread, write_record

# Left for the last record; the programs are ended before.
RESERVE_S = 10
# Steps of either end whose mean reward is given.
WINDOW = 5
ON_A_CARD = ["model.dtype=bfloat16", "rollout.old_log_probs=trainer", "deepspeed.zero_stage=2"]
SHORT_QUICKSTART = [
    *("train.max_steps=2", "sft.max_steps=2", "data.max_rows=64", "data.max_eval_rows=4", "eval.gallery=0"),
    *("train.num_prompts_per_step=4", "sft.num_prompts_per_step=4"),
]
TASKS = "synthetic:counting,bars,triangles?seed=0&difficulty=2&num_rows={rows}@{split}"
LARGE = [
    *ON_A_CARD,
    "model.gradient_checkpointing=false",
    "rollout.max_batch_tokens=131072",
    "rollout.max_completion_length=48",
    "data.max_prompt_length=256",
    "data.max_eval_rows=128",
    "eval.gallery=0",
    "eval.every=10",
    "checkpoint.save_steps=0",
    "logging.tensorboard=false",
    "logging.report=false",
    "sft.max_steps=120",
    "sft.learning_rate=3e-4",
    "train.max_steps=10000",
    "train.learning_rate=1e-5",
    "train.lr_scheduler_type=constant",
]
SHORT_LARGE = [
    *("sft.max_steps=2", "sft.num_prompts_per_step=4", "train.max_steps=2", "train.num_prompts_per_step=4"),
    *("rollout.num_generations=2", "rollout.max_completion_length=8", "data.max_eval_rows=4", "eval.every=1"),
]


def main() -> None:
    """Run what there is time for; the JSON is whole after each part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=float(os.environ.get("STEP_SECONDS", "110")))
    parser.add_argument("--trial", action="store_true", help="two layers and two steps: no figure counts")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    deadline = time.monotonic() + arguments.seconds - RESERVE_S
    folder = Path(tempfile.mkdtemp())
    try:
        results = {"quickstart": quickstarts(folder, deadline, trial=arguments.trial)}
        write_record("gpu_learning", results, arguments.out)
        results["learning"] = learn(folder / "large", deadline, trial=arguments.trial)
        write_record("gpu_learning", results, arguments.out)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    check(results, trial=arguments.trial)


def quickstarts(folder: Path, deadline: float, *, trial: bool) -> dict[str, Any]:
    """The quickstart on the card and on a core at the same time; the latter is ended with the former."""
    more = SHORT_QUICKSTART if trial else []
    runs = {"gpu": ([*ON_A_CARD, *more], {}), "cpu": (more, {"CUDA_VISIBLE_DEVICES": ""})}
    children = {
        name: start(quickstart_command(0, folder / name, overrides), folder / f"{name}.log", changes)
        for name, (overrides, changes) in runs.items()
    }
    wait(children["gpu"], deadline)
    if trial:
        wait(children["cpu"], deadline)
    for child in children.values():
        end(child)
    sides = {name: told(folder / name, children[name]) for name in children}
    steps = [sides[name].get("step_s") for name in ("cpu", "gpu")]
    stages = [sides[name].get("seconds", {}) for name in ("cpu", "gpu")]
    return {
        **sides,
        "cpu_over_gpu": {
            "step": steps[0] / steps[1] if all(steps) else None,
            "stages": {name: stages[0][name] / stages[1][name] for name in stages[0] if stages[1].get(name)},
        },
    }


def told(folder: Path, child: subprocess.Popen) -> dict[str, Any]:
    """What a quickstart's folder says; of one that did not end by itself, how far it came."""
    rows = metrics_of(folder / "rl")
    times = [row["step_time"] for row in rows if row["step"]]
    known = {"exit_code": child.returncode, "steps": len(times), "step_s": statistics.median(times) if times else None}
    known |= {"warm_start_steps": len(metrics_of(folder / "warm_start"))}
    if child.returncode:
        known["last_words"] = (folder.parent / f"{folder.name}.log").read_text(errors="replace")[-1500:]
    return known | (read_quickstart(folder) if child.returncode == 0 else {})


def learn(folder: Path, deadline: float, *, trial: bool) -> dict[str, Any]:
    """Warm start and RL of the larger model until the deadline; rewards, accuracies, seconds."""
    begun = time.monotonic()
    model = apart(write_learner, folder / "model", 2 if trial else None)
    built_s = time.monotonic() - begun
    overrides = [*LARGE, *(SHORT_LARGE if trial else [])]
    rows = {"sft": 16, "train": 16, "heldout": 8} if trial else {"sft": 1536, "train": 1024, "heldout": 128}
    tasks = {split: TASKS.format(rows=count, split=split) for split, count in rows.items()}
    warm = [f"model.path={model}", f"data.train={tasks['sft']}", "data.eval=null", f"output_dir={folder / 'sft'}"]
    child = start(command("sft", [*overrides, *warm]), folder / "sft.log")
    wait(child, deadline)
    end(child)
    known = {"build_s": built_s, "sft": followed(folder / "sft", folder / "sft.log", child)}
    if child.returncode == 0:
        policy = [f"model.path={folder / 'sft' / 'policy'}", f"output_dir={folder / 'rl'}"]
        sets = [f"data.train={tasks['train']}", f"data.eval={tasks['heldout']}"]
        child = start(command("train", [*overrides, *policy, *sets]), folder / "rl.log")
        wait(child, deadline)
        known["ended_by_the_clock"] = child.poll() is None
        end(child)
        known["rl"] = followed(folder / "rl", folder / "rl.log", child)
    return known


def write_learner(folder: Path, layers: int | None) -> Path:
    """The 0.5B model with an end token that it can sample."""
    return write_model(folder, "0.5b", layers, endless=False)


def followed(run: Path, log: Path, child: subprocess.Popen) -> dict[str, Any]:
    """What the metrics of a run say of its course."""
    rows = metrics_of(run)
    known: dict[str, Any] = {"exit_code": child.returncode, "steps": sum(row["step"] > 0 for row in rows)}
    for name in ("loss", "reward", "completions/mean_length", "step_time", "grad_norm"):
        values = [row[name] for row in rows if row["step"] and name in row]
        if values:
            known[name] = {
                f"first_{WINDOW}": statistics.fmean(values[:WINDOW]),
                f"last_{WINDOW}": statistics.fmean(values[-WINDOW:]),
                "median": statistics.median(values),
            }
    known["held_out_accuracy"] = {
        str(row["step"]): value for row in rows for name, value in row.items() if name == "eval/accuracy"
    }
    if not rows or child.returncode not in (0, -signal.SIGKILL):
        known["last_words"] = log.read_text(errors="replace")[-1500:]
    return known


def command(name: str, overrides: Sequence[str]) -> list[str]:
    """A command of ours on the quickstart's configuration."""
    return [sys.executable, "-m", "vlm_mhpo.cli", name, str(CONFIG), *overrides]


def start(arguments: Sequence[str], log: Path, changes: Mapping[str, str] | None = None) -> subprocess.Popen:
    """Start a program in the environment of this one with `changes`; what it prints goes to a file."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as stream:
        return subprocess.Popen(
            arguments, cwd=ROOT, env=os.environ | dict(changes or {}), stdout=stream, stderr=subprocess.STDOUT
        )


def wait(child: subprocess.Popen, deadline: float) -> None:
    """Until a program has ended, or the deadline."""
    with suppress(subprocess.TimeoutExpired):
        child.wait(max(0.0, deadline - time.monotonic()))


def end(child: subprocess.Popen) -> None:
    """End a program that is still there. Its records are on the disk; a checkpoint would take longer than there is."""
    if child.poll() is None:
        child.kill()
    child.wait()


def check(results: Mapping[str, Any], *, trial: bool) -> None:
    """SystemExit when a run failed, or a trial did not get to its end."""
    runs = {
        "quickstart on the card": results["quickstart"]["gpu"],
        "quickstart on the CPU": results["quickstart"]["cpu"],
    }
    runs |= {f"larger model, {name}": results["learning"].get(name, {"exit_code": 1}) for name in ("sft", "rl")}
    fine = (0,) if trial else (0, -signal.SIGKILL)
    bad = {name: run["exit_code"] for name, run in runs.items() if run["exit_code"] not in fine}
    if bad:
        raise SystemExit(f"error: {', '.join(f'{name} ended with {code}' for name, code in bad.items())}")


if __name__ == "__main__":
    main()
