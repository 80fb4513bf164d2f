"""Histograms whose counts add up over micro-batches, ranks and steps, and the quantiles that they give.

One set of bins serves every token quantity: symmetric, and geometric away from 0, so that a value is known to 3 % of
its size from 1e-4 to 20 and a log-ratio of 0.001 is as visible as one of 3. Plain Python: a report reads it without
torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

SMALLEST, LARGEST = 1e-4, 20.0
BINS_A_SIDE = 210
STEP = (LARGEST / SMALLEST) ** (1 / BINS_A_SIDE)
_POSITIVE = tuple(SMALLEST * STEP**index for index in range(BINS_A_SIDE + 1))
# The first and the last bin are open: they take what is beyond.
EDGES = (*(-edge for edge in reversed(_POSITIVE)), *_POSITIVE)
NUM_BINS = len(EDGES) + 1
SIGNS = ("positive", "negative")
SHARES = {"p01": 0.01, "p05": 0.05, "p50": 0.5, "p95": 0.95, "p99": 0.99}


def centre(index: int) -> float:
    """The value that stands for a bin: its geometric middle, 0 for the one around 0, the edge for the open ones."""
    if index in (0, NUM_BINS - 1):
        return EDGES[0] if index == 0 else EDGES[-1]
    low, high = EDGES[index - 1], EDGES[index]
    size = abs(low * high) ** 0.5
    return 0.0 if low < 0 < high else size if low > 0 else -size


def quantile(counts: Sequence[int], share: float) -> float:
    """The value below which `share` (0 to 1) of the counted values lie, to the width of a bin.

    Args:
        counts: [NUM_BINS], at least one above 0.
    """
    target = share * sum(counts)
    seen = 0
    for index, count in enumerate(counts):
        seen += count
        if count and seen >= target:
            return centre(index)
    raise ValueError("a quantile of nothing: no value was counted")


def trim(counts: Sequence[int]) -> dict[str, Any]:
    """Counts without the zeros at both ends, as `{"first": bin, "counts": [...]}`."""
    filled = [index for index, count in enumerate(counts) if count]
    if not filled:
        return {"first": 0, "counts": []}
    return {"first": filled[0], "counts": list(counts[filled[0] : filled[-1] + 1])}


def widen(trimmed: Mapping[str, Any]) -> list[int]:
    """[NUM_BINS] counts of what `trim` made."""
    counts = [0] * NUM_BINS
    for offset, count in enumerate(trimmed["counts"]):
        counts[trimmed["first"] + offset] += count
    return counts
