"""The clock on scripted time, and marks that come and go."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
import torch

from tests.builders import picture, problem_row, random_completions
from vlm_mhpo.commands.profiling.figures import PHASES
from vlm_mhpo.commands.profiling.flops import vision_work
from vlm_mhpo.commands.profiling.marks import MARKS, RANK_MARKS, STEP_PARTS, Tally, hooked, marked
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.runtime import clock
from vlm_mhpo.runtime.clock import Clock
from vlm_mhpo.training import loop
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.training.token_statistics import measure


@pytest.fixture
def ticking(monkeypatch) -> Iterator[list[float]]:
    """Time that stands still but where a test moves it: `ticking[0]` is the time now."""
    now = [0.0]
    monkeypatch.setattr(clock, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    return now


def still_clock(*peaks: int) -> Clock:
    """A clock without a device, which reads these memory figures in turn, then zeros."""
    left = iter(peaks)
    return Clock(clock.do_nothing, lambda: next(left, 0))


def test_a_moment_belongs_to_the_innermost_phase_and_all_moments_add_up(ticking):
    watch = still_clock()
    ticking[0] = 1.0
    with watch("outer"):
        ticking[0] = 3.0
        with watch("inner"):
            ticking[0] = 7.0
        ticking[0] = 15.0
    ticking[0] = 31.0
    assert watch.lap() == 31.0
    assert dict(watch.seconds) == {"other": 1.0 + 16.0, "outer": 2.0 + 8.0, "inner": 4.0}
    assert dict(watch.calls) == {"outer": 1, "inner": 1}


def test_what_the_clock_takes_itself_is_in_no_phase(ticking):
    def slow_peak() -> int:
        ticking[0] += 0.5
        return 0

    watch = Clock(clock.do_nothing, slow_peak)
    with watch("work"):
        ticking[0] += 2.0
    total = watch.lap()
    # Three marks: enter, leave, lap.
    assert (watch.seconds["work"], watch.overhead, total) == (2.0, 1.5, 3.5)


def test_the_peak_of_a_phase_is_the_largest_between_its_marks():
    # In order of the marks: start, enter outer, enter inner, leave inner, leave outer.
    watch = still_clock(9, 1, 5, 7, 3)
    with watch("outer"), watch("inner"):
        pass
    assert watch.peaks == {"other": 1, "outer": 5, "inner": 7}


@pytest.mark.skipif(not os.path.exists(clock.CLEAR_REFS), reason="only Linux starts the high-water mark anew")
def test_the_peak_of_a_cpu_phase_is_its_own_and_not_that_of_the_process():
    watch, _ = clock.device_clock(torch.device("cpu"))
    with watch("large"):
        bytearray(256 * 2**20)
    with watch("small"):
        pass
    watch.lap()
    assert watch.peaks["large"] - watch.peaks["small"] > 200 * 2**20


def test_other_threads_are_added_up_apart(ticking):
    watch = still_clock()

    def work() -> None:
        with watch("prompts"):
            ticking[0] += 2.0

    with watch("sample"):
        thread = threading.Thread(target=work)
        thread.start()
        thread.join()
    watch.lap()
    assert (watch.background["prompts"], dict(watch.seconds)) == (2.0, {"other": 0.0, "sample": 2.0})


def test_marks_are_in_place_inside_and_gone_outside():
    before = (loop.update_on, loop.Stopwatch.__call__, measure, Engine.backward, loop.save_if_due)
    with marked(still_clock(), Tally(), lambda: None):
        inside = (loop.update_on, loop.Stopwatch.__call__, measure, Engine.backward, loop.save_if_due)
        assert all(new is not old for new, old in zip(inside, before, strict=True))
    after = (loop.update_on, loop.Stopwatch.__call__, measure, Engine.backward, loop.save_if_due)
    assert after == before


def test_every_mark_writes_to_a_phase_of_the_table():
    assert {phase for _, _, phase, _ in MARKS + RANK_MARKS} | set(STEP_PARTS.values()) <= set(PHASES)


def test_a_forward_is_counted_where_it_happens_while_the_model_is_hooked(tiny):
    model = tiny("qwen2_5_vl")
    prompt = model.builder()(problem_row("one", "<image>What is 1 + 2 ?", [picture(84, 56)]))
    completions = [random_completions(model, (2, 3))]
    (batch,) = micro_batches(model.policy, [prompt], completions, max_tokens=1000, pad_id=0)
    watch, tally = still_clock(), Tally()
    with hooked(model.policy, watch, tally), watch("update/forward"):
        model.policy(batch.rows, temperature=1.0, chunk_size=100)
    with watch("update/forward"):
        model.policy(batch.rows, temperature=1.0, chunk_size=100)
    assert dict(tally.forwards["update"]) == {"calls": 1, "rows": 1, "tokens": prompt.num_tokens + 5}
    # 6 x 4 patches become 3 x 2 tokens.
    assert (tally.grids["update"], tally.merged["update"]) == ([[1, 4, 6]], 6)
    assert tally.vision_work("update") == vision_work([[1, 4, 6]], model.policy.model.config.vision_config)
    assert watch.calls == {"update/forward": 2, "update/vision": 1}
