"""The warm start stands under what RL stands under: it is stopped, recorded, saved and continued."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
from safetensors.torch import load_file

from vlm_mhpo.config import Config, load_config
from vlm_mhpo.errors import CheckpointError, Stopped
from vlm_mhpo.training import warm_start as warm
from vlm_mhpo.training.run import train

pytestmark = pytest.mark.full

BASE = Path(__file__).with_name("base.yaml")
OVERRIDES = (
    "sft.max_steps=4",
    "sft.num_prompts_per_step=4",
    "sft.learning_rate=1.0e-3",
    "sft.lr_scheduler_type=linear",
    "sft.warmup_steps=2",
    "checkpoint.save_steps=2",
    "data.eval=null",
    "logging.report=false",
)


def config_of(run_dir: Path, *overrides: str) -> Config:
    """A warm start of four steps."""
    return load_config(BASE, [*OVERRIDES, f"output_dir={run_dir}", *overrides])


def rows_of(run_dir: Path) -> list[dict[str, float]]:
    """The rows of metrics.jsonl without times."""
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith(("time/", "step_time"))} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The folder of a warm start that ran through."""
    run_dir = tmp_path_factory.mktemp("warm") / "run"
    assert warm.warm_start(config_of(run_dir)) == run_dir / "policy"
    return run_dir


def same_policy(one: Path, other: Path) -> bool:
    """Whether two runs ended with the same weights, bit by bit."""
    mine, its = (load_file(folder / "policy" / "model.safetensors") for folder in (one, other))
    return mine.keys() == its.keys() and all(mine[name].equal(its[name]) for name in mine)


def test_it_leaves_records_and_checkpoints(undisturbed):
    rows = rows_of(undisturbed)
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    # Two steps of warm-up to 1e-3, then down to a quarter of the way before its end at 0.
    assert [row["learning_rate"] for row in rows] == pytest.approx([5e-4, 1e-3, 1e-3, 5e-4])
    assert sorted(path.name for path in (undisturbed / "checkpoints").glob("step_*")) == ["step_000002", "step_000004"]
    assert json.loads((undisturbed / "run.json").read_text())["config"]["sft"]["max_steps"] == 4


def test_a_killed_one_goes_on_to_the_same_weights(undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    shutil.rmtree(run_dir / "checkpoints" / "step_000004")
    shutil.rmtree(run_dir / "policy")
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:3]) + '{"step": 4, "lo')
    warm.warm_start(config_of(run_dir))
    assert same_policy(run_dir, undisturbed)
    assert rows_of(run_dir) == rows_of(undisturbed)


def test_a_signal_stops_it_after_the_step_and_nothing_is_lost(undisturbed, tmp_path, monkeypatch):
    run_dir, real, calls = tmp_path / "run", warm.sft_step, []

    def struck(*arguments, **keywords):
        calls.append(1)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*arguments, **keywords)

    monkeypatch.setattr(warm, "sft_step", struck)
    with pytest.raises(Stopped, match="after step 3 of 4, as asked; its checkpoint is saved") as stopped:
        warm.warm_start(config_of(run_dir))
    assert stopped.value.exit_code == 143
    warm.warm_start(config_of(run_dir))
    assert len(calls) == 4
    assert same_policy(run_dir, undisturbed)


def test_another_setting_is_refused_and_what_only_rl_reads_is_free(undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    warm.warm_start(config_of(run_dir, "train.learning_rate=0.5", "rollout.temperature=0.3"))
    with pytest.raises(CheckpointError, match=r"sft.learning_rate was 0.001 and is now 0.5"):
        warm.warm_start(config_of(run_dir, "sft.learning_rate=0.5"))


def test_rl_does_not_go_on_from_the_checkpoint_of_a_warm_start(undisturbed, tmp_path):
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    with pytest.raises(CheckpointError, match="job was 'warm start' and is now 'rl'"):
        train(config_of(run_dir))
