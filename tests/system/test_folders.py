"""Two ranks whose run folders are not one: refused before a step, before a checkpoint, and before a new start."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.ranks import fork_ranks

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

BASE = Path(__file__).with_name("base.yaml")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("folders")
    fork_ranks("tests.system.drive_folders", folder, BASE, folder=folder, num_ranks=2, timeout_s=160)
    return folder


def both(folder: Path, name: str) -> list[dict[str, Any]]:
    """What an attempt gave on each rank."""
    return [json.loads((folder / f"{name}.rank{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.parametrize("name", ["same_folder", "same_folder_later", "same_weights"])
def test_one_folder_for_both_is_accepted_and_left_as_it_was(name, folder):
    assert both(folder, name) == [{"value": None}] * 2
    assert [path.name for path in (folder / "shared").iterdir()] == ["checkpoints"]
    assert [path.name for path in (folder / "shared" / "checkpoints").iterdir()] == ["step_000002"]


def test_a_folder_of_its_own_on_the_second_rank_is_refused_on_both(folder):
    for answer in both(folder, "own_folder"):
        assert (answer["error"], answer["code"]) == ("ConfigError", 2)
        assert "output_dir: " in answer["message"] and "apart1 of rank 1 on " in answer["message"]
        assert "put it on a file system that all nodes share" in answer["message"]
    assert list((folder / "apart0").iterdir()) == [] and not (folder / "apart1").exists()


def test_a_checkpoint_without_the_other_ranks_shard_is_not_committed(folder):
    first, second = both(folder, "save_apart")
    for answer in (first, second):
        assert (answer["error"], answer["code"]) == ("SaveError", 4)
        assert "step 2 could not be saved: " in answer["message"] and "is not there" in answer["message"]
        assert "rank_1_" in answer["message"] and "a file system that all nodes share" in answer["message"]
    for rank in (0, 1):
        assert list((folder / f"disk{rank}").glob("checkpoints/step_*")) == []
    # The same engine in one folder.
    assert both(folder, "save") == [{"value": "step_000002"}] * 2


@pytest.mark.parametrize(
    ("name", "found"), [("only_the_other_rank_has_it", ("[2]", "[]")), ("only_the_first_rank_has_it", ("[]", "[2]"))]
)
def test_a_checkpoint_that_one_rank_alone_sees_ends_the_run(name, found, folder):
    for answer in both(folder, name):
        assert (answer["error"], answer["code"]) == ("CheckpointError", 3)
        assert f"rank 1 finds checkpoints of steps {found[0]} in " in answer["message"]
        assert f"and rank 0 finds {found[1]}: put it on a file system that all nodes share" in answer["message"]


def test_a_checkpoint_that_both_see_is_continued_and_none_is_a_new_start(folder):
    assert both(folder, "resume") == [{"value": 2}] * 2
    assert both(folder, "nobody_has_it") == [{"value": 0}] * 2


def test_weights_that_differ_in_one_bit_are_named_by_their_source(folder):
    for answer in both(folder, "other_weights"):
        assert answer["error"] == "ConfigError"
        assert "the ranks are not set up alike: sum over the weights of some/model is " in answer["message"]
