"""Means, intervals and paired differences over seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vlm_mhpo.test_comparison.cases import run_with
from vlm_mhpo.records.study import MEASURES
from vlm_mhpo.records.study_statistics import Estimate, differences, estimate, summarise


@settings(max_examples=30)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12))
def test_the_interval_holds_the_mean_and_stays_within_the_values(values: list[float]):
    found = estimate(values)
    assert found.mean == pytest.approx(np.mean(values), rel=1e-12, abs=1e-12)
    slack = 1e-9 * (1 + max(map(abs, values)))
    assert min(values) - slack <= found.low <= found.mean + slack
    assert found.mean - slack <= found.high <= max(values) + slack
    assert found.num_seeds == len(values)


def test_the_interval_is_the_bootstraps_to_its_own_noise():
    # An independent bootstrap, with more resamples and another generator.
    values = np.array([0.61, 0.55, 0.72, 0.49, 0.66, 0.58, 0.70, 0.63])
    draws = np.random.RandomState(5).randint(0, 8, (200_000, 8))
    low, high = np.percentile(values[draws].mean(axis=1), [2.5, 97.5])
    found = estimate(values.tolist())
    assert found.low == pytest.approx(low, abs=2e-3) and found.high == pytest.approx(high, abs=2e-3)


def test_the_interval_of_two_seeds_is_their_range():
    # Of the four resamples of (0, 1) a quarter are 0 and a quarter are 1, so both 2.5 % tails lie there.
    assert estimate([0.0, 1.0]) == Estimate(0.5, 0.0, 1.0, 2)


def test_the_interval_moves_and_scales_with_the_values():
    values = [0.1, 0.5, 0.2, 0.9, 0.4]
    plain, moved = estimate(values), estimate([10 + 3 * value for value in values])
    for name in ("mean", "low", "high"):
        assert getattr(moved, name) == pytest.approx(10 + 3 * getattr(plain, name), rel=1e-12)


def test_the_interval_does_not_depend_on_earlier_draws():
    np.random.seed(1)
    first = estimate([1.0, 2.0, 4.0])
    estimate([5.0, 7.0, 8.0])
    np.random.seed(2)
    assert estimate([1.0, 2.0, 4.0]) == first


def test_the_interval_narrows_with_more_seeds():
    few, many = estimate([0.0, 1.0] * 2), estimate([0.0, 1.0] * 32)
    assert many.high - many.low < 0.5 * (few.high - few.low)


def test_one_seed_is_its_own_interval():
    assert estimate([0.25]) == Estimate(0.25, 0.25, 0.25, 1)
    assert estimate([0.25] * 8) == Estimate(0.25, 0.25, 0.25, 8)


def test_nan_is_left_out():
    assert estimate([math.nan, 0.0, math.nan, 1.0]) == estimate([0.0, 1.0])
    nothing = estimate([math.nan])
    assert nothing.num_seeds == 0 and math.isnan(nothing.mean) and not nothing.excludes_zero
    assert estimate([]).num_seeds == 0


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
    assert differences(runs, "grpo")["mhpo"]["accuracy"] == Estimate(0.0625, 0.0625, 0.0625, 4)
    assert summarise(runs)["mhpo"]["accuracy"].low < 0.0


def test_differences_pair_by_seed_and_not_by_place():
    grpo = {0: run_with(entropy=1.0), 1: run_with(entropy=10.0)}
    mhpo = {1: run_with(entropy=12.0), 0: run_with(entropy=3.0)}
    assert differences({"grpo": grpo, "mhpo": mhpo}, "grpo")["mhpo"]["entropy"] == Estimate(2.0, 2.0, 2.0, 2)


def test_differences_are_objective_minus_baseline_on_shared_seeds():
    runs = {
        "mhpo": {0: run_with(drift=0.5), 1: run_with(drift=9.0), 2: run_with(drift=math.nan)},
        "grpo": {0: run_with(drift=2.0), 2: run_with(drift=1.0), 3: run_with(drift=1.0)},
    }
    assert differences(runs, "grpo")["mhpo"]["drift"] == Estimate(-1.5, -1.5, -1.5, 1)
    assert differences(runs, "mhpo")["grpo"]["drift"] == Estimate(1.5, 1.5, 1.5, 1)


def test_the_baseline_has_no_row_of_its_own_and_the_others_have_all_measures():
    runs = {name: {0: run_with()} for name in ("sapo", "grpo", "mhpo")}
    paired = differences(runs, "grpo")
    assert list(paired) == ["sapo", "mhpo"] and all(list(row) == list(MEASURES) for row in paired.values())
    assert list(summarise(runs)) == ["sapo", "grpo", "mhpo"]
