"""Twelve steps straight against stopping and resuming at 1, 4, 7 and 11: the same to the last bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.resume_cases import assert_same_checkpoint, rows_of, run_all

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

STEPS = 12
STOPS = (1, 4, 7, 11)
# ZeRO stages by number of ranks. The full lane has those that differ most; the others are in the long lane.
FULL = {1: (2,), 2: (3,)}
LONG = {1: (1, 3), 2: (1, 2)}


def pairs(lane: dict[int, tuple[int, ...]]) -> list[tuple[int, int]]:
    return [(num_ranks, stage) for num_ranks, stages in lane.items() for stage in stages]


def all_runs(folder: Path, lane: dict[int, tuple[int, ...]]) -> Path:
    """One straight run for each number of ranks and stage, with all checkpoints kept, and a run resumed from each."""
    for num_ranks, stages in lane.items():
        requests = []
        for stage in stages:
            overrides = [f"deepspeed.zero_stage={stage}", "train.num_prompts_per_step=2", "train.num_minibatches=1"]
            overrides += [f"train.max_steps={STEPS}", "train.num_iterations=2"]
            straight = str(folder / f"{num_ranks}_{stage}_straight")
            kept = [f"checkpoint.save_total_limit={STEPS}", "checkpoint.save_steps=1"]
            requests.append({"output_dir": straight, "overrides": [*overrides, *kept]})
            requests += [
                {
                    "output_dir": str(folder / f"{num_ranks}_{stage}_{stop}"),
                    "overrides": [*overrides, "checkpoint.save_steps=0"],
                    "source": straight,
                    "step": stop,
                }
                for stop in STOPS
            ]
        printed = run_all(folder / f"ranks{num_ranks}", requests, num_ranks)
        # Starting over would end in the same place.
        assert [printed.count(f"continuing after step {stop} of {STEPS}") for stop in STOPS] == [len(stages)] * len(
            STOPS
        )
    return folder


@pytest.fixture(scope="module")
def full_runs(tmp_path_factory) -> Path:
    return all_runs(tmp_path_factory.mktemp("exact"), FULL)


@pytest.fixture(scope="module")
def long_runs(tmp_path_factory) -> Path:
    return all_runs(tmp_path_factory.mktemp("exact_long"), LONG)


def assert_exact(folder: Path, num_ranks: int, stage: int, stop: int) -> None:
    straight, resumed = (folder / f"{num_ranks}_{stage}_{name}" for name in ("straight", stop))
    assert_same_checkpoint(straight, resumed, STEPS)
    rows = rows_of(straight)
    assert [row["step"] for row in rows] == list(range(1, STEPS + 1))
    assert rows_of(resumed) == rows
    # Steps differ from each other (but those whose rewards are all equal), so the comparison could fail.
    assert len({row["grad_norm"] for row in rows}) > STEPS // 2


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("num_ranks,stage", pairs(FULL))
def test_a_resumed_run_ends_as_the_straight_one_to_the_bit(full_runs, num_ranks, stage, stop):
    assert_exact(full_runs, num_ranks, stage, stop)


@pytest.mark.long
@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("num_ranks,stage", pairs(LONG))
def test_a_resumed_run_of_the_other_stages_ends_as_the_straight_one(long_runs, num_ranks, stage, stop):
    assert_exact(long_runs, num_ranks, stage, stop)
