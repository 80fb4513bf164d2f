"""The GPU of this machine as its driver describes it, for the records of measurements."""

from __future__ import annotations

import subprocess

# What nvidia-smi is asked; clocks are those of the moment, so they mean most right behind the work.
FIELDS = (
    *("name", "driver_version", "memory.total", "memory.used", "clocks.sm", "clocks.mem", "clocks.max.sm"),
    *("power.draw", "power.limit", "temperature.gpu", "clocks_event_reasons.active"),
)


def card() -> dict[str, str] | None:
    """Name, driver, memory, clocks, power and heat of the first GPU, in the driver's words; None without one."""
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"],
            capture_output=True,
            text=True,
            timeout=20,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    lines = answer.stdout.splitlines()
    return dict(zip(FIELDS, (value.strip() for value in lines[0].split(",")), strict=False)) if lines else None
