"""A run goes on with other values: free keys leave its curve, allowed ones take hold from that step on."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.system.resume_cases import rows_of, run_all

pytestmark = [pytest.mark.full, pytest.mark.timeout(600)]

FREE = [
    *("train.max_tokens_per_micro_batch=64", "train.logits_chunk_size=3", "model.gradient_checkpointing=true"),
    *("rollout.max_batch_tokens=120", "data.prefetch=false", "deepspeed.offload_optimizer=true"),
    *("rewards.timeout_s=2", "rewards.memory_limit_mib=2048", "rewards.num_workers=2", "faults.hang_s=900"),
]
FALLING = ["train.learning_rate=5.0e-4", "train.lr_scheduler_type=linear", "train.max_steps=6"]
ALLOWED = "checkpoint.allow_change=[train.learning_rate,train.lr_scheduler_type,train.max_steps]"


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("changed")
    base = ["deepspeed.zero_stage=2", "checkpoint.save_total_limit=4"]

    def goes_on(name: str, overrides: list[str], source: str = "straight", step: int = 2) -> dict:
        asked = {
            "output_dir": str(folder / name),
            "overrides": [*base, *overrides],
            "record": str(folder / f"{name}_w"),
        }
        return {**asked, "source": str(folder / source), "step": step}

    straight = goes_on("straight", [])
    del straight["source"]
    requests = [
        straight,
        goes_on("free", FREE),
        goes_on("falling", [*FALLING, ALLOWED]),
        # Changes stay on record when the run goes on once more, without another.
        goes_on("again", [*FALLING, "checkpoint.save_steps=0"], "falling", 4),
        goes_on("decay", ["train.weight_decay=100", "checkpoint.allow_change=[train.weight_decay]"]),
    ]
    return folder, run_all(folder / "drive", requests, 1)


def test_free_keys_may_change_and_the_curve_is_that_of_the_undisturbed_run(runs):
    folder, _ = runs
    expected, found = rows_of(folder / "straight"), rows_of(folder / "free")
    assert [row["step"] for row in found] == [1, 2, 3, 4]
    for row, straight in zip(found, expected, strict=True):
        # The figure that was changed is recorded as it is.
        budgets = [each.pop("sampling/max_batch_tokens") for each in (row, straight)]
        assert budgets[0] == (120 if row["step"] > 2 else budgets[1])
        assert row == pytest.approx(straight, rel=1e-4, abs=1e-4)
    assert json.loads((folder / "free" / "run.json").read_text())["changes"] == []


def test_a_changed_schedule_is_what_the_new_configuration_says_from_that_step_on(runs):
    folder, printed = runs
    rates = [row["learning_rate"] for row in rows_of(folder / "falling")]
    assert rates == pytest.approx([1e-3, 1e-3, 5e-4 * 4 / 6, 5e-4 * 3 / 6, 5e-4 * 2 / 6, 5e-4 * 1 / 6])
    assert [row["learning_rate"] for row in rows_of(folder / "again")] == pytest.approx(rates)
    changes = [
        {"step": 2, "key": "train.learning_rate", "from": 1e-3, "to": 5e-4},
        {"step": 2, "key": "train.lr_scheduler_type", "from": "constant", "to": "linear"},
        {"step": 2, "key": "train.max_steps", "from": 4, "to": 6},
    ]
    for name in ("falling", "again"):
        found = json.loads((folder / name / "run.json").read_text())["changes"]
        assert sorted(found, key=lambda change: change["key"]) == changes, name
    assert "changed after step 2: train.learning_rate was 0.001 and is now 0.0005" in printed


def test_a_changed_weight_decay_is_not_taken_back_by_the_checkpoint(runs):
    folder, _ = runs
    kept, shrunk = (torch.load(folder / f"{name}_w" / "after.pt", weights_only=True) for name in ("straight", "decay"))
    name = next(name for name in kept if name.endswith("embed_tokens.weight"))
    # Four updates at 1e-3: (1 - 1e-3 * 100) ** 4.
    assert float(shrunk[name].norm() / kept[name].norm()) == pytest.approx(0.9**4, rel=0.1)
