"""Shares with 95 % intervals, pass@j, paired differences and means over runs; rows of one problem stay together.

A problem is a cluster: the rows that share its id (variants), each with its share of right completions.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

RESAMPLES = 10_000
# Draws held at a time: problems x resamples.
DRAWS_AT_ONCE = 4_000_000
Z = float(stats.norm.ppf(0.975))


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float


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
    sums, sizes = by_problem(shares, problems)
    mean = float(sums.sum() / sizes.sum())
    if is_right_or_wrong(shares) and len(sums) == len(shares):
        return Estimate(mean, *wilson(mean, len(shares)))
    low, high = np.quantile(resampled(sums, sizes), (0.025, 0.975)).tolist()
    if high - low < 1e-12:
        # Problems that are all alike say little about the next one; Wilson's interval of as many tries says how much.
        return Estimate(mean, *wilson(mean, len(sums)))
    return Estimate(mean, min(low, mean), max(high, mean))


def paired(ours: Sequence[float], theirs: Sequence[float], problems: Sequence[Hashable]) -> Paired:
    """Mean of ours minus theirs on the same rows.

    For independent right-or-wrong rows McNemar's exact test and Bonett and Price's adjusted Wald interval (J. Educ.
    Behav. Stat. 37, 2012); else a bootstrap over problems, whose p-value is no smaller than a sign test could give.
    """
    gaps = [a - b for a, b in zip(ours, theirs, strict=True)]
    wins, losses = sum(gap > 0 for gap in gaps), sum(gap < 0 for gap in gaps)
    sums, sizes = by_problem(gaps, problems)
    mean = float(sums.sum() / sizes.sum())
    if is_right_or_wrong([*ours, *theirs]) and len(sums) == len(gaps):
        p = float(stats.binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0
        return Paired(mean, *adjusted_wald(wins, losses, len(gaps)), p, wins, losses)
    draws = resampled(sums, sizes)
    low, high = np.quantile(draws, (0.025, 0.975)).tolist()
    if high - low < 1e-12:
        low, high = adjusted_wald(max(mean, 0.0) * len(sums), max(-mean, 0.0) * len(sums), len(sums))
    tail = min(int((draws <= 1e-12).sum()), int((draws >= -1e-12).sum()))
    p = max(2 * (tail + 1) / (RESAMPLES + 1), 2.0 ** (1 - len(sums)))
    return Paired(mean, min(low, mean), max(high, mean), min(1.0, p), wins, losses)


def over_runs(means: Sequence[float]) -> Estimate:
    """Mean of several runs' values with Student's interval; one run has none, its bounds are NaN."""
    centre = float(np.mean(means))
    if len(means) < 2:
        return Estimate(centre, math.nan, math.nan)
    half = float(stats.t.ppf(0.975, len(means) - 1) * np.std(means, ddof=1) / math.sqrt(len(means)))
    return Estimate(centre, centre - half, centre + half)


def pass_at(num_correct: int, num_samples: int, j: int) -> float:
    """Unbiased chance that one of j samples is right, when c of n drawn were: 1 - C(n-c, j) / C(n, j); j <= n."""
    return 1.0 - math.comb(num_samples - num_correct, j) / math.comb(num_samples, j)


def by_problem(values: Sequence[float], problems: Sequence[Hashable]) -> tuple[np.ndarray, np.ndarray]:
    """[problems] float64 sum of the values, and number of rows, of each problem in order of appearance."""
    order: dict[Hashable, int] = {}
    places = np.asarray([order.setdefault(problem, len(order)) for problem in problems])
    return np.bincount(places, weights=np.asarray(values, dtype=np.float64)), np.bincount(places)


def resampled(sums: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """[RESAMPLES] means over the rows of problems drawn with replacement; the same every time."""
    random = np.random.default_rng(0)
    step = max(1, DRAWS_AT_ONCE // len(sums))
    means = []
    for start in range(0, RESAMPLES, step):
        drawn = random.integers(0, len(sums), size=(min(step, RESAMPLES - start), len(sums)))
        means.append(sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1))
    return np.concatenate(means)


def is_right_or_wrong(shares: Sequence[float]) -> bool:
    """Whether every share is 0 or 1."""
    return all(share in (0.0, 1.0) for share in shares)


def wilson(share: float, count: int) -> tuple[float, float]:
    """95 % score interval of a share of `count` independent tries (E. B. Wilson, 1927)."""
    centre = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def adjusted_wald(wins: float, losses: float, count: int) -> tuple[float, float]:
    """95 % interval of (wins - losses) / count, with one win and one loss added; see `paired`."""
    won, lost = (wins + 1) / (count + 2), (losses + 1) / (count + 2)
    half = Z * math.sqrt((won + lost - (won - lost) ** 2) / (count + 2))
    return max(-1.0, won - lost - half), min(1.0, won - lost + half)
