"""The programs under measurements/ import each other by name, as they do when they are run."""

from __future__ import annotations

import sys
from pathlib import Path

MEASUREMENTS = Path(__file__).resolve().parents[2] / "measurements"
sys.path[:0] = [str(MEASUREMENTS), str(MEASUREMENTS / "gpu")]
