"""The one clock: seconds and peak memory of the phases of a program, marked where they happen by `span`.

    with Clock().running():
        with span("update"):
            with span("update/forward"):
                ...

A span costs microseconds, so it stands in the code for good: the loop reads the seconds of each step off its clock, the
quickstart those of its stages, and a profile is the same run on a clock that waits for the device and reads memory.
"""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch

OUTSIDE = "other"
# Linux starts the high-water mark of resident memory anew when 5 is written here.
CLEAR_REFS = "/proc/self/clear_refs"


def do_nothing() -> None:
    """A CPU has done what it was given."""


class Clock:
    """Charges time and peak memory to the innermost open phase, or to "other" outside all phases.

    Only the thread that made it is timed; what other threads spend is added up apart, as it overlaps.

    Args:
        synchronise: waits until the device has done what it was given.
        peak: bytes of memory at most in use since its last call.

    Attributes:
        on_stage: called with the name of each outermost phase that is entered.
        totals: seconds by outermost phase, everything inside it included.
        seconds, peaks: by phase, everything inside it left out.
        calls: by phase, how often it was entered from another one.
        overhead: seconds that the clock itself took; in no phase.
        background: seconds of other threads, by phase.
    """

    def __init__(self, synchronise: Callable[[], None] = do_nothing, peak: Callable[[], int] = int) -> None:
        self.on_stage: Callable[[str], None] = lambda stage: None
        self._synchronise = synchronise
        self._peak = peak
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._open: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Forget everything measured; open phases stay open."""
        self.totals: dict[str, float] = {}
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.background: Counter[str] = Counter()
        self.peaks: dict[str, int] = {}
        self.overhead = 0.0
        self._synchronise()
        self._peak()
        self._started = self._last = time.perf_counter()
        self._stage_began = 0.0

    @property
    def current(self) -> str:
        """The innermost open phase."""
        return self._open[-1] if self._open else OUTSIDE

    @property
    def is_own_thread(self) -> bool:
        """Whether the caller's thread is the one that is timed."""
        return threading.get_ident() == self._thread

    def lap(self) -> float:
        """Charge the time since the last mark; returns seconds since the start, overhead included."""
        self._synchronise()
        now = time.perf_counter()
        phase = self.current
        self.seconds[phase] += now - self._last
        self.peaks[phase] = max(self.peaks.get(phase, 0), self._peak())
        self._last = time.perf_counter()
        self.overhead += self._last - now
        return self._last - self._started

    def enter(self, phase: str) -> None:
        """Open a phase; nothing in another thread."""
        if self.is_own_thread:
            now = self.lap()
            self.calls[phase] += phase != self.current
            self._open.append(phase)
            if len(self._open) == 1:
                self._stage_began = now
                self.on_stage(phase)

    def leave(self) -> None:
        """Close the innermost phase; nothing in another thread."""
        if self.is_own_thread:
            now = self.lap()
            phase = self._open.pop()
            if not self._open:
                self.totals[phase] = self.totals.get(phase, 0.0) + now - self._stage_began

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """A block as a phase."""
        if not self.is_own_thread:
            begun = time.perf_counter()
            yield
            with self._lock:
                self.background[phase] += time.perf_counter() - begun
            return
        self.enter(phase)
        try:
            yield
        finally:
            self.leave()

    def fresh_totals(self) -> None:
        """Begin the totals anew, for the next step; what a profile reads goes on."""
        self.totals = {}

    @contextmanager
    def running(self) -> Iterator[Clock]:
        """Inside, `span` marks the phases of this clock."""
        _running.append(self)
        try:
            yield self
        finally:
            _running.remove(self)


# The innermost is the one in use: a profile runs a whole quickstart stage on a clock of its own.
_running: list[Clock] = []


def span(phase: str) -> AbstractContextManager[None]:
    """A block as a phase, "STAGE" or "STAGE/PART", of the running clock; nothing without one."""
    return _running[-1](phase) if _running else nullcontext()


def device_clock(device: torch.device) -> tuple[Clock, str]:
    """A clock for a device, and what its memory figure means."""
    if device.type == "cuda":
        return Clock(torch.cuda.synchronize, _allocated_peak), "GPU memory allocated"
    try:
        # Open for as long as the process lives: opening it at every mark would be most of a mark's cost.
        marker = os.open(CLEAR_REFS, os.O_WRONLY)
    except OSError:
        return Clock(do_nothing, _resident_peak), "resident memory, highest so far"
    return Clock(do_nothing, partial(_fresh_resident_peak, marker)), "resident memory"


def _allocated_peak() -> int:
    """Bytes that torch had allocated on the GPU at most since the last call."""
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def _resident_peak() -> int:
    """Bytes of this process in memory at most, since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _fresh_resident_peak(marker: int) -> int:
    """Bytes of this process in memory at most since the last call (Linux); `marker` is CLEAR_REFS, opened to write."""
    peak = _resident_peak()
    os.write(marker, b"5")
    return peak
