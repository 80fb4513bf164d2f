"""Runs are planned whole before any starts, started once, continued, and never mixed up."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.vlm_mhpo.test_comparison.cases import GRPO, MHPO, QUICKSTART
from vlm_mhpo.commands.study import runs as runs_module
from vlm_mhpo.commands.study.runs import Job, is_finished, plan, run_all
from vlm_mhpo.commands.study.variants import Variant
from vlm_mhpo.errors import ConfigError, TrainingError


def planned(out: Path, *overrides: str, seeds: tuple[int, ...] = (0, 1)) -> list[Job]:
    return plan(QUICKSTART, overrides, [MHPO, GRPO], seeds, out)


def accuracies(results) -> dict[str, dict[int, float]]:
    return {name: {seed: run.accuracy for seed, run in by_seed.items()} for name, by_seed in results.items()}


# --- the plan ---


def test_a_plan_has_every_objective_with_every_seed_in_a_folder_of_its_own(tmp_path, trainer):
    jobs = planned(tmp_path / "out")
    assert [(job.variant, job.seed) for job in jobs] == [("mhpo", 0), ("grpo", 0), ("mhpo", 1), ("grpo", 1)]
    assert [job.run_dir for job in jobs] == [tmp_path / "out" / job.variant / f"seed_{job.seed}" for job in jobs]
    assert not (tmp_path / "out").exists() and trainer.starts == []


def test_the_seed_placeholder_becomes_the_seed_everywhere_in_an_override(tmp_path):
    jobs = planned(tmp_path, "model.path=starts/{seed}/policy_{seed}", seeds=(3, 14))
    assert [job.overrides[0] for job in jobs] == ["model.path=starts/3/policy_3"] * 2 + [
        "model.path=starts/14/policy_14"
    ] * 2


def test_the_comparison_decides_on_objective_seed_and_folder(tmp_path, trainer):
    jobs = planned(tmp_path, "seed=77", "objective.name=sapo", "output_dir=elsewhere", seeds=(5,))
    run_all(QUICKSTART, jobs, num_jobs=1)
    for _, name, _, _, given in trainer.records:
        assert given["seed"] == "5" and given["output_dir"] == str(tmp_path / name / "seed_5")
    assert trainer.starts == [("mhpo", 5), ("grpo", 5)]


@pytest.mark.parametrize(
    ("override", "named"),
    [("train.learning_rat=1", "learning_rat"), ("train.max_steps=-1", "max_steps"), ("noequals", "noequals")],
)
def test_a_bad_override_is_refused_before_anything_starts(tmp_path, trainer, override, named):
    with pytest.raises(ConfigError, match=named):
        planned(tmp_path / "out", override)
    assert trainer.starts == [] and not (tmp_path / "out").exists()


def test_a_variant_that_is_bad_is_refused_although_the_first_is_good(tmp_path, trainer):
    bad = Variant("bad", ("objective.name=sapo", "objective.tau_pos=-1"))
    with pytest.raises(ConfigError, match="tau_pos"):
        plan(QUICKSTART, [], [MHPO, bad], [0, 1], tmp_path / "out")
    assert trainer.starts == []


def test_a_comparison_without_held_out_rows_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"data\.eval"):
        planned(tmp_path, "data.eval=null")


# --- running ---


def test_each_run_is_started_once_as_a_training_command_with_one_thread(tmp_path, trainer):
    results = run_all(QUICKSTART, planned(tmp_path), num_jobs=1)
    assert sorted(trainer.starts) == [("grpo", 0), ("grpo", 1), ("mhpo", 0), ("mhpo", 1)]
    assert all(record[0] == ["-m", "vlm_mhpo.cli", "train"] and record[3] == "1" for record in trainer.records)
    assert accuracies(results) == {"mhpo": {0: 0.5, 1: 0.5625}, "grpo": {0: 0.25, 1: 0.3125}}
    assert results["mhpo"][0].clipped_share == 0.5 and results["mhpo"][0].drift == 0.5


def test_finished_runs_are_not_started_again(tmp_path, trainer):
    first = run_all(QUICKSTART, planned(tmp_path), num_jobs=2)
    assert len(trainer.starts) == 4
    assert run_all(QUICKSTART, planned(tmp_path), num_jobs=2) == first
    assert len(trainer.starts) == 4


def test_more_seeds_start_only_the_new_ones(tmp_path, trainer):
    run_all(QUICKSTART, planned(tmp_path), num_jobs=2)
    results = run_all(QUICKSTART, planned(tmp_path, seeds=(0, 1, 2)), num_jobs=2)
    assert sorted(trainer.starts[4:]) == [("grpo", 2), ("mhpo", 2)]
    assert list(results["grpo"]) == [0, 1, 2]


def test_an_interrupted_run_is_started_again_in_its_folder(tmp_path, trainer):
    jobs = planned(tmp_path)
    run_all(QUICKSTART, jobs, num_jobs=2)
    kept = jobs[2].run_dir / "checkpoints" / "step_000001"
    kept.mkdir(parents=True)
    (jobs[2].run_dir / "eval" / "after.json").unlink()
    run_all(QUICKSTART, jobs, num_jobs=2)
    assert trainer.starts[4:] == [("mhpo", 1)] and kept.is_dir()


def test_results_do_not_depend_on_who_ends_first(tmp_path, trainer):
    # The first run ends only after the last one has.
    os.mkfifo(trainer.folder / "gate")
    trainer.set(waits={"mhpo0": "gate"}, releases={"grpo1": "gate"})
    results = run_all(QUICKSTART, planned(tmp_path), num_jobs=2)
    assert list(results) == ["mhpo", "grpo"] and [list(by_seed) for by_seed in results.values()] == [[0, 1], [0, 1]]
    assert accuracies(results) == {"mhpo": {0: 0.5, 1: 0.5625}, "grpo": {0: 0.25, 1: 0.3125}}


def test_a_failing_run_is_named_with_the_end_of_its_log(tmp_path, trainer):
    trainer.set(fails=["grpo0"])
    with pytest.raises(TrainingError) as caught:
        run_all(QUICKSTART, planned(tmp_path), num_jobs=1)
    message = str(caught.value)
    assert "grpo with seed 0" in message and "the GPU is on fire" in message
    # Where it says the log is, there it is, although the run did not write UTF-8.
    log = tmp_path / "grpo" / "seed_0.log"
    assert str(log) in message and b"on fire" in log.read_bytes()


def test_after_a_failure_the_rest_does_not_start_and_what_was_finished_is_kept(tmp_path, trainer):
    jobs = planned(tmp_path, seeds=(0, 1, 2, 3, 4))
    trainer.set(fails=["grpo0"])
    with pytest.raises(TrainingError):
        run_all(QUICKSTART, jobs, num_jobs=1)
    # The one after the culprit may already be under way.
    begun = len(trainer.starts)
    assert trainer.starts[:2] == [("mhpo", 0), ("grpo", 0)] and begun <= 3
    trainer.set()
    results = run_all(QUICKSTART, jobs, num_jobs=1)
    assert trainer.starts.count(("mhpo", 0)) == 1 and trainer.starts.count(("grpo", 0)) == 2
    assert [len(by_seed) for by_seed in results.values()] == [5, 5]


def test_after_ctrl_c_nothing_new_starts(tmp_path, trainer, monkeypatch):
    def interrupted(futures):
        next(iter(futures)).result()
        raise KeyboardInterrupt

    monkeypatch.setattr(runs_module, "as_completed", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_all(QUICKSTART, planned(tmp_path, seeds=tuple(range(10))), num_jobs=1)
    assert len(trainer.starts) <= 3


def test_a_run_that_died_between_its_last_evaluation_and_its_last_row_is_not_finished(tmp_path, trainer):
    jobs = planned(tmp_path)
    run_all(QUICKSTART, jobs, num_jobs=2)
    metrics = jobs[0].run_dir / "metrics.jsonl"
    metrics.write_text(metrics.read_text().splitlines()[0] + "\n")
    assert not is_finished(jobs[0])


def test_a_finished_run_of_another_setting_is_not_taken_for_this_one(tmp_path, trainer):
    def finish(job: Job) -> None:
        """What the recorder writes into run.json of a whole run."""
        from vlm_mhpo.config import load_config

        record = {"config": load_config(QUICKSTART, job.overrides).model_dump(mode="json")}
        (job.run_dir / "run.json").write_text(json.dumps(record))

    jobs = planned(tmp_path, "train.learning_rate=1e-4")
    run_all(QUICKSTART, jobs, num_jobs=2)
    for job in jobs:
        finish(job)
    run_all(QUICKSTART, planned(tmp_path, "train.learning_rate=1e-4"), num_jobs=2)
    assert len(trainer.starts) == 4
    other = planned(tmp_path, "train.learning_rate=9e-4")
    try:
        run_all(QUICKSTART, other, num_jobs=2)
    except (ConfigError, TrainingError):
        return
    assert len(trainer.starts) == 8
