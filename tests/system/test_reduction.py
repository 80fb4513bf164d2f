"""The ranks' bfloat16 gradients are added in float32: what Adam gets is their sum, not a rounded one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.builders import build_and_load
from tests.system.ranks import fork_ranks

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

BASE = Path(__file__).with_name("base.yaml")
OPTIONS = ["model.dtype=bfloat16", "train.max_grad_norm=1e9"]
# Not two, whose factor is exact in every type.
NUM_RANKS = 3
PARTITIONED = ("2", "3-offload", "2-buckets", "3-buckets")


def jobs(folder: Path, model: Path) -> list[dict[str, Any]]:
    """Every way of DeepSpeed to add gradients; weights larger than a bucket go another way than those in one."""
    common = {"config": str(BASE), "model": str(model)}
    made = []
    for name in PARTITIONED:
        stage, _, how = name.partition("-")
        overrides = [*OPTIONS, f"deepspeed.zero_stage={stage}"]
        if how == "offload":
            overrides.append("deepspeed.offload_optimizer=true")
        if how == "buckets":
            file = folder / f"{name}.json"
            file.write_text(json.dumps({"zero_optimization": {"reduce_bucket_size": 1000}}))
            overrides.append(f"deepspeed.config={file}")
        made.append({**common, "name": name, "max_tokens": 40, "overrides": overrides})
    # These add micro-batches in bfloat16, so there is one only.
    whole = {**common, "max_tokens": 10_000}
    for stage in ("0", "1"):
        made.append({**whole, "name": stage, "overrides": [*OPTIONS, f"deepspeed.zero_stage={stage}"]})
    bfloat16 = [*OPTIONS, "deepspeed.zero_stage=2", "deepspeed.reduce_dtype=bfloat16"]
    return [*made, {**whole, "name": "bfloat16", "overrides": bfloat16}]


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, dict[str, float]]:
    """Distances by job."""
    folder = tmp_path_factory.mktemp("reduction")
    build_and_load(folder / "model", "qwen2")
    wanted = jobs(folder, folder / "model")
    (folder / "jobs.json").write_text(json.dumps(wanted))
    program = "tests.system.drive_reduction"
    fork_ranks(program, folder / "jobs.json", folder, folder=folder, num_ranks=NUM_RANKS, timeout_s=160)
    return {job["name"]: json.loads((folder / f"{job['name']}.json").read_text()) for job in wanted}


@pytest.mark.parametrize("job", PARTITIONED)
def test_adam_gets_the_float32_sum_of_micro_batches_and_ranks(job, found):
    distances = found[job]
    assert distances["num_micro_batches"] > 1
    assert distances["optimizer"] <= 1e-6
    # What a single rounding would leave is far outside, and the ranks had different gradients.
    assert distances["rounded"] > 1e-3 and distances["first_rank"] > 0.5


@pytest.mark.parametrize("job", ["0", "1"])
def test_without_partitioned_gradients_the_float32_sum_is_rounded_once(job, found):
    assert found[job]["optimizer"] == pytest.approx(found[job]["rounded"], rel=1e-6)


def test_the_key_gives_the_sum_in_bfloat16_back(found):
    assert found["bfloat16"]["optimizer"] >= found["bfloat16"]["rounded"] > 1e-3
