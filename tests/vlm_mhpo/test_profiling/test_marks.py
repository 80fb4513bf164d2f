"""The clock on scripted time, and marks that come and go."""

from __future__ import annotations

import ast
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import vlm_mhpo
from tests.builders import picture, problem_row, random_completions
from vlm_mhpo.commands.profiling.flops import Work
from vlm_mhpo.commands.profiling.marks import Tally, hooked
from vlm_mhpo.commands.profiling.run import phase_of
from vlm_mhpo.runtime import clock
from vlm_mhpo.runtime.clock import Clock
from vlm_mhpo.training.micro_batches import micro_batches


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


def test_spans_mark_the_clock_that_runs_and_nothing_without_one(ticking):
    with clock.span("update"):
        ticking[0] += 1.0
    watch, inner = still_clock(), still_clock()
    with watch.running(), clock.span("update"):
        ticking[0] += 2.0
        with inner.running(), clock.span("update/forward"):
            ticking[0] += 4.0
        ticking[0] += 8.0
    with clock.span("update"):
        ticking[0] += 16.0
    assert dict(watch.seconds) == {"other": 0.0, "update": 14.0}
    assert inner.seconds["update/forward"] == 4.0


def test_totals_hold_what_is_inside_and_stages_are_heard_of(ticking):
    watch, heard = still_clock(), []
    watch.on_stage = heard.append
    for _ in range(2):
        with watch("update"), watch("update/forward"):
            ticking[0] += 3.0
    with watch("verify"):
        ticking[0] += 1.0
    assert (watch.totals, heard) == ({"update": 6.0, "verify": 1.0}, ["update", "update", "verify"])
    watch.fresh_totals()
    assert (watch.totals, watch.seconds["update/forward"]) == ({}, 6.0)


def test_every_span_of_the_product_has_its_line_in_the_table():
    """A span under a name that no line knows would be lost among what is called other."""
    root = Path(vlm_mhpo.__file__).parent
    names = set()
    for file in root.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "span":
                names |= {argument.value for argument in node.args if isinstance(argument, ast.Constant)}
    assert {"prompts", "sample", "sample/decode", "update/backward", "ranks", "records"} <= names
    # A profile evaluates and saves nothing.
    assert {name for name in names if phase_of(name) == "other"} == {"evaluate", "checkpoint"}
    assert {name: phase_of(name) for name in ("sample", "update", "update/forward")} == {
        "sample": "sample/choose",
        "update": "update/loss",
        "update/forward": "update/forward",
    }


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
    # One window of 4 x 4 tokens holds them all.
    assert tally.vision_work("update") == Work(patches=24, image_pairs=24**2, window_pairs=24**2, merged=6)
    assert watch.calls == {"update/forward": 2, "update/vision": 1}
