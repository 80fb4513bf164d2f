"""Every measure of a run is what a hand, numpy, or a plain loop makes of its records."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.vlm_mhpo.test_comparison.cases import write_run
from vlm_mhpo.records.norms import NormHistory, count_spikes, percentile
from vlm_mhpo.records.study import MEASURES, area_under, measure


def by_sorting(values: list[float], share: float) -> float:
    """The percentile between the two nearest of the sorted values."""
    ordered, place = sorted(values), share * (len(values) - 1)
    low, high = ordered[math.floor(place)], ordered[math.ceil(place)]
    return low + (place - math.floor(place)) * (high - low)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.floats(0, 1))
def test_percentile_is_that_of_sorting(values: list[float], share: float):
    assert percentile(values, share) == pytest.approx(by_sorting(values, share), rel=1e-9, abs=1e-9)


def test_percentile_leaves_the_list_in_its_order():
    values = [3.0, 1.0, 2.0]
    assert (percentile(values, 0.0), percentile(values, 0.5), percentile(values, 1.0)) == (1.0, 2.0, 3.0)
    assert values == [3.0, 1.0, 2.0]


def spikes_by_loop(norms: list[float]) -> int:
    """A spike is above 5 times the median of the up to 50 norms before it; the first 10 norms are never one."""
    found = 0
    for index in range(10, len(norms)):
        before = np.array(norms[max(0, index - 50) : index], dtype=np.float64)
        found += bool(norms[index] > 5.0 * np.median(before))
    return found


@given(st.integers(0, 2**32 - 1), st.integers(0, 130))
def test_spikes_are_those_of_a_plain_loop(seed: int, count: int):
    norms = np.exp(1.5 * np.random.default_rng(seed).standard_normal(count)).tolist()
    assert count_spikes(norms) == spikes_by_loop(norms)


@pytest.mark.parametrize(
    ("norms", "expected"),
    [
        ([1.0] * 10 + [5.0], 0),
        ([1.0] * 10 + [5.0001], 1),
        # The tenth has only nine before it.
        ([1.0] * 9 + [100.0], 0),
        # A spike itself is part of the history of the next, and does not move its median.
        ([1.0] * 10 + [6.0, 6.0, 6.0], 3),
        # With k tens among the 50 before it, a ten is a spike for k = 0..24 (median 1) and no longer for k = 25
        # (median 5.5). At the end the window holds tens alone, and 40 is below 50.
        ([1.0] * 60 + [10.0] * 50 + [40.0], 25),
        ([], 0),
    ],
)
def test_spikes_by_hand(norms: list[float], expected: int):
    assert count_spikes(norms) == expected


def test_area_by_hand():
    # (0 + 0.5) / 2 * 10 + (0.5 + 0.7) / 2 * 30 = 2.5 + 18 over 40 steps.
    assert area_under(((0, 0.0), (10, 0.5), (40, 0.7))) == pytest.approx(20.5 / 40, rel=1e-14)
    assert area_under(((7, 0.3),)) == 0.3


def test_area_does_not_change_when_a_point_on_the_line_is_missing():
    assert area_under(((0, 0.2), (4, 0.4), (8, 0.6))) == pytest.approx(area_under(((0, 0.2), (8, 0.6))), rel=1e-14)


def test_a_run_by_hand(tmp_path):
    run = write_run(
        tmp_path / "run",
        norms=[[1.0, 2.0], [3.0, 4.0], [10.0]],
        drifts=[[0.0, 0.1], [0.0, 0.3], [0.5]],
        accuracies={0: 0.5, 2: 0.7, 3: 0.6},
        entropies=[3.0, 2.0, 1.0],
        max_grad_norm=3.0,
    )
    found = measure(run)
    assert found.accuracy_before == 0.5 and found.accuracy == 0.6
    # (0.5 + 0.7) / 2 * 2 + (0.7 + 0.6) / 2 * 1 over 3 steps.
    assert found.area == pytest.approx(1.85 / 3)
    # Of 1, 2, 3, 4, 10: place 0.99 * 4 = 3.96 between 4 and 10.
    assert found.norm_median == 3.0
    assert found.norm_ratio == pytest.approx((4 + 0.96 * 6) / 3)
    # A norm equal to the threshold is not clipped.
    assert found.clipped_share == pytest.approx(2 / 5)
    assert found.drift == pytest.approx((0.1 + 0.3 + 0.5) / 3)
    assert found.entropy == 1.0
    assert (found.num_spikes, found.collapsed) == (0.0, 0.0)
    assert found.curve == ((0, 0.5), (2, 0.7), (3, 0.6))


def test_entropy_is_of_the_last_tenth(tmp_path):
    entropies = [float(step) for step in range(1, 31)]
    run = write_run(tmp_path / "run", norms=[[1.0]] * 30, accuracies={0: 0.5, 30: 0.5}, entropies=entropies)
    assert measure(run).entropy == pytest.approx((28 + 29 + 30) / 3)


@pytest.mark.parametrize(
    ("before", "after", "collapsed"),
    [(0.5, 0.375, 1.0), (0.5, 0.40625, 0.0), (0.5, 0.75, 0.0), (0.75, 0.25, 1.0), (0.3, 0.2, 1.0)],
)
def test_a_run_that_ends_ten_points_below_its_start_has_collapsed(tmp_path, before, after, collapsed):
    run = write_run(tmp_path / "run", norms=[[1.0]], accuracies={0: before, 1: after})
    assert measure(run).collapsed == collapsed


def test_a_dip_that_recovers_is_no_collapse(tmp_path):
    run = write_run(tmp_path / "run", norms=[[1.0]] * 3, accuracies={0: 0.5, 1: 0.0, 3: 0.5})
    assert measure(run).collapsed == 0.0


def test_skipped_updates_are_a_collapse(tmp_path):
    run = write_run(tmp_path / "run", norms=[[1.0], []], accuracies={0: 0.25, 2: 0.75}, skipped=[0.0, 4.0])
    found = measure(run)
    assert found.collapsed == 1.0
    # The step without an update has no drift and no norm.
    assert found.norm_median == 1.0 and found.drift == 0.0


def test_a_run_whose_updates_were_all_skipped_has_no_norms(tmp_path):
    run = write_run(tmp_path / "run", norms=[[], []], accuracies={0: 0.5, 2: 0.5}, skipped=[4.0, 4.0])
    found = measure(run)
    for name in ("norm_ratio", "norm_median", "clipped_share", "drift", "entropy"):
        assert math.isnan(getattr(found, name)), name
    assert (found.num_spikes, found.collapsed, found.accuracy) == (0.0, 1.0, 0.5)


def test_gradients_that_are_mostly_zero_have_no_norm_ratio(tmp_path):
    # As on problems that a model never solves: every reward, advantage and gradient is 0.
    run = write_run(tmp_path / "run", norms=[[0.0, 0.0], [0.0, 2.0]], accuracies={0: 0.0, 2: 0.0})
    found = measure(run)
    assert math.isnan(found.norm_ratio) and found.norm_median == 0.0
    assert found.clipped_share == 0.25 and found.collapsed == 0.0


def test_a_nan_in_the_records_is_read(tmp_path):
    run = write_run(tmp_path / "run", norms=[[1.0]], accuracies={0: 0.5, 1: 0.5}, entropies=[math.nan])
    assert "NaN" in (run / "metrics.jsonl").read_text()
    assert math.isnan(measure(run).entropy)


def test_every_listed_measure_is_measured(tmp_path):
    run = measure(write_run(tmp_path / "run", norms=[[1.0]], accuracies={0: 0.5, 1: 0.5}, entropies=[1.0]))
    for name in MEASURES:
        assert isinstance(getattr(run, name), float), name


def test_the_evaluation_before_training_is_not_needed(tmp_path):
    run = write_run(tmp_path / "run", norms=[[1.0], [1.0]], accuracies={2: 0.5})
    found = measure(run)
    assert (found.accuracy, found.area, found.curve) == (0.5, 0.5, ((2, 0.5),))


def test_the_history_of_norms_gives_what_the_whole_list_gives_and_goes_on_after_a_break():
    norms = [1.0 + 0.01 * (index % 7) for index in range(30)]
    norms[20] = 9.0
    whole = NormHistory([])
    for start in range(0, 30, 5):
        last = whole.add(norms[start : start + 5])
    again = NormHistory(norms[:25]).add(norms[25:])
    assert last == again
    assert last["grad_norm/num_spikes"] == 1.0
    assert last["grad_norm/p50"] == pytest.approx(np.percentile(norms, 50))
    assert last["grad_norm/p99"] == pytest.approx(np.percentile(norms, 99))


def test_a_step_without_an_applied_update_has_no_percentiles():
    assert NormHistory([]).add([]) == {"grad_norm/num_spikes": 0.0}
