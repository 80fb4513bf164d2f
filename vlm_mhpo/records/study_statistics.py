"""Over seeds: means with 95 % intervals, and paired differences against the baseline."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from vlm_mhpo.records.study import MEASURES, RunMeasures

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over seeds with its 95 % bootstrap interval (percentile); the interval is the mean for one seed."""

    mean: float
    low: float
    high: float
    num_seeds: int

    @property
    def excludes_zero(self) -> bool:
        """True when the whole interval lies on one side of 0."""
        return self.low > 0 or self.high < 0


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and interval of one value a seed; NaN values are left out."""
    kept = np.asarray([value for value in values if not np.isnan(value)], dtype=np.float64)
    if kept.size == 0:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    mean = float(kept.mean())
    if kept.size == 1 or np.ptp(kept) == 0:
        return Estimate(mean, mean, mean, int(kept.size))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = stats.bootstrap(
            (kept,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=np.random.default_rng(0)
        )
    interval = result.confidence_interval
    return Estimate(mean, float(interval.low), float(interval.high), int(kept.size))


def summarise(runs: Mapping[str, Mapping[int, RunMeasures]]) -> dict[str, dict[str, Estimate]]:
    """Estimates of every measure of every variant: {variant: {measure: estimate}}."""
    return {
        variant: {name: estimate([getattr(run, name) for run in by_seed.values()]) for name in MEASURES}
        for variant, by_seed in runs.items()
    }


def differences(runs: Mapping[str, Mapping[int, RunMeasures]], baseline: str) -> dict[str, dict[str, Estimate]]:
    """Paired differences, variant minus baseline on the same seed, of every measure."""
    base = runs[baseline]
    return {
        variant: {
            name: estimate(
                [getattr(by_seed[seed], name) - getattr(base[seed], name) for seed in by_seed if seed in base]
            )
            for name in MEASURES
        }
        for variant, by_seed in runs.items()
        if variant != baseline
    }
