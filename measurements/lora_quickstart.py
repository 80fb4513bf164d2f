"""The quickstart's task with adapters against its full run: the same warm start, rows, order and sampling seeds.

Usage: python measurements/lora_quickstart.py [--seeds 0] [--ranks 16] [--factors 5 10] [--out FILE]

A factor is that of the learning rate compared with the full run's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from quickstart_seeds import ROOT, environment, quickstart_command
from safetensors.torch import load_file

from vlm_mhpo.config import load_config

CONFIG = ROOT / "configs" / "quickstart.yaml"


def main() -> None:
    """Run everything that is not there yet, print a line for each run, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[16])
    parser.add_argument("--factors", type=float, nargs="+", default=[5.0, 10.0])
    parser.add_argument("--out", type=Path, default=ROOT / "measurements" / "results" / "lora_quickstart.json")
    arguments = parser.parse_args()
    runs = []
    for seed in arguments.seeds:
        full = ROOT / "runs" / f"quickstart_seed_{seed}"
        if not (full / "rl" / "eval" / "after.json").exists():
            subprocess.run(quickstart_command(seed, full, []), check=True, cwd=ROOT)
        runs.append({"seed": seed, "name": "full", **outcome(full / "rl")})
        for rank in arguments.ranks:
            for factor in arguments.factors:
                folder = full / f"lora_{rank}_{factor:g}"
                if not (folder / "eval" / "after.json").exists():
                    subprocess.run(lora_command(full, folder, seed, rank, factor), check=True, cwd=ROOT)
                runs.append({"seed": seed, "name": f"r = {rank}, rate x {factor:g}", **outcome(folder)})
    for run in runs:
        print(
            "seed {seed} {name}: {before:.1%} to {after:.1%} ({low:.1%} to {high:.1%}), {trained} trained".format(**run)
        )
    record = {"command": " ".join(["python", *sys.argv]), "environment": environment(), "runs": runs}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(record, indent=1) + "\n")


def lora_command(full: Path, folder: Path, seed: int, rank: int, factor: float) -> list[str]:
    """RL with adapters from the warm start of a quickstart that is there."""
    rate = factor * load_config(CONFIG).train.learning_rate
    overrides = [f"output_dir={folder}", f"seed={seed}", f"model.path={full / 'warm_start' / 'policy'}"]
    overrides += [f"data.train={full / 'data' / 'train'}", f"data.eval={full / 'data' / 'heldout'}"]
    overrides += [f"model.lora={{r: {rank}}}", f"train.learning_rate={rate}", "logging.report=false"]
    return [sys.executable, "-m", "vlm_mhpo.cli", "train", str(CONFIG), *overrides]


def outcome(run_dir: Path) -> dict[str, Any]:
    """What a run reached, and how large it is."""
    before, after = (json.loads((run_dir / "eval" / f"{name}.json").read_text()) for name in ("before", "after"))
    (policy,) = sorted(run_dir.glob("checkpoints/step_*/policy"))[-1].glob("*.safetensors")
    return {
        "before": before["accuracy"],
        "after": after["accuracy"],
        "low": after["accuracy_low"],
        "high": after["accuracy_high"],
        "trained": json.loads((run_dir / "run.json").read_text())["model"]["trainable"],
        "policy_bytes": policy.stat().st_size,
        "saved_weights": sum(value.numel() for value in load_file(policy).values()),
        "checkpoint_bytes": sum(file.stat().st_size for file in policy.parents[1].rglob("*") if file.is_file()),
    }


if __name__ == "__main__":
    main()
