"""The order of prompts is a pure function of seed and step, shared by the ranks without loss or repetition."""

import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.builders import picture, problem_row
from vlm_mhpo.config import DataConfig
from vlm_mhpo.errors import PromptError, TrainingError
from vlm_mhpo.prompts.builder import OverlongPrompt
from vlm_mhpo.prompts.rows import read_rows, usable_rows
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.runtime import ranks


def rows_of(count: int):
    return [problem_row(f"row-{index}", f"What is {index} plus 1 ?") for index in range(count)]


def build(rows):
    """Gives the rows themselves: the order is what is looked at."""
    return list(rows)


def stream_of(count: int, *, seed: int = 3, num_prompts: int = 8, num_minibatches: int = 2) -> PromptStream:
    return PromptStream(rows_of(count), build, seed=seed, num_prompts=num_prompts, num_minibatches=num_minibatches)


@pytest.fixture
def as_rank(monkeypatch):
    """`as_rank(rank, world_size)`: this process takes the part of one rank."""

    def become(rank: int, world_size: int) -> None:
        monkeypatch.setattr(ranks, "rank", lambda: rank)
        monkeypatch.setattr(ranks, "world_size", lambda: world_size)

    return become


def ids_of(prompts) -> list[str]:
    return [prompt.id for prompt in prompts]


# ---- order -----------------------------------------------------------------------------------------------------


def test_a_resumed_stream_goes_on_as_the_straight_one_from_200_stop_points():
    num_steps = 60
    straight = stream_of(53)
    expected = [ids_of(straight.for_step(step)) for step in range(num_steps)]
    for stop in np.random.default_rng(0).integers(0, num_steps, size=200).tolist():
        resumed = stream_of(53)
        step = stop
        # Look at a few steps only; that they do not depend on earlier calls is the claim.
        for step in (stop, min(stop + 1, num_steps - 1), num_steps - 1):
            assert ids_of(resumed.for_step(step)) == expected[step]


def test_steps_may_be_asked_for_in_any_order():
    stream = stream_of(40)
    steps = list(range(20))
    forwards = {step: stream.indices(step) for step in steps}
    assert {step: stream.indices(step) for step in reversed(steps)} == forwards


@given(num_rows=st.integers(1, 60), num_prompts=st.integers(1, 20), seed=st.integers(0, 2**32), epoch=st.integers(0, 5))
def test_no_row_twice_in_an_epoch_and_at_most_an_incomplete_batch_left_out(num_rows, num_prompts, seed, epoch):
    if num_prompts > num_rows:
        return
    stream = PromptStream(range(num_rows), build, seed=seed, num_prompts=num_prompts)
    steps = range(epoch * stream.steps_per_epoch, (epoch + 1) * stream.steps_per_epoch)
    seen = [index for step in steps for index in stream.indices(step)]
    assert len(set(seen)) == len(seen)
    assert set(seen) <= set(range(num_rows))
    assert 0 <= num_rows - len(seen) < num_prompts


def test_every_row_comes_up_about_equally_often_over_many_epochs():
    stream = PromptStream(range(21), build, seed=0, num_prompts=4)
    counts = Counter(index for step in range(5 * 200) for index in stream.indices(step))
    # 20 of 21 rows an epoch: each is left out of 200 epochs about 9.5 times (standard deviation 3).
    assert set(counts) == set(range(21))
    assert min(counts.values()) >= 200 - 10 - 15


def test_epochs_seeds_and_runs_have_different_orders():
    first, second = stream_of(40, seed=1), stream_of(40, seed=2)
    assert first.indices(0) != second.indices(0)
    assert first.indices(0) != first.indices(first.steps_per_epoch)
    assert first.indices(0) == stream_of(40, seed=1).indices(0)
    assert first.indices(0) != sorted(first.indices(0))


