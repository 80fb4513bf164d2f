"""Profiles of real runs on one and two ranks: everything is seen, counted, and adds up."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.ranks import CLI, run_commands, run_ranks
from vlm_mhpo.commands.profiling.figures import PHASES

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

BASE = Path(__file__).parents[2] / "system" / "base.yaml"


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> tuple[dict, Path, dict]:
    """(answer of the command, folder, profile.json) of two steps of the base run with a KL term and a pass twice."""
    folder = tmp_path_factory.mktemp("profile")
    changes = ["objective.beta=0.1", "train.num_iterations=2", f"output_dir={folder / 'run'}"]
    (answer,) = run_commands([["profile", BASE, *changes, "--steps", 2, "--out", folder / "out"]], folder / "command")
    assert answer["code"] == 0, answer["stderr"][-3000:]
    return answer, folder, json.loads((folder / "out" / "profile.json").read_text())


def test_the_phases_of_a_run_add_up_to_its_steps(alone):
    _, _, found = alone
    assert len(found["step_seconds"]) == 2
    assert sum(phase["seconds"] for phase in found["phases"]) == pytest.approx(found["wall_s"], rel=1e-6)
    assert sum(found["shares"].values()) == pytest.approx(1.0, rel=1e-6)


def test_every_phase_is_seen_and_counted(alone):
    _, _, found = alone
    calls = {phase["name"]: phase["calls"] for phase in found["phases"]}
    # Alone there is nobody to wait for. A mark that has lost its function would be missing here.
    assert set(calls) == set(PHASES) - {"ranks"}
    # Two minibatches, two passes; all four prompts in one batch; at most one decode for each token but the last.
    assert (calls["update/optimizer"], calls["update/backward"], calls["sample/prefill"]) == (4, 4, 1)
    assert 1 <= calls["sample/decode"] <= 7
    assert all(phase["peak_bytes"] > 0 for phase in found["phases"] if phase["name"] != "profiler")


def test_tokens_and_flops_of_a_run_are_counted_in_each_pass(alone):
    _, _, found = alone
    sample, log_probs, update_ = (found["stages"][name] for name in ("sample", "log_probs", "update"))
    # The reference reads all completions, the policy only those of the second of two minibatches ahead of the update.
    assert (sample["prompts"], log_probs["prompts"], update_["prompts"]) == (4, 6, 8)
    assert log_probs["prompt_tokens"] == 1.5 * sample["prompt_tokens"]
    assert sample["completion_tokens"] < log_probs["completion_tokens"] < 2 * sample["completion_tokens"]
    # The updates are two passes over everything.
    assert update_["prompt_tokens"] == 2 * sample["prompt_tokens"]
    assert update_["completion_tokens"] == 2 * sample["completion_tokens"]
    # Everything is trained: three times the forward, but for the pixels, whose gradient nobody needs.
    a_token = {name: stage["flops"] / stage["needed_tokens"] for name, stage in found["stages"].items()}
    assert 2.8 < a_token["update"] / a_token["log_probs"] < 3.05
    for stage in (sample, log_probs, update_):
        assert stage["computed_tokens"] >= stage["needed_tokens"]
        assert 0 < stage["utilisation"] < 1


def test_a_profile_leaves_its_two_files_and_nothing_else(alone):
    answer, folder, found = alone
    assert sorted(path.name for path in (folder / "out").iterdir()) == ["profile.json", "profile.png"]
    assert not (folder / "run").exists()
    assert "backward" in answer["stdout"] and found["advice"][0] in answer["stdout"].replace("\n", "")


def test_two_ranks_are_profiled_together(tmp_path):
    arguments = [*CLI, "profile", BASE, "--steps", "1", "--out", tmp_path / "out"]
    ended = run_ranks(arguments, tmp_path / "logs", num_ranks=2, timeout_s=100)
    assert [process.code for process in ended] == [0, 0], ended[1].stderr[-3000:]
    found = json.loads((tmp_path / "out" / "profile.json").read_text())
    assert [len(found["by_rank"]), found["num_ranks"], found["stages"]["sample"]["prompts"]] == [2, 2, 4]
    assert "ranks" in {phase["name"] for phase in found["phases"]}
    assert "a step" in ended[0].stdout and ended[1].stdout == ""


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    commands = [["profile", BASE, "--out", tmp_path / "file" / "out"]]
    (answer,) = run_commands(commands, tmp_path / "command")
    assert answer["code"] == 2
    assert f"--out {tmp_path / 'file' / 'out'}" in answer["stderr"]
