"""Means with 95 % intervals, differences, pass@j: over rows (those of one problem stay together) and over runs.

A problem is a cluster: the rows that share its id (variants), each with its share of right completions. Runs (seeds)
are independent values, few of them, and get Student's interval: a percentile bootstrap of eight values that is called
95 % covers 89 %.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
RESAMPLES = 10_000
# Draws held at a time: problems x resamples.
DRAWS_AT_ONCE = 4_000_000
Z = float(stats.norm.ppf((1 + LEVEL) / 2))
# Values that differ by less, relative to the largest, are alike: their spread is rounding.
ALIKE = 1e-12


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        mean: NaN when there was no value.
        low, high: NaN where no spread can be told: of one value, and of values over runs that are all alike.
        count: values that it is the mean of.
    """

    mean: float
    low: float
    high: float
    count: int

    @property
    def has_interval(self) -> bool:
        """Whether a spread could be told."""
        return not math.isnan(self.low)

    @property
    def excludes_zero(self) -> bool:
        """True when the whole interval lies on one side of 0; never without one."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Paired:
    """A difference with its 95 % interval, its two-sided p-value, and the rows where one side is better."""

    difference: float
    low: float
    high: float
    p: float
    wins: int
    losses: int


def accuracy(shares: Sequence[float], problems: Sequence[Hashable]) -> Estimate:
    """Mean share over rows: Wilson's interval for independent right-or-wrong rows, else a bootstrap over problems.

    Args:
        shares: right completions of each row, 0 to 1; at least one row.
        problems: the problem of each row.
    """
    sums, sizes = _by_problem(shares, problems)
    mean, num_rows = float(sums.sum() / sizes.sum()), len(shares)
    if _are_right_or_wrong(shares) and len(sums) == num_rows:
        return Estimate(mean, *wilson(mean, num_rows), num_rows)
    low, high = np.quantile(_resampled(sums, sizes), (0.025, 0.975)).tolist()
    if high - low < ALIKE:
        # Problems that are all alike say little about the next one; Wilson's interval of as many tries says how much.
        return Estimate(mean, *wilson(mean, len(sums)), num_rows)
    return Estimate(mean, min(low, mean), max(high, mean), num_rows)


def paired(ours: Sequence[float], theirs: Sequence[float], problems: Sequence[Hashable]) -> Paired:
    """Mean of ours minus theirs on the same rows.

    For independent right-or-wrong rows McNemar's exact test and Bonett and Price's adjusted Wald interval (J. Educ.
    Behav. Stat. 37, 2012); else a bootstrap over problems, whose p-value is no smaller than a sign test could give.
    """
    gaps = np.subtract(ours, theirs)
    wins, losses = int((gaps > 0).sum()), int((gaps < 0).sum())
    sums, sizes = _by_problem(gaps, problems)
    mean = float(sums.sum() / sizes.sum())
    if _are_right_or_wrong([*ours, *theirs]) and len(sums) == len(gaps):
        p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
        return Paired(mean, *_adjusted_wald(wins, losses, len(gaps)), p, wins, losses)
    draws = _resampled(sums, sizes)
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    if high - low < ALIKE:
        low, high = _adjusted_wald(max(mean, 0.0) * len(sums), max(-mean, 0.0) * len(sums), len(sums))
    tail = min(int((draws <= ALIKE).sum()), int((draws >= -ALIKE).sum()))
    p = max(2 * (tail + 1) / (RESAMPLES + 1), 2.0 ** (1 - len(sums)))
    return Paired(mean, min(low, mean), max(high, mean), min(1.0, p), wins, losses)


def over_runs(values: Sequence[float]) -> Estimate:
    """Mean of one value per run (or one paired difference per seed) with Student's interval; NaN values are left out.

    One value, and values that are all alike, tell no spread and get no interval.
    """
    kept = np.asarray([value for value in values if not math.isnan(value)], dtype=np.float64)
    mean = float(kept.mean()) if kept.size else math.nan
    if kept.size < 2 or np.ptp(kept) <= ALIKE * np.abs(kept).max():
        return Estimate(mean, math.nan, math.nan, kept.size)
    interval = stats.ttest_1samp(kept, 0.0).confidence_interval(LEVEL)
    return Estimate(mean, float(interval.low), float(interval.high), kept.size)


def welch(ours: Sequence[float], theirs: Sequence[float]) -> Paired | None:
    """Difference of the means of two independent sets of runs by Welch's t-test; None where a spread cannot be told."""
    if min(len(ours), len(theirs)) < 2 or np.ptp(ours) == np.ptp(theirs) == 0:
        return None
    found = stats.ttest_ind(ours, theirs, equal_var=False)
    interval = found.confidence_interval(LEVEL)
    difference = float(np.mean(ours) - np.mean(theirs))
    return Paired(difference, float(interval.low), float(interval.high), float(found.pvalue), 0, 0)


def pass_at(num_correct: int, num_samples: int, j: int) -> float:
    """Unbiased chance that one of j samples is right, when c of n drawn were: 1 - C(n-c, j) / C(n, j); j <= n."""
    return 1.0 - math.comb(num_samples - num_correct, j) / math.comb(num_samples, j)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share of `count` independent tries (E. B. Wilson, 1927); the share may be of parts."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def _by_problem(values: Sequence[float], problems: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """[problems] float64 sum of the values, and number of rows, of each problem in order of appearance."""
    order: dict[Hashable, int] = {}
    places = np.asarray([order.setdefault(problem, len(order)) for problem in problems])
    return np.bincount(places, weights=np.asarray(values, dtype=np.float64)), np.bincount(places)


def _resampled(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[RESAMPLES] means over the rows of problems drawn with replacement; the same every time."""
    random = np.random.default_rng(0)
    step = max(1, DRAWS_AT_ONCE // len(sums))
    means = []
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(0, len(sums), size=(min(step, RESAMPLES - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def _are_right_or_wrong(shares: Sequence[float]) -> bool:
    """Whether every share is 0 or 1."""
    return all(share in (0.0, 1.0) for share in shares)


def _adjusted_wald(wins: float, losses: float, count: int) -> tuple[float, float]:
    """95 % interval of (wins - losses) / count, with one win and one loss added; see `paired`."""
    won, lost = (wins + 1) / (count + 2), (losses + 1) / (count + 2)
    half = Z * math.sqrt((won + lost - (won - lost) ** 2) / (count + 2))
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)