# ---- ranks -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_minibatches", [1, 2, 4])
@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_the_ranks_together_have_the_batch_of_one_rank_minibatch_by_minibatch(as_rank, world_size, num_minibatches):
    size = 16 // num_minibatches
    for step in (0, 1, 5, 17):
        as_rank(0, 1)
        alone = ids_of(stream_of(50, num_prompts=16, num_minibatches=num_minibatches).for_step(step))
        parts = []
        for rank in range(world_size):
            as_rank(rank, world_size)
            parts.append(ids_of(stream_of(50, num_prompts=16, num_minibatches=num_minibatches).for_step(step)))
        share = size // world_size
        for minibatch in range(num_minibatches):
            expected = alone[minibatch * size : (minibatch + 1) * size]
            together = [id for part in parts for id in part[minibatch * share : (minibatch + 1) * share]]
            assert together == expected
        assert all(len(part) == 16 // world_size for part in parts)


def test_too_few_rows_for_a_batch_are_refused():
    with pytest.raises(TrainingError, match="7 rows cannot fill a batch of 8 different prompts"):
        stream_of(7)
    assert stream_of(8).steps_per_epoch == 1


# ---- reading ---------------------------------------------------------------------------------------------------


@pytest.fixture
def source(tmp_path):
    """A JSON Lines file of five rows, one with an image."""
    (tmp_path / "a.png").write_bytes(picture(56, 56))
    lines = [{"problem": f"What is {index} + 1 ?", "answer": str(index + 1)} for index in range(4)]
    lines.append({"problem": "<image>How many?", "answer": "2", "images": ["a.png"]})
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def config_of(**values) -> DataConfig:
    return DataConfig(train="unused", **values)


def test_rows_are_read_in_order_and_limited(source):
    rows = read_rows(str(source), config_of(), None, None)
    assert [row.answer for row in rows] == ["1", "2", "3", "4", "2"]
    assert len({row.id for row in rows}) == 5
    assert [row.id for row in read_rows(str(source), config_of(), None, 2)] == [row.id for row in rows[:2]]
    assert len(read_rows(str(source), config_of(), None, 99)) == 5


def test_several_sources_are_read_one_after_the_other_with_ids_that_differ(source, tmp_path):
    other = tmp_path / "more.jsonl"
    other.write_text(json.dumps({"problem": "9 + 9 ?", "answer": "18"}) + "\n")
    rows = read_rows([str(source), str(other)], config_of(), None, None)
    assert [row.answer for row in rows] == ["1", "2", "3", "4", "2", "18"]
    # Seeds and records go by id.
    assert len({row.id for row in rows}) == 6


def test_an_empty_source_is_named(tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    from data_prep import DataError

    with pytest.raises((TrainingError, DataError), match=r"empty\.jsonl"):
        read_rows(str(empty), config_of(), None, None)


def test_a_path_that_does_not_exist_is_named(tmp_path):
    from data_prep import DataError

    with pytest.raises(DataError, match="nowhere"):
        read_rows(str(tmp_path / "nowhere.jsonl"), config_of(), None, None)


# ---- usable rows -----------------------------------------------------------------------------------------------


def lengths(limit: int):
    """A builder that refuses rows whose problem has more than `limit` characters, as the real one does tokens."""

    def builder(row):
        if len(row.problem) > limit:
            raise OverlongPrompt(f"row {row.id}: the prompt has {len(row.problem)} tokens")
        if "broken" in row.problem:
            raise PromptError(f"row {row.id}: broken")
        return row

    return builder


def test_overlong_rows_are_left_out_or_stop_the_program():
    rows = [problem_row("short", "a?"), problem_row("long", "a" * 50), problem_row("last", "b?")]
    kept = usable_rows(rows, lengths(10), overlong="filter", what="training")
    assert ids_of(kept) == ["short", "last"]
    with pytest.raises(OverlongPrompt, match=r"row long.*; data.overlong_prompts=filter leaves such rows out$"):
        usable_rows(rows, lengths(10), overlong="error", what="training")
    # Held-out rows are never left out, so nobody is told that they could be.
    with pytest.raises(OverlongPrompt, match=r"row long: the prompt has 50 tokens$"):
        usable_rows(rows, lengths(10), overlong="never", what="held-out")


@pytest.mark.parametrize("overlong", ["filter", "error", "never"])
def test_a_broken_row_always_stops_the_program(overlong):
    rows = [problem_row("fine", "a?"), problem_row("bad", "broken")]
    with pytest.raises(PromptError, match="row bad: broken"):
        usable_rows(rows, lengths(10), overlong=overlong, what="training")


def test_no_rows_left_says_why():
    rows = [problem_row(f"r{index}", "a" * 50) for index in range(3)]
    with pytest.raises(TrainingError, match="no held-out rows are left after filtering 3; the first refusal: row r0"):
        usable_rows(rows, lengths(10), overlong="filter", what="held-out")


def test_ranks_check_every_row_once_and_keep_the_same_rows(as_rank, monkeypatch):
    rows = [problem_row(f"r{index}", "a" * (50 if index % 3 == 0 else 5)) for index in range(11)]
    world_size = 4
    checked, dropped = Counter(), {}

    def counting(row):
        checked[row.id] += 1
        return lengths(10)(row)

    # First pass: hear what each rank would tell the others. Second pass: let each hear everybody.
    for rank in range(world_size):
        as_rank(rank, world_size)
        monkeypatch.setattr(ranks, "raise_together", lambda error: None)
        monkeypatch.setattr(ranks, "gather_objects", lambda value, rank=rank: dropped.setdefault(rank, [value]))
        usable_rows(rows, counting, overlong="filter", what="training")
    assert checked == {row.id: 1 for row in rows}
    everyone = [dropped[rank][0] for rank in range(world_size)]
    kept = []
    for rank in range(world_size):
        as_rank(rank, world_size)
        monkeypatch.setattr(ranks, "gather_objects", lambda value: everyone)
        kept.append(ids_of(usable_rows(rows, lengths(10), overlong="filter", what="training")))
    assert kept == [[f"r{index}" for index in range(11) if index % 3]] * world_size


def test_a_real_builder_drops_what_is_too_long_for_the_model(tiny):
    model = tiny("qwen2_5_vl")
    side = model.token_side
    rows = [
        problem_row("small", "<image>What?", [picture(side, side)]),
        problem_row("large", "<image>What?", [picture(9 * side, 9 * side)]),
        problem_row("text", "What?"),
    ]
    kept = usable_rows(rows, model.builder(max_prompt_length=60), overlong="filter", what="training")
    assert ids_of(kept) == ["small", "text"]
