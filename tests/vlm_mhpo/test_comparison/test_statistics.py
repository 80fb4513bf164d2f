"""Means, Student's intervals and paired differences over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vlm_mhpo.test_comparison.cases import run_with
from vlm_mhpo.records.statistics import Estimate, over_runs
from vlm_mhpo.records.study import MEASURES, differences, means

# Student's 97.5 % points by degrees of freedom, from his table (Biometrika 6, 1908, as printed in every handbook).
STUDENT = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 9: 2.262, 11: 2.201}


@settings(max_examples=30)
@given(st.lists(st.integers(-1000, 1000), min_size=8, max_size=8, unique=True))
def test_the_interval_is_the_printed_tables(values: list[int]):
    found = over_runs([value / 8 for value in values])
    exact = np.asarray(values, dtype=np.float64) / 8
    half = STUDENT[7] * math.sqrt(((exact - exact.mean()) ** 2).sum() / 7 / 8)
    assert found.mean == pytest.approx(exact.mean(), rel=1e-12, abs=1e-12)
    assert (found.low, found.high) == pytest.approx((found.mean - half, found.mean + half), rel=1e-3, abs=1e-3 * half)
    assert found.count == 8 and found.has_interval


def test_the_interval_of_two_seeds_by_hand():
    # The standard error of (0, 1) is 1 / 2, with one degree of freedom.
    found = over_runs([0.0, 1.0])
    assert (found.low, found.high) == pytest.approx((0.5 - 12.706 / 2, 0.5 + 12.706 / 2), abs=1e-3)


@pytest.mark.parametrize("skewed", [False, True])
def test_of_eight_seeds_the_interval_holds_the_truth_nineteen_times_in_twenty(skewed: bool):
    """Also of values as skewed as a norm ratio; the percentile bootstrap that was here before held 89 %."""
    random = np.random.default_rng(11)
    draws = random.normal(size=(4000, 8))
    # A mild log-normal; its mean is known.
    draws, truth = (np.exp(0.2 * draws), math.exp(0.02)) if skewed else (draws, 0.0)
    found = [over_runs(values) for values in draws.tolist()]
    coverage = np.mean([one.low <= truth <= one.high for one in found])
    assert 0.93 <= coverage <= 0.96


def test_a_difference_that_is_nothing_is_bold_once_in_twenty():
    random = np.random.default_rng(12)
    bold = [over_runs(values).excludes_zero for values in random.normal(size=(4000, 8)).tolist()]
    assert 0.04 <= np.mean(bold) <= 0.06


def test_the_interval_moves_and_scales_with_the_values():
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    plain, moved = over_runs(values), over_runs([10 + 3 * value for value in values])
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(10 + 3 * getattr(plain, name), rel=1e-12)


def test_the_interval_narrows_with_more_seeds():
    few, many = over_runs([0.0, 1.0] * 2), over_runs([0.0, 1.0] * 32)
    # Student's point at 95 % falls from 3.182 to 1.998, the standard error by sqrt(63 / 3).
    assert (few.high - few.low) / (many.high - many.low) == pytest.approx(3.182 / 1.998 * math.sqrt(21), rel=1e-3)


def no_interval(found: Estimate) -> bool:
    return math.isnan(found.low) and math.isnan(found.high) and not found.has_interval and not found.excludes_zero


def test_one_seed_and_seeds_that_are_alike_have_no_interval():
    for values in ([0.25], [0.25] * 8, [0.0] * 8):
        found = over_runs(values)
        assert (found.mean, found.count) == (values[0], len(values)) and no_interval(found)
    # 0.3 - 0.2 and 0.7 - 0.6 differ by rounding alone.
    assert no_interval(over_runs([0.3 - 0.2, 0.7 - 0.6, 0.4 - 0.3]))


def test_nan_is_left_out():
    assert over_runs([math.nan, 0.0, math.nan, 1.0]) == over_runs([0.0, 1.0])
    nothing = over_runs([math.nan])
    assert nothing.count == 0 and math.isnan(nothing.mean) and no_interval(nothing)
    assert over_runs([]).count == 0


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 0.2, True), (-0.2, -0.1, True), (-0.1, 0.1, False), (0.0, 0.1, False), (-0.1, 0.0, False)],
)
def test_an_interval_that_touches_zero_holds_it(low: float, high: float, excludes: bool):
    assert Estimate((low + high) / 2, low, high, 3).excludes_zero is excludes


def test_pairing_removes_what_a_seed_adds_to_both_exactly():
    # Sixteenths, so that no sum is rounded: the seeds differ by far more than the objectives.
    offsets = {0: 0.0, 1: 8.0, 2: -4.0, 3: 2.0}
    runs = {
        "grpo": {seed: run_with(accuracy=offset) for seed, offset in offsets.items()},
        "mhpo": {seed: run_with(accuracy=offset + 0.0625) for seed, offset in offsets.items()},
    }
    found = differences(runs, "grpo")["mhpo"]["accuracy"]
    assert (found.mean, found.count) == (0.0625, 4) and no_interval(found)
    assert means(runs)["mhpo"]["accuracy"].low < 0.0


def test_the_interval_of_a_difference_is_that_of_the_pairs():
    # Differences 1, 2 and 3: mean 2, standard error 1 / sqrt(3), two degrees of freedom.
    runs = {
        "grpo": {seed: run_with(drift=100.0 * seed) for seed in range(3)},
        "mhpo": {seed: run_with(drift=100.0 * seed + seed + 1) for seed in range(3)},
    }
    found = differences(runs, "grpo")["mhpo"]["drift"]
    half = STUDENT[2] / math.sqrt(3)
    assert (found.mean, found.low, found.high) == pytest.approx((2.0, 2.0 - half, 2.0 + half), abs=1e-3)


def test_differences_pair_by_seed_and_not_by_place():
    grpo = {0: run_with(entropy=1.0), 1: run_with(entropy=10.0)}
    mhpo = {1: run_with(entropy=12.0), 0: run_with(entropy=3.0)}
    assert differences({"grpo": grpo, "mhpo": mhpo}, "grpo")["mhpo"]["entropy"].mean == 2.0


def test_differences_are_objective_minus_baseline_on_shared_seeds():
    runs = {
        "mhpo": {0: run_with(drift=0.5), 1: run_with(drift=9.0), 2: run_with(drift=math.nan)},
        "grpo": {0: run_with(drift=2.0), 2: run_with(drift=1.0), 3: run_with(drift=1.0)},
    }
    for baseline, other, expected in (("grpo", "mhpo", -1.5), ("mhpo", "grpo", 1.5)):
        found = differences(runs, baseline)[other]["drift"]
        assert (found.mean, found.count) == (expected, 1) and no_interval(found)


def test_the_baseline_has_no_row_of_its_own_and_the_others_have_all_measures():
    runs = {name: {0: run_with()} for name in ("sapo", "grpo", "mhpo")}
    paired = differences(runs, "grpo")
    assert list(paired) == ["sapo", "mhpo"] and all(list(row) == list(MEASURES) for row in paired.values())
    assert list(means(runs)) == ["sapo", "grpo", "mhpo"]
