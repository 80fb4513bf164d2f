"""Seconds and peak memory of the phases of a program; every moment belongs to exactly one phase."""

from __future__ import annotations

import os
import resource
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch

OUTSIDE = "other"
# Linux starts the high-water mark of resident memory anew when 5 is written here.
CLEAR_REFS = "/proc/self/clear_refs"


class Clock:
    """Charges time and peak memory to the innermost open phase, or to "other" outside all phases.

    Only the thread that made it is timed; what other threads spend is added up apart, as it overlaps.

    Args:
        synchronise: waits until the device has done what it was given.
        peak: bytes of memory at most in use since its last call.

    Attributes:
        seconds, peaks: by phase.
        calls: by phase, how often it was entered from another one.
        overhead: seconds that the clock itself took; in no phase.
        background: seconds of other threads, by phase.
    """

    def __init__(self, synchronise: Callable[[], None], peak: Callable[[], int]) -> None:
        self._synchronise = synchronise
        self._peak = peak
        self._thread = threading.get_ident()
        self._lock = threading.Lock()
        self._open: list[str] = []
        self.restart()

    def restart(self) -> None:
        """Forget everything measured; open phases stay open."""
        self.seconds: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.background: Counter[str] = Counter()
        self.peaks: dict[str, int] = {}
        self.overhead = 0.0
        self._synchronise()
        self._peak()
        self._started = self._last = time.perf_counter()

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
            self.lap()
            self.calls[phase] += phase != self.current
            self._open.append(phase)

    def leave(self) -> None:
        """Close the innermost phase; nothing in another thread."""
        if self.is_own_thread:
            self.lap()
            self._open.pop()

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


def device_clock(device: torch.device) -> tuple[Clock, str]:
    """A clock for a device, and what its memory figure means."""
    if device.type == "cuda":
        return Clock(torch.cuda.synchronize, allocated_peak), "GPU memory allocated"
    try:
        # Open for as long as the process lives: opening it at every mark would be most of a mark's cost.
        marker = os.open(CLEAR_REFS, os.O_WRONLY)
    except OSError:
        return Clock(do_nothing, resident_peak), "resident memory, highest so far"
    return Clock(do_nothing, partial(fresh_resident_peak, marker)), "resident memory"


def do_nothing() -> None:
    """A CPU has done what it was given."""


def allocated_peak() -> int:
    """Bytes that torch had allocated on the GPU at most since the last call."""
    peak = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return peak


def resident_peak() -> int:
    """Bytes of this process in memory at most, since it began."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def fresh_resident_peak(marker: int) -> int:
    """Bytes of this process in memory at most since the last call (Linux); `marker` is CLEAR_REFS, opened to write."""
    peak = resident_peak()
    os.write(marker, b"5")
    return peak
