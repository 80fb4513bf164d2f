"""Whole runs on one and two ranks: the same twice, the same after an interruption, and every kind of run at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.system.ranks import REPOSITORY, Ended, run_ranks
from tests.system.resume_cases import SMALL, assert_same_checkpoint, rows_of
from vlm_mhpo.records import metric_table as table
from vlm_mhpo.records.metric_table import metric_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

KL = ["objective.beta=0.1", "train.max_steps=2", "train.num_minibatches=1", "data.eval=null"]
# Learning so slowly that the last step still has something to learn, and a loss to compare.
TWENTY = [*SMALL, "train.max_steps=20", "train.learning_rate=1.0e-4", "checkpoint.save_steps=0"]
TWENTY += ["rollout.num_generations=4", "deepspeed.zero_stage=2"]
BASE = Path(__file__).with_name("base.yaml")
CURVE = REPOSITORY / "tests" / "data" / "golden_curve.json"


def run_all(folder: Path, requests: Sequence[dict[str, Any]], num_ranks: int) -> list[Ended]:
    """Run the requests in turn on `num_ranks` processes; all must succeed."""
    folder.mkdir(exist_ok=True)
    filled = [{"config": str(BASE), "overrides": [], **request} for request in requests]
    (folder / "requests.json").write_text(json.dumps(filled))
    arguments = ("-m", "tests.system.drive_runs", folder / "requests.json")
    ended = run_ranks(arguments, folder, num_ranks=num_ranks, timeout_s=150)
    assert [process.code for process in ended] == [0] * num_ranks, "\n".join(p.stderr[-3000:] for p in ended)
    return ended


def straight_and_interrupted(folder: Path, stage: int) -> list[dict[str, Any]]:
    """Four steps in one go, and the same run killed after its third row and started again."""
    overrides = [f"deepspeed.zero_stage={stage}"]
    straight, again = folder / f"straight{stage}", folder / f"again{stage}"
    return [
        {"output_dir": str(straight), "overrides": overrides},
        {"output_dir": str(again), "overrides": overrides, "interrupted": str(straight)},
    ]


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("alone")
    short = ["train.max_steps=1", "data.eval=null"]
    requests = [
        *straight_and_interrupted(folder, 0),
        *straight_and_interrupted(folder, 2),
        {"output_dir": str(folder / "twenty"), "overrides": TWENTY},
        {"output_dir": str(folder / "kl"), "overrides": KL},
        {"output_dir": str(folder / "grpo"), "overrides": [*short, "objective.name=grpo"]},
        {"output_dir": str(folder / "passes"), "overrides": [*short, "train.num_iterations=2"]},
    ]
    for family in ("qwen2_vl", "qwen3_vl", "qwen2"):
        run = {"output_dir": str(folder / family), "overrides": [*short, f"model.path=tiny:{family}"]}
        if family == "qwen2":
            run["overrides"].append(f"data.train={write_text_rows(folder)}")
        requests.append(run)
    run_all(folder, requests, 1)
    return folder


def write_text_rows(folder: Path) -> Path:
    """Eight sums without an image."""
    file = folder / "sums.jsonl"
    lines = [json.dumps({"problem": f"What is {n} + 1 ?", "answer": str(n + 1)}) for n in range(8)]
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def together(tmp_path_factory) -> Path:
    """Runs of two ranks."""
    folder = tmp_path_factory.mktemp("together")
    requests = [
        *straight_and_interrupted(folder, 2),
        *straight_and_interrupted(folder, 3),
        {"output_dir": str(folder / "kl"), "overrides": [*KL, "deepspeed.zero_stage=3"]},
        {"output_dir": str(folder / "sft"), "overrides": ["deepspeed.zero_stage=2"], "sft": True},
    ]
    run_all(folder, requests, 2)
    return folder


def test_the_same_seed_in_another_process_writes_the_same_bytes_of_metrics(alone, tmp_path):
    twin, other = tmp_path / "twin", tmp_path / "other"
    requests = [
        {"output_dir": str(twin), "overrides": TWENTY},
        {"output_dir": str(other), "overrides": [*TWENTY, "seed=1", "train.max_steps=1"]},
    ]
    run_all(tmp_path, requests, 1)
    first = rows_of(alone / "twenty")
    assert json.dumps(rows_of(twin)) == json.dumps(first)
    # The comparison could fail: steps differ, and so does another seed.
    assert len(first) == len({row["policy_loss"] for row in first}) == 20
    assert rows_of(other)[0]["policy_loss"] != first[0]["policy_loss"]


def test_twenty_steps_on_recorded_completions_follow_the_committed_curve(tmp_path):
    """`drive_curve` says how the curve was made, and how it is made anew."""
    (ended,) = run_ranks(("-m", "tests.system.drive_curve", tmp_path / "curve.json"), tmp_path)
    assert ended.code == 0, ended.stderr[-3000:]
    found, committed = (json.loads(file.read_text()) for file in (tmp_path / "curve.json", CURVE))
    assert found.keys() == committed.keys()
    for name, values in committed.items():
        assert len(values) == 20
        # The loss is what is left of terms of both signs, each up to 0.3: a millionth is 1e-5 of a tenth.
        assert found[name] == pytest.approx(values, rel=1e-5, abs=1e-6 if name == "policy_loss" else 0.0), name


RESUMED = [("alone", 0), ("alone", 2), ("together", 2), ("together", 3)]


@pytest.mark.parametrize("ranks,stage", RESUMED)
def test_an_interrupted_run_goes_on_to_the_same_weights_and_optimizer_state(ranks, stage, request):
    folder = request.getfixturevalue(ranks)
    # Starting over would end in the same weights, so that it did not is shown apart.
    assert (folder / "rank0.out").read_text().count("continuing after step 2 of 4") == 2
    straight, again = (folder / f"{name}{stage}" for name in ("straight", "again"))
    assert_same_checkpoint(straight, again, 4)
    assert len(list((again / "checkpoints").rglob("*.pt"))) >= (2 if ranks == "together" else 1)


@pytest.mark.parametrize("ranks,stage", RESUMED)
def test_metrics_of_an_interrupted_run_have_neither_gap_nor_double_row(ranks, stage, request):
    folder = request.getfixturevalue(ranks)
    again = rows_of(folder / f"again{stage}")
    assert [row["step"] for row in again] == [0, 1, 2, 3, 4]
    assert again == rows_of(folder / f"straight{stage}")


@pytest.mark.parametrize("ranks", ["alone", "together"])
def test_the_kl_to_the_first_policy_is_0_in_the_first_update_and_positive_in_the_second(ranks, request):
    first, second = rows_of(request.getfixturevalue(ranks) / "kl")
    assert abs(first["kl"]) < 1e-9
    assert 1e-6 < second["kl"] < 1.0


def test_two_ranks_see_the_same_metrics_as_one(alone, together):
    assert_same_row(rows_of(together / "straight2")[1], rows_of(alone / "straight2")[1])


def assert_same_row(second: dict[str, float], first: dict[str, float]) -> None:
    """What is counted or verified agrees to a millionth; what the model computes to its float32.

    AdamW's first step is the sign of the gradient, also where that is noise, so the second minibatch sees weights that
    differ by more than the order of sums.
    """
    assert second.keys() == first.keys()
    counted = [name for name in first if name.startswith(("reward", "completions/", "verdicts/", "num_", "frac_"))]
    assert {"reward", "completions/mean_length", "num_tokens"} < set(counted)
    for name in first:
        rel, margin = (1e-6, 0.0) if name in counted else (1e-4, 1e-5)
        assert second[name] == pytest.approx(first[name], rel=rel, abs=margin), name


def test_every_metric_of_a_run_is_in_the_table_and_every_entry_is_written(alone, together):
    files = [file for folder in (alone, together) for file in folder.glob("*/metrics.jsonl")]
    rows = [json.loads(line) for file in files for line in file.read_text().splitlines()]
    written = {name: metric_of(name) for row in rows for name in row if name != "step"}
    assert [name for name, metric in written.items() if metric is None] == []
    # No run here has these; all but the last are written in tests/vlm_mhpo/test_metric_table.py.
    elsewhere = {table.CLIPPED_CISPO, table.SAPO_GATE, table.REFILL_YIELD, table.REFILL_TRIES, table.REFILL_FLAT}
    # A tiny model may well reach the budget with every completion.
    elsewhere |= {table.LENGTH_ENDED, table.EVAL_OURS}
    # Of servers and of a mismatch, in tests/vlm_mhpo/test_servers and test_mismatch.py.
    elsewhere |= {table.VESPO_WEIGHT, *(metric for metric in table.METRICS if "rollout.engine=vllm" in metric.when)}
    # With the reward functions that log, in tests/vlm_mhpo/test_user_rewards.py.
    elsewhere |= {table.LOGGED}
    assert set(written.values()) | elsewhere == set(table.METRICS)
    for row in (row for row in rows if table.REWARD.name in row):
        found = {written[name] for name in row if name != "step"}
        assert [metric.name for metric in table.METRICS if not metric.when and metric not in found] == []


def test_the_clipped_surrogate_and_a_second_pass_train(alone):
    grpo, passes, straight = (rows_of(alone / name) for name in ("grpo", "passes", "straight0"))
    assert "grpo/log_ratio_max" in grpo[0] and "mhpo/log_ratio_max" not in grpo[0]
    # The second pass starts from weights that have moved, so the ratio goes further from 1.
    assert passes[0]["kl_to_sampler/last_minibatch"] > straight[1]["kl_to_sampler/last_minibatch"]


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen3_vl", "qwen2"])
def test_every_family_trains_a_step(family, alone):
    rows = rows_of(alone / family)
    assert [row["step"] for row in rows] == [1]
    assert rows[0]["grad_norm"] > 0
    assert (alone / family / "checkpoints" / "step_000001" / "policy" / "model.safetensors").is_file()


def test_the_warm_start_on_two_ranks_lowers_the_loss(together):
    losses = [row["loss"] for row in rows_of(together / "sft")]
    assert len(losses) == 6
    assert max(losses[-2:]) < min(losses[:2])
    assert (together / "sft" / "policy" / "model.safetensors").is_file()
