"""Intervals, p-values and pass@k against published numbers, hand counts, enumeration and SciPy's own routines."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
from scipy import stats

from vlm_mhpo.records.statistics import accuracy, over_runs, paired, pass_at


def independent(values):
    return range(len(values))


# R. G. Newcombe, Statistics in Medicine 17 (1998), table I, score method.
@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_independent_rows_have_the_published_score_interval(right, total, low, high):
    shares = [1.0] * right + [0.0] * (total - right)
    found = accuracy(shares, independent(shares))
    assert found.mean == right / total
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)


def enumerated(clusters: list[list[float]]) -> tuple[float, float]:
    """The 2.5 and 97.5 % points of the mean over all equally likely draws of as many clusters."""
    draws = itertools.product(clusters, repeat=len(clusters))
    means = Counter(sum(map(sum, drawn)) / sum(map(len, drawn)) for drawn in draws)
    points = []
    for quantile in (0.025, 0.975):
        below = 0.0
        for value, count in sorted(means.items()):
            below += count / means.total()
            if below >= quantile:
                points.append(value)
                break
    return tuple(points)


@pytest.mark.parametrize(
    "clusters",
    [
        [[1, 1], [0, 1], [0, 0]],
        [[1, 1, 1], [0]],
        [[0.25], [0.5], [1.0], [0.75]],
        [[1, 0], [1, 1], [1, 0], [1, 1], [0, 0]],
    ],
)
def test_the_bootstrap_draws_whole_problems(clusters):
    shares = [share for cluster in clusters for share in cluster]
    problems = [number for number, cluster in enumerate(clusters) for _ in cluster]
    found = accuracy(shares, problems)
    assert found.mean == pytest.approx(sum(shares) / len(shares))
    assert (found.low, found.high) == pytest.approx(enumerated(clusters), abs=1e-9)


def test_the_bootstrap_is_that_of_scipy():
    random = np.random.default_rng(3)
    shares = random.integers(0, 9, size=300) / 8
    problems = random.integers(0, 90, size=300)
    found = accuracy(shares.tolist(), problems.tolist())
    sizes = np.bincount(problems)
    sums, kept = np.bincount(problems, weights=shares), sizes > 0
    theirs = stats.bootstrap(
        (sums[kept], sizes[kept]),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        vectorized=True,
        n_resamples=20000,
        method="percentile",
        rng=np.random.default_rng(1),
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.003)


def test_rows_of_one_problem_are_not_counted_as_independent():
    # 50 problems, 10 variants each, all variants of a problem alike: 500 rows that say as much as 50.
    shares = [float(problem < 25) for problem in range(50) for _ in range(10)]
    found = accuracy(shares, [problem for problem in range(50) for _ in range(10)])
    # Normal theory for 50 tries: 0.5 +- 1.96 * sqrt(0.25 / 50).
    assert (found.low, found.high) == pytest.approx((0.5 - 0.1386, 0.5 + 0.1386), abs=0.015)


@pytest.mark.parametrize("shares", [[1.0, 1.0, 1.0, 1.0], [0.0, 0.0], [0.5], [0.25] * 6, [1.0]])
def test_problems_that_are_all_alike_do_not_make_the_score_certain(shares):
    found = accuracy([*shares, *shares], [*independent(shares), *independent(shares)])
    assert 0.0 <= found.low <= found.mean == shares[0] <= found.high <= 1.0
    assert found.high - found.low > 0.2


@pytest.mark.parametrize(
    ("num_correct", "num_samples", "j", "expected"),
    [
        (0, 4, 2, 0.0),
        (1, 4, 1, 1 / 4),
        (1, 4, 2, 1 / 2),  # 3 of 6 pairs hold it
        (2, 4, 2, 5 / 6),  # 1 of 6 pairs misses both
        (1, 4, 3, 3 / 4),
        (2, 4, 3, 1.0),
        (4, 4, 1, 1.0),
        (3, 10, 5, 1 - 21 / 252),  # C(7, 5) of C(10, 5)
    ],
)
def test_pass_at_by_hand(num_correct, num_samples, j, expected):
    assert pass_at(num_correct, num_samples, j) == pytest.approx(expected)


@pytest.mark.parametrize(("num_correct", "num_samples"), [(0, 5), (2, 5), (3, 6), (6, 6)])
def test_pass_at_is_the_share_of_subsets_with_a_right_sample(num_correct, num_samples):
    samples = [True] * num_correct + [False] * (num_samples - num_correct)
    for j in range(1, num_samples + 1):
        subsets = list(itertools.combinations(samples, j))
        assert pass_at(num_correct, num_samples, j) == pytest.approx(sum(map(any, subsets)) / len(subsets))


def of_counts(both: int, wins: int, losses: int, neither: int) -> tuple[list[float], list[float]]:
    ours = [1.0] * (both + wins) + [0.0] * (losses + neither)
    theirs = [1.0] * both + [0.0] * wins + [1.0] * losses + [0.0] * neither
    return ours, theirs


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 0, 2 / 32),
        (6, 1, 2 * (1 + 7) / 128),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (4, 4, 1.0),
    ],
)
def test_mcnemars_exact_test_by_hand(wins, losses, p):
    ours, theirs = of_counts(10, wins, losses, 5)
    found = paired(ours, theirs, independent(ours))
    assert found.p == pytest.approx(p)
    assert (found.wins, found.losses) == (wins, losses)
    assert found.difference == pytest.approx((wins - losses) / len(ours))
    assert found.low <= found.difference <= found.high


def test_the_interval_of_a_paired_difference_is_bonett_and_prices():
    # 36 rows with 12 wins and 2 losses, by hand: (13 - 3) / 38 +- 1.96 sqrt((16 / 38 - (10 / 38)^2) / 38).
    ours, theirs = of_counts(12, 12, 2, 10)
    half = 1.959964 * math.sqrt((16 / 38 - (10 / 38) ** 2) / 38)
    found = paired(ours, theirs, independent(ours))
    assert (found.low, found.high) == pytest.approx((10 / 38 - half, 10 / 38 + half), abs=1e-6)


def test_a_paired_difference_of_averages_is_that_of_scipy():
    random = np.random.default_rng(5)
    theirs = random.integers(0, 9, size=120) / 8
    ours = np.clip(theirs + random.integers(-2, 4, size=120) / 8, 0, 1)
    found = paired(ours.tolist(), theirs.tolist(), independent(ours))
    scipys = stats.bootstrap(
        (ours - theirs,), np.mean, n_resamples=20000, method="percentile", rng=np.random.default_rng(1)
    ).confidence_interval
    assert (found.low, found.high) == pytest.approx((scipys.low, scipys.high), abs=0.003)
    assert found.p < 0.05
    swapped = paired(theirs.tolist(), ours.tolist(), independent(ours))
    assert (swapped.difference, swapped.wins, swapped.losses) == (-found.difference, found.losses, found.wins)
    assert swapped.p == pytest.approx(found.p, abs=0.002)


def test_the_p_value_of_averages_agrees_with_a_paired_t_test():
    random = np.random.default_rng(8)
    theirs = random.random(200)
    ours = theirs + random.normal(0.02, 0.15, size=200)
    found = paired(ours.tolist(), theirs.tolist(), independent(ours))
    assert found.p == pytest.approx(float(stats.ttest_rel(ours, theirs).pvalue), abs=0.04)


def test_few_problems_cannot_prove_a_difference():
    # Four problems, each better by a half or so: a sign test cannot fall below 2 / 16.
    found = paired([0.5, 0.75, 1.0, 0.75], [0.0, 0.25, 0.5, 0.0], range(4))
    assert found.p >= 2 / 16
    same = paired([0.5, 0.5], [0.5, 0.5], range(2))
    assert (same.difference, same.p) == (0.0, 1.0)
    assert same.low < 0 < same.high


def test_over_runs_is_students_interval():
    values = [0.51, 0.55, 0.49, 0.53]
    found = over_runs(values)
    expected = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == pytest.approx(expected)
    assert found.mean == pytest.approx(0.52)
    assert math.isnan(over_runs([0.5]).low)


# ---- coverage ----------------------------------------------------------------------------------------------------

NUM_SETS = 1000


def drawn(random: np.random.Generator, num_problems: int, num_rows: int, num_samples: int) -> np.ndarray:
    """Shares of num_problems * num_rows rows; a problem has a difficulty, and a row varies around it."""
    difficulty = random.beta(1.2, 1.0, size=num_problems).repeat(num_rows)
    chance = np.clip(difficulty + random.normal(0, 0.1, size=difficulty.size), 0, 1)
    return random.binomial(num_samples, chance) / num_samples


@pytest.mark.full
@pytest.mark.parametrize(
    ("num_problems", "num_rows", "num_samples"), [(100, 1, 8), (60, 5, 1), (40, 3, 4), (200, 1, 1)]
)
def test_nineteen_in_twenty_intervals_hold_the_truth(num_problems, num_rows, num_samples):
    random = np.random.default_rng(0)
    truth = float(drawn(random, 2_000_000, 1, 1).mean())
    problems = np.arange(num_problems).repeat(num_rows).tolist()
    held = 0
    for _ in range(NUM_SETS):
        found = accuracy(drawn(random, num_problems, num_rows, num_samples).tolist(), problems)
        held += found.low <= truth <= found.high
    assert 0.92 <= held / NUM_SETS <= 0.98


@pytest.mark.full
@pytest.mark.parametrize(("num_problems", "num_samples"), [(100, 8), (150, 1)])
def test_intervals_of_paired_differences_hold_the_truth_and_tests_keep_their_level(num_problems, num_samples):
    random = np.random.default_rng(1)
    held = rejected = 0
    for _ in range(NUM_SETS):
        chance = random.beta(1.2, 1.0, size=num_problems)
        ours, theirs = (random.binomial(num_samples, chance) / num_samples for _ in range(2))
        found = paired(ours.tolist(), theirs.tolist(), range(num_problems))
        held += found.low <= 0.0 <= found.high
        rejected += found.p < 0.05
    assert 0.92 <= held / NUM_SETS <= 0.98
    # McNemar's exact test is conservative.
    assert rejected / NUM_SETS <= 0.08
