"""Gradient norms over a run: percentiles and spikes, the measures of steadiness."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

import numpy as np

# A norm above this many times the median of the norms before it is a spike.
SPIKE_FACTOR = 5.0
# Updates that the running median looks back on; the first ones have no history and cannot be spikes.
SPIKE_WINDOW = 50
SPIKE_HISTORY = 10
# Updates that the percentiles of a metrics row run over.
PERCENTILE_WINDOW = 200


def percentile(values: Sequence[float], share: float) -> float:
    """Linear-interpolation percentile of at least one value, `share` in [0, 1]."""
    return float(np.quantile(values, share))


def _is_spike(norms: Sequence[float], index: int) -> bool:
    """True when a norm is above `SPIKE_FACTOR` times the median of the `SPIKE_WINDOW` before it."""
    if index < SPIKE_HISTORY:
        return False
    usual = median(norms[max(0, index - SPIKE_WINDOW) : index])
    # Updates without any signal have norm 0, and the first one with a signal is no spike.
    return usual > 0 and norms[index] > SPIKE_FACTOR * usual


def count_spikes(norms: Sequence[float], start: int = 0) -> int:
    """Spikes among `norms[start:]`."""
    return sum(_is_spike(norms, index) for index in range(start, len(norms)))


class NormHistory:
    """The norms of a run so far, for the metrics of its next rows."""

    def __init__(self, norms: Sequence[float]) -> None:
        self._norms = list(norms)
        self._num_spikes = count_spikes(self._norms)

    def add(self, norms: Sequence[float]) -> dict[str, float]:
        """Take the norms of a step; returns the metrics of the window that ends with it and the spikes so far."""
        start = len(self._norms)
        self._norms += norms
        self._num_spikes += count_spikes(self._norms, start)
        window = self._norms[-PERCENTILE_WINDOW:]
        metrics = {"grad_norm/num_spikes": float(self._num_spikes)}
        if window:
            metrics |= {"grad_norm/p50": percentile(window, 0.5), "grad_norm/p99": percentile(window, 0.99)}
        return metrics
