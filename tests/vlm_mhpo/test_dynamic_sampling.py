"""Dynamic sampling: flat groups leave, bounded tries, counted yield; worked by hand on groups with given rewards."""

import json

import pytest
import torch

from data_prep import Row
from tests.system.ranks import run_ranks
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.rollout.refill import refill
from vlm_mhpo.types import Completion, Group, Prompt, ScoredGroup

DONE = Completion((1,), torch.zeros(1), "", False)


def prompt(name: str) -> Prompt:
    return Prompt(Row(id=name, images=(), problem="p", answer="1"), "", None, None)


def scored(name: str, *rewards: float) -> ScoredGroup:
    return ScoredGroup(Group(prompt(name), (DONE,) * len(rewards)), rewards, {}, (), ())


def stream_of(*names: str) -> PromptStream:
    rows = [Row(id=name, images=(), problem="p", answer="1") for name in names]
    return PromptStream(rows, lambda chosen: [prompt(row.id) for row in chosen], seed=0, num_prompts=1)


def ids(groups: list[ScoredGroup]) -> list[str]:
    return [group.group.prompt.id for group in groups]


def test_flat_groups_are_replaced_in_place_and_the_others_stay():
    first = [scored("a", 1, 0), scored("b", 1, 1), scored("c", 0, 1)]
    groups, metrics = refill(
        first,
        stream_of("a", "b", "c", "d"),
        0,
        lambda prompts, attempt: [scored(p.id, 0, 1) for p in prompts],
        max_resample_times=3,
    )
    assert ids(groups) == ["a", "d", "c"]
    # Four groups were sampled, three of them useful; one try was enough.
    assert metrics == {
        "dynamic_sampling/yield": 0.75,
        "dynamic_sampling/tries": 1.0,
        "dynamic_sampling/still_flat": 0.0,
    }


def test_tries_are_bounded_and_the_step_goes_on_with_what_there_is():
    calls = []

    def always_flat(prompts, attempt):
        calls.append((attempt, [p.id for p in prompts]))
        return [scored(p.id, 0, 0) for p in prompts]

    first = [scored("a", 0, 0), scored("b", 0, 1)]
    groups, metrics = refill(first, stream_of(*"abcdef"), 0, always_flat, max_resample_times=2)
    assert ids(groups) == ["a", "b"]
    assert [attempt for attempt, _ in calls] == [1, 2]
    asked = [name for _, names in calls for name in names]
    assert len(set(asked)) == len(asked) == 2 and not set(asked) & {"a", "b"}
    assert metrics["dynamic_sampling/still_flat"] == 0.5
    assert metrics["dynamic_sampling/yield"] == 1 / 4


@pytest.mark.parametrize("tries", [0, 3])
def test_nothing_is_sampled_when_no_group_is_flat_or_no_try_is_left(tries):
    def never(prompts, attempt):
        raise AssertionError("sampled again")

    rewards = (0, 1) if tries else (1, 1)
    groups, metrics = refill([scored("a", *rewards)], stream_of("a", "b"), 0, never, max_resample_times=tries)
    assert ids(groups) == ["a"]
    assert metrics["dynamic_sampling/tries"] == 0.0


def test_rows_that_run_out_leave_groups_flat():
    groups, metrics = refill(
        [scored("a", 1, 1)],
        stream_of("a"),
        0,
        lambda prompts, attempt: [scored(p.id, 0, 1) for p in prompts],
        max_resample_times=2,
    )
    assert ids(groups) == ["a"]
    assert metrics["dynamic_sampling/still_flat"] == 1.0


def test_other_prompts_are_a_pure_function_of_step_and_try():
    names = [str(n) for n in range(50)]
    first = [p.id for p in stream_of(*names).others(3, 1, 10, exclude={"7"})]
    assert first == [p.id for p in stream_of(*names).others(3, 1, 10, exclude={"7"})]
    assert "7" not in first and len(set(first)) == 10
    assert first != [p.id for p in stream_of(*names).others(3, 2, 10, exclude={"7"})]
    assert first != [p.id for p in stream_of(*names).others(4, 1, 10, exclude={"7"})]


def test_ranks_draw_different_prompts(monkeypatch):
    names = [str(n) for n in range(40)]
    drawn = []
    for rank in range(4):
        monkeypatch.setattr("vlm_mhpo.runtime.ranks.rank", lambda rank=rank: rank)
        monkeypatch.setattr("vlm_mhpo.runtime.ranks.world_size", lambda: 4)
        drawn += [p.id for p in stream_of(*names).others(0, 1, 10, exclude=set())]
    assert sorted(drawn, key=int) == names


@pytest.mark.timeout(120)
def test_no_prompt_stands_twice_in_a_step_of_two_ranks(tmp_path):
    """Each try cuts another permutation in two: without word of the other rank's prompts one draws them again."""
    ended = run_ranks(["-m", "tests.system.drive_refill", tmp_path], tmp_path / "out", num_ranks=2)
    assert [each.code for each in ended] == [0, 0], ended[0].stderr[-2000:]
    drawn = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2)]
    everything = drawn[0] + drawn[1]
    # Two times four at first, and all of the rest by and by.
    assert len(everything) > 16
    assert len(set(everything)) == len(everything)
