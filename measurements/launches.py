"""What a decode step launches: torch's profiler over a few steps in the middle of a call of the sampler."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from side_by_side import wait_for_device

# Decode steps under the profiler.
NUM_STEPS = 8
# Names under which the CUDA runtime and driver start work on the device.
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch", "cudaMemcpyAsync", "cudaMemsetAsync")


class Window:
    """Counts decode steps, and profiles `NUM_STEPS` of them; a context manager around the call that is profiled.

    The sampler calls `count`, or `watch`, before each token.

    Args:
        skipped: steps before the window.

    Attributes:
        steps, seconds: decode steps of the last call that was counted, and their time without the prefill.
    """

    def __init__(self, skipped: int) -> None:
        import torch

        self.skipped, self.seen, self.in_window = skipped, 0, 0
        self.begin()
        kinds = [torch.profiler.ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(torch.profiler.ProfilerActivity.CUDA)
        self._profiler = torch.profiler.profile(activities=kinds)
        self._is_open = self._was_open = False

    def __enter__(self) -> Window:
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def begin(self) -> None:
        """A call of the sampler that is counted begins."""
        self.steps, self.seconds, self._last = 0, 0.0, 0.0

    def count(self) -> None:
        """A token is about to be drawn."""
        now = time.perf_counter()
        if self._last:
            self.steps += 1
            self.seconds += now - self._last
        self._last = now

    def watch(self) -> None:
        """The same; opens the window when its time has come, and closes it."""
        if self.seen == self.skipped:
            wait_for_device()
            self._profiler.start()
            self._is_open = self._was_open = True
        elif self._is_open:
            self.in_window += 1
            if self.in_window == NUM_STEPS:
                self._close()
        self.seen += 1

    def _close(self) -> None:
        if self._is_open:
            wait_for_device()
            self._profiler.stop()
            self._is_open = False

    def facts(self) -> dict[str, Any]:
        """Figures of a decode step; "waiting_share" is how much of it the device waits for launches."""
        step_s = self.seconds / max(1, self.steps)
        # A call of fewer tokens has not come to its window.
        events = self._profiler.events() if self._was_open else []
        return {"steps": self.steps, "step_s": step_s} | sums(events, max(1, self.in_window), step_s)


def sums(events: Sequence[Any], num_steps: int, step_s: float) -> dict[str, Any]:
    """Operations, launches and seconds of a step, from the profiler's events over `num_steps` of them.

    Args:
        events: of torch's profiler.
        num_steps: under the profiler.
        step_s: of a step that nobody watched; shares are of that, because the profiler slows the host.
    """
    from torch.autograd import DeviceType

    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    # Ranges that somebody named would count what runs inside them twice.
    on_device = [e for e in events if e.device_type == DeviceType.CUDA and not getattr(e, "is_user_annotation", False)]
    found = {
        "operations_per_step": sum(event.name.startswith("aten::") for event in on_host) / num_steps,
        "launches_per_step": sum(event.name.startswith(LAUNCHES) for event in on_host) / num_steps,
    }
    if on_device:
        device_s = sum(event.time_range.elapsed_us() for event in on_device) / num_steps / 1e6
        found |= {"device_s_per_step": device_s, "waiting_share": max(0.0, 1.0 - device_s / step_s) if step_s else None}
    return found
