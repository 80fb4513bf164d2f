"""Prompts prepared ahead are those of the plain stream, one step early and no more; errors wait for their step."""

import threading
from contextlib import nullcontext

import pytest
import torch

from tests.builders import grid_of, picture, pixels_of, problem_row
from vlm_mhpo.errors import PromptError
from vlm_mhpo.prompts.prefetch import prefetched
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.rollout.refill import refill
from vlm_mhpo.types import Group, ScoredGroup

NUM_STEPS = 6


class Recorder:
    """Answers `10 * step`, and knows who asked for which step."""

    def __init__(self) -> None:
        self.asked: list[tuple[int, bool]] = []
        self.done = threading.Condition()

    def __call__(self, step: int) -> list[int]:
        with self.done:
            self.asked.append((step, threading.current_thread() is threading.main_thread()))
            self.done.notify_all()
        return [10 * step]

    def wait_for(self, count: int) -> None:
        with self.done:
            assert self.done.wait_for(lambda: len(self.asked) >= count, timeout=5)


def stream_of(model, *, num_prompts: int = 4) -> PromptStream:
    side = model.token_side
    rows = [
        problem_row(f"row-{n}", f"<image>What is {n} plus 1 ?", [picture(side * (1 + n % 3), side, seed=n)])
        for n in range(13)
    ]
    return PromptStream(rows, model.builder().build, seed=3, num_prompts=num_prompts)


def contents(prompts) -> list:
    return [
        (p.id, p.text, p.input_ids_S.tolist(), pixels_of(p).numpy().tobytes(), grid_of(p).tolist()) for p in prompts
    ]


def test_every_step_is_made_once_and_all_but_the_first_in_the_other_thread():
    record = Recorder()
    with prefetched(record, stop=NUM_STEPS) as for_step:
        assert [for_step(step) for step in range(2, NUM_STEPS)] == [[20], [30], [40], [50]]
    assert record.asked == [(2, True), (3, False), (4, False), (5, False)]


def test_nothing_is_begun_before_the_first_call_and_one_step_ahead_is_the_bound():
    record = Recorder()
    with prefetched(record, stop=NUM_STEPS) as for_step:
        assert record.asked == []
        for_step(0)
        record.wait_for(2)
        # Whatever the thread has begun, step 2 can only be asked for by the next call.
        assert [step for step, _ in record.asked] == [0, 1]
        for_step(1)
        record.wait_for(3)
        assert [step for step, _ in record.asked] == [0, 1, 2]


def test_the_next_step_is_made_while_the_caller_is_busy_with_its_own():
    made = threading.Event()

    def make(step):
        if step == 1:
            made.set()
        return [step]

    with prefetched(make, stop=2) as for_step:
        for_step(0)
        # The caller asks for nothing more; only the thread can set this.
        assert made.wait(timeout=5)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_prompts_made_ahead_are_those_of_the_plain_stream_to_the_byte(tiny, family):
    stream = stream_of(tiny(family))
    expected = [contents(stream.for_step(step)) for step in range(NUM_STEPS)]
    with prefetched(stream.for_step, stop=NUM_STEPS) as for_step:
        assert [contents(for_step(step)) for step in range(NUM_STEPS)] == expected
    for start in (1, 4):
        with prefetched(stream.for_step, stop=NUM_STEPS) as for_step:
            assert [contents(for_step(step)) for step in range(start, NUM_STEPS)] == expected[start:]


def test_a_step_asked_for_out_of_turn_is_still_its_own():
    with prefetched(Recorder(), stop=100) as for_step:
        assert [for_step(step) for step in (0, 5, 6, 3, 3, 4)] == [[0], [50], [60], [30], [30], [40]]


def test_dynamic_sampling_draws_the_same_other_prompts_while_the_next_step_is_prepared(tiny):
    model = tiny("qwen2_5_vl")

    def final_prompts(ahead: bool) -> list:
        stream = stream_of(model)
        found = []
        context = prefetched(stream.for_step, stop=NUM_STEPS) if ahead else nullcontext(stream.for_step)
        with context as for_step:
            for step in range(NUM_STEPS):
                groups, metrics = refill(
                    judged(for_step(step)), stream, step, lambda prompts, _: judged(prompts), max_resample_times=2
                )
                found.append((contents([group.group.prompt for group in groups]), metrics))
        return found

    plain = final_prompts(ahead=False)
    assert final_prompts(ahead=True) == plain
    assert {metrics["dynamic_sampling/tries"] for _, metrics in plain} != {0.0}


def judged(prompts) -> list[ScoredGroup]:
    """Groups that are flat where the row's number is even."""
    rewards = {True: (1.0, 1.0), False: (0.0, 1.0)}
    return [ScoredGroup(Group(prompt, ()), rewards[int(prompt.id[4:]) % 2 == 0], {}, (), ()) for prompt in prompts]


def test_a_picture_that_is_gone_stops_the_step_that_needs_it_and_names_the_row(tiny, tmp_path):
    model = tiny("qwen2_5_vl")
    side, rows = model.token_side, []
    for n in range(4):
        file = tmp_path / f"{n}.png"
        file.write_bytes(picture(side, side, seed=n))
        rows.append(problem_row(f"row-{n}", "<image>What is red?", [file]))
    stream = PromptStream(rows, model.builder().build, seed=0, num_prompts=1)
    order = [stream.indices(step)[0] for step in range(4)]
    (tmp_path / f"{order[2]}.png").unlink()
    with prefetched(stream.for_step, stop=4) as for_step:
        assert [for_step(step)[0].id for step in (0, 1)] == [f"row-{order[0]}", f"row-{order[1]}"]
        with pytest.raises(PromptError, match=f"row row-{order[2]}"):
            for_step(2)


def test_the_thread_ends_with_the_context_also_when_the_caller_fails():
    def mine():
        return [thread for thread in threading.enumerate() if thread.name.startswith("prefetch")]

    with pytest.raises(ZeroDivisionError), prefetched(Recorder(), stop=9) as for_step:
        for_step(0)
        assert len(mine()) == 1
        1 / 0  # noqa: B018
    assert mine() == []


def test_an_error_ahead_that_no_step_asks_for_is_not_raised():
    def make(step):
        if step == 1:
            raise PromptError("row x")
        return [step]

    with prefetched(make, stop=2) as for_step:
        assert for_step(0) == [0]


def test_the_processor_gives_the_same_from_two_threads_at_once(tiny):
    model = tiny("qwen3_vl")
    expected = contents(stream_of(model, num_prompts=13).for_step(0))
    stream, found = stream_of(model, num_prompts=13), []
    texts = model.codec.tokenizer.batch_decode(list(torch.arange(400).split(20)))
    threads = [threading.Thread(target=lambda: found.append(contents(stream.for_step(0)))) for _ in range(3)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert model.codec.tokenizer.batch_decode(list(torch.arange(400).split(20))) == texts
    for thread in threads:
        thread.join()
    assert found == [expected] * 3
