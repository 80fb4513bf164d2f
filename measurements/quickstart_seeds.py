"""Run the quickstart's main job on several seeds and write what it reached and how long each stage took.

Usage: python measurements/quickstart_seeds.py [--seeds 0 1 2] [--out FILE] [key.sub=value ...]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from card import card

from vlm_mhpo.config import load_config
from vlm_mhpo.records.run_file import git_commit, versions

ROOT = Path(__file__).resolve().parent.parent
# Sampled reward is noisy from step to step; its start and end are means over this many steps.
WINDOW = 10


def main() -> None:
    """Run the seeds one after the other, each in a process of its own, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "measurements" / "results" / "quickstart.json")
    arguments, overrides = parser.parse_known_args()
    results = [run_seed(seed, overrides) for seed in arguments.seeds]
    record = {
        "command": " ".join(["python", "measurements/quickstart_seeds.py", *sys.argv[1:]]),
        "environment": environment(),
        "config": load_config(ROOT / "configs" / "quickstart.yaml", overrides).model_dump(),
        "seeds": results,
        "smallest_accuracy_gain": min(result["accuracy_gain"] for result in results),
        "smallest_reward_gain": min(result["reward_gain"] for result in results),
        "longest_seconds": max(result["seconds"]["all"] for result in results),
    }
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")
    for key in ("smallest_accuracy_gain", "smallest_reward_gain", "longest_seconds"):
        print(f"{key}: {record[key]:.3f}")


def run_seed(seed: int, overrides: list[str]) -> dict[str, Any]:
    """One quickstart; what its run folder says afterwards."""
    folder = ROOT / "runs" / f"quickstart_seed_{seed}"
    subprocess.run(quickstart_command(seed, folder, overrides), check=True, cwd=ROOT)
    return {"seed": seed, **read_quickstart(folder)}


def quickstart_command(seed: int, folder: Path, overrides: list[str]) -> list[str]:
    """What runs a quickstart into a folder."""
    return [sys.executable, "-m", "vlm_mhpo.cli", "quickstart", f"seed={seed}", f"output_dir={folder}", *overrides]


def read_quickstart(folder: Path) -> dict[str, Any]:
    """What a finished quickstart reached, and the seconds of its stages."""
    rl = folder / "rl"
    before, after = (json.loads((rl / "eval" / f"{name}.json").read_text()) for name in ("before", "after"))
    rewards = [row["reward"] for row in metrics_of(rl) if "reward" in row]
    start, end = (sum(part) / len(part) for part in (rewards[:WINDOW], rewards[-WINDOW:]))
    stages = json.loads((rl / "run.json").read_text())["stages"]
    return {
        "held_out_pictures": before["num_rows"],
        "accuracy_after_warm_start": before["accuracy"],
        "accuracy_after_rl": after["accuracy"],
        "accuracy_gain": after["accuracy"] - before["accuracy"],
        "interval_after_warm_start": [before["accuracy_low"], before["accuracy_high"]],
        "interval_after_rl": [after["accuracy_low"], after["accuracy_high"]],
        f"reward_first_{WINDOW}_steps": start,
        f"reward_last_{WINDOW}_steps": end,
        "reward_gain": end - start,
        "seconds": stages | {"all": round(sum(stages.values()), 1)},
    }


def metrics_of(run: Path) -> list[dict[str, Any]]:
    """The whole rows of a run's metrics.jsonl; the last of a run that was ended may be cut."""
    file = run / "metrics.jsonl"
    lines = file.read_text().splitlines(keepends=True) if file.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def environment() -> dict[str, Any]:
    """What the figures depend on."""
    return {
        "cpus": os.cpu_count(),
        "machine": platform.machine(),
        "processor": processor(),
        "card": card(),
        "versions": versions(),
        "git_commit": git_commit(),
    }


def processor() -> str:
    """The CPU's name where the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    return next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


if __name__ == "__main__":
    main()
