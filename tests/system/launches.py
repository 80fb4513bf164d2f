"""Launches of `drive_updates` on gloo ranks, and how weights after an update are compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.system.batches import ADAM
from tests.system.ranks import Ended, run_ranks

BASE = Path(__file__).with_name("base.yaml")
NO_CLIPPING = 1e9


@dataclass(frozen=True)
class Launch:
    """What the jobs of one launch left behind."""

    folder: Path
    ended: list[Ended]

    def result(self, name: str, rank: int = 0) -> dict[str, Any]:
        """The record of a job on a rank."""
        file = self.folder / f"{name}.rank{rank}.json"
        assert file.exists(), "\n".join([f"{name} did not end", *(ended.stderr[-2000:] for ended in self.ended)])
        return json.loads(file.read_text())

    def weights(self, name: str) -> dict[str, Tensor]:
        """The weights after a job."""
        self.result(name)
        return load_file(self.folder / f"{name}.safetensors")


def launch(folder: Path, model: Path, jobs: Sequence[dict[str, Any]], num_ranks: int) -> Launch:
    """Run jobs one after the other on `num_ranks` processes."""
    every_weight_partitioned = folder / "zero3.json"
    every_weight_partitioned.write_text(
        # By default ZeRO-3 leaves weights as small as a tiny model's whole, and would not be tested at all.
        json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}})
    )
    requests = []
    for job in jobs:
        overrides = [f"train.{name}={value}" for name, value in ADAM.items()]
        overrides += [f"train.max_grad_norm={NO_CLIPPING}", f"deepspeed.zero_stage={job['stage']}"]
        if job["stage"] == 3:
            overrides.append(f"deepspeed.config={every_weight_partitioned}")
        requests.append(
            {"config": str(BASE), "model": str(model), **job, "overrides": [*overrides, *job.get("overrides", ())]}
        )
    (folder / "jobs.json").write_text(json.dumps(requests))
    arguments = ("-m", "tests.system.drive_updates", folder / "jobs.json", folder)
    return Launch(folder, run_ranks(arguments, folder, num_ranks=num_ranks, timeout_s=160))


def assert_same_weights(found: dict[str, Tensor], expected: dict[str, Tensor], start: dict[str, Tensor]) -> None:
    """Equal to 1e-5 relative, and so are the changes from `start` to the precision that they have inside a weight."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        gap = float((found[name] - value).norm())
        assert gap <= 1e-5 * float(value.norm()) + 1e-9, name
    moved = torch.cat([(expected[name] - start[name]).flatten() for name in expected])
    gaps = torch.cat([(found[name] - expected[name]).flatten() for name in expected])
    assert float(gaps.norm()) <= 1e-4 * float(moved.norm())
