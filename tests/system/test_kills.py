"""kill -9 of real training ranks: at named points of a DeepSpeed save, and at random times."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.system.ranks import run_ranks
from tests.system.resume_cases import assert_same_checkpoint, rows_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

SHARD_POINTS = ("before own shard", "inside own shard", "after own shard")
MAIN_POINTS = ("before manifest", "before rename", "after rename", "before prune", "inside prune")
KILLS = [(point, rank) for point in (*SHARD_POINTS, *MAIN_POINTS) for rank in (0, 1)]
COMMON = ["deepspeed.zero_stage=2", "checkpoint.save_steps=1", "checkpoint.save_total_limit=1"]


def drive(folder: Path, requests: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What `drive_kills` answers."""
    (folder / "requests.json").write_text(json.dumps(requests))
    arguments = ("-m", "tests.system.drive_kills", folder / "requests.json", folder / "answers.json")
    (ended,) = run_ranks(arguments, folder, timeout_s=1180)
    assert ended.code == 0, ended.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


@pytest.fixture(scope="module")
def named(tmp_path_factory) -> tuple[Path, list[dict[str, Any]]]:
    """All kills at named points of the save at step 2, each of its own copy of a run of one step."""
    folder = tmp_path_factory.mktemp("named")
    overrides = [*COMMON, "train.max_steps=3"]
    requests = [
        {"kind": "straight", "output_dir": str(folder / "one"), "overrides": [*COMMON, "train.max_steps=1"]},
        {"kind": "straight", "output_dir": str(folder / "straight"), "overrides": overrides},
    ]
    for index, (point, rank) in enumerate(KILLS):
        # Only the main rank passes the later points; it kills the other one there.
        kill = {"point": point, "rank": rank, "by": rank if point in SHARD_POINTS else 0, "step": 2}
        run = {"kind": "named", "output_dir": str(folder / str(index)), "source": str(folder / "one"), "from": 1}
        requests.append(run | {"overrides": overrides, "kill": kill})
    return folder, drive(folder, requests)[2:]


@pytest.mark.parametrize("index", range(len(KILLS)), ids=[f"{point} of rank {rank}" for point, rank in KILLS])
def test_a_rank_that_is_killed_inside_a_save_costs_nothing(named, index):
    folder, answers = named
    point, rank = KILLS[index]
    answer = answers[index]
    # It was killed, and the run did not end by itself.
    assert answer["killed"][rank] == -9 and 0 not in answer["killed"]
    committed = point in ("after rename", "before prune", "inside prune")
    if rank == 0:
        assert answer["left"] == ([1, 2] if point in ("after rename", "before prune") else [2] if committed else [1])
    assert answer["resumed"] == [0, 0]
    printed = (folder / f"{index}.rank0").read_text()
    assert f"continuing after step {max(answer['left'])} of 3" in printed
    assert_same_checkpoint(folder / str(index), folder / "straight", 3)
    assert rows_of(folder / str(index)) == rows_of(folder / "straight")
    # Nothing half-done is left.
    assert [path.name for path in (folder / str(index) / "checkpoints").iterdir()] == ["step_000003"]


def last_words(folder: Path, newest: list[list[int]]) -> str:
    """What the ranks of the first and of the last run printed at their end, and where the runs were taken up."""
    files = [folder / f"{run}.rank{rank}" for run in ("timing", f"run{len(newest)}") for rank in (0, 1)]
    return "\n".join([str(newest), *(f"--- {file.name}\n{file.read_text()[-4000:]}" for file in files)])


def random_kills(folder: Path, number: int, seed: int) -> None:
    """Kill both ranks so many times at random; every run that ends equals the undisturbed one."""
    overrides = [*COMMON, "train.max_steps=8"]
    common = {"overrides": overrides, "seed": seed, "kills": number}
    requests = [
        {"kind": "straight", "output_dir": str(folder / "straight"), "overrides": overrides},
        {"kind": "random", "output_dir": str(folder), **common},
    ]
    straight, answer = drive(folder, requests)
    assert straight["codes"] == [0, 0]
    assert set(map(tuple, answer["codes"])) == {(0, 0)}, last_words(folder, answer["newest"])
    assert sum(map(len, answer["newest"])) == number
    for run, newest in enumerate(answer["newest"], 1):
        # A checkpoint that was there is never lost.
        assert newest == sorted(newest)
        assert rows_of(folder / f"run{run}") == rows_of(folder / "straight")
        assert_same_checkpoint(folder / f"run{run}", folder / "straight", 8)
    # Some were killed after a checkpoint, or nothing was tried.
    assert sum(step > 0 for newest in answer["newest"] for step in newest) >= number // 5
    print(f"{number} kills, steps resumed at: {answer['newest']}")


def test_random_kills_cost_nothing(tmp_path):
    random_kills(tmp_path, 25, seed=0)


@pytest.mark.long
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("seed", range(1, 9))
def test_many_random_kills_cost_nothing(tmp_path, seed):
    random_kills(tmp_path, 25, seed=seed)
