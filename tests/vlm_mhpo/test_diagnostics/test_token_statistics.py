"""Histograms, damped share and effective sample size of tokens, by hand and by numpy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from vlm_mhpo.config import GrpoConfig
from vlm_mhpo.config.objectives import MhpoConfig
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.records.histograms import quantile, widen
from vlm_mhpo.training.token_statistics import (
    effective_sample_size,
    histogram_counts,
    named_histograms,
    quantiles,
    quantity_names,
    token_diagnostics,
    token_quantities,
)

EDGES = np.concatenate([-np.geomspace(1e-4, 20, 211)[::-1], np.geomspace(1e-4, 20, 211)])


def counts_of(quantities, advantages, mask) -> torch.Tensor:
    tensors = {name: torch.tensor(values, dtype=torch.float32) for name, values in quantities.items()}
    return histogram_counts(tensors, torch.tensor(advantages, dtype=torch.float32), torch.tensor(mask))


def drawn(seed: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Two quantities of very different size, advantages of which some are 0, and a mask."""
    generator = np.random.default_rng(seed)
    shape = (40, 25)
    quantities = {
        "log_ratio": (0.02 * generator.standard_normal(shape)).astype(np.float32),
        "multiplier": (3 * generator.random(shape) ** 2).astype(np.float32),
    }
    advantages = np.where(generator.random(40) < 0.2, 0.0, generator.standard_normal(40)).astype(np.float32)
    return quantities, advantages, generator.random(shape) < 0.7


def test_counts_are_numpys_by_the_sign_of_the_advantage():
    quantities, advantages, mask = drawn(3)
    found = named_histograms(tuple(quantities), counts_of(quantities, advantages, mask))
    edges = np.concatenate([[-np.inf], EDGES, [np.inf]])
    for name, values in quantities.items():
        for sign, rows in (("positive", advantages > 0), ("negative", advantages < 0)):
            expected, _ = np.histogram(values[mask & rows[:, None]], bins=edges)
            assert widen(found[name][sign]) == expected.tolist(), (name, sign)


def test_quantiles_are_numpys_to_the_width_of_a_bin():
    quantities, advantages, mask = drawn(5)
    found = quantiles(tuple(quantities), counts_of(quantities, advantages, mask))
    counted = mask & (advantages != 0)[:, None]
    for share in (1, 5, 50, 95, 99):
        log_ratio, multiplier = (
            np.quantile(quantities[name][counted], share / 100, method="inverted_cdf")
            for name in ("log_ratio", "multiplier")
        )
        assert math.log(found[f"ratio_p{share:02d}"]) == pytest.approx(float(log_ratio), rel=0.031, abs=1e-4)
        assert found[f"multiplier_p{share:02d}"] == pytest.approx(float(multiplier), rel=0.031, abs=1e-4)
    assert len(found) == 10


def test_values_beyond_the_edges_are_counted_in_the_open_bins():
    counts = counts_of({"x": [[-1e4, -20.1, 20.1, 1e30]]}, [1.0], [[True] * 4])[0, 0].tolist()
    assert (counts[0], counts[-1], sum(counts)) == (2, 2, 4)
    assert (quantile(counts, 0.01), quantile(counts, 0.99)) == (pytest.approx(-20), pytest.approx(20))


def test_a_trimmed_histogram_by_hand():
    # 422 edges, 423 bins; number 211 holds 0, the 106th edge above it is sqrt(1e-4 * 20).
    counts = counts_of({"x": [[0.0, 0.0447, 0.0]]}, [-2.0], [[True, True, False]])
    trimmed = named_histograms(("x",), counts)["x"]
    assert trimmed["positive"] == {"first": 0, "counts": []}
    assert trimmed["negative"] == {"first": 211, "counts": [1, *[0] * 104, 1]}


def test_a_quantile_of_nothing_is_no_number():
    with pytest.raises(ValueError, match="no value was counted"):
        quantile([0] * 423, 0.5)
    assert quantiles(("x",), torch.zeros(1, 2, 423, dtype=torch.int64)) == {}


def test_masked_tokens_and_advantage_zero_are_not_counted():
    nan = math.nan
    counts = counts_of(
        {"x": [[nan, 0.1], [0.1, 0.1], [0.1, nan]], "y": [[nan, 1.0], [1.0, 1.0], [1.0, nan]]},
        [1.0, 0.0, -1.0],
        [[False, True], [True, True], [True, False]],
    )
    assert counts.sum(2).tolist() == [[1, 1], [1, 1]]


def test_counts_of_micro_batches_add_up():
    quantities, advantages, mask = drawn(0)
    parts = sum(
        counts_of({name: v[i : i + 8] for name, v in quantities.items()}, advantages[i : i + 8], mask[i : i + 8])
        for i in range(0, 40, 8)
    )
    assert torch.equal(parts, counts_of(quantities, advantages, mask))


def test_mhpo_shows_what_is_inside_and_the_others_only_ratio_and_multiplier():
    assert quantity_names(build_objective(GrpoConfig(), 8)) == ("log_ratio", "multiplier")
    objective = build_objective(MhpoConfig(c=1.0), 8)
    log_ratio = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    found = token_quantities(objective, log_ratio, torch.zeros(1, 2))
    assert found["mhpo/psi"].tolist()[0] == pytest.approx([0.0, math.tanh(1.0)])
    # zeta at ratio 1: (ln 2)^1.5 + (ln 2 / 0.8)^2.
    at_one = math.log(2) ** 1.5 + (math.log(2) / 0.8) ** 2
    assert found["mhpo/zeta"][0, 0].item() == pytest.approx(at_one)


def diagnostics_of(ratios, multiplier, advantages, mask, on_policy: float) -> dict[str, float]:
    found = token_diagnostics(
        torch.tensor(ratios).log(), torch.tensor(multiplier), torch.tensor(advantages), torch.tensor(mask), on_policy
    )
    return {name: float(value) for name, value in found.items()}


def test_token_sums_by_hand():
    found = diagnostics_of(
        [[2.0, 0.5, 7.0], [1.0, 3.0, 1.0]],
        [[0.3, 0.019, 0.0], [0.021, -0.5, 0.01]],
        [2.0, -0.5],
        [[True, True, False], [True, True, True]],
        0.2,
    )
    # r^2: 4 + 0.25 + 1 + 9 + 1.
    assert found["sum/ratio_mean_square"] == pytest.approx(15.25, rel=1e-6)
    assert found["sum/multiplier_mean"] == pytest.approx(0.3 + 0.019 + 0.021 - 0.5 + 0.01, rel=1e-5)
    # Below a tenth of 0.2: 0.019 with |A| = 2, and 0.01 with |A| = 0.5; the size counts, not the sign.
    assert found["part/damped_fraction"] == pytest.approx(2.5)
    assert found["whole/damped_fraction"] == pytest.approx(2 * 2.0 + 3 * 0.5)


def test_tokens_with_advantage_zero_have_no_stake_in_the_damped_share():
    found = diagnostics_of([[1.0, 1.0]], [[0.0, 0.0]], [0.0], [[True, True]], 1.0)
    assert found["part/damped_fraction"] == found["whole/damped_fraction"] == 0.0


def test_masked_nan_and_runaway_ratios_leave_the_sums_finite():
    found = token_diagnostics(
        torch.tensor([[math.nan, 60.0, 1e4, -1e4]]),
        torch.tensor([[math.nan, 1.0, 1.0, 1.0]]),
        torch.tensor([1.0]),
        torch.tensor([[False, True, True, True]]),
        1.0,
    )
    assert all(math.isfinite(float(value)) for value in found.values())


@pytest.mark.parametrize(
    "ratios", [[1.0, 1.0, 1.0], [3.0, 1.0], [0.5, 2.0, 1.5, 0.1], [1e-3, 1e3], [0.9, 1.1, 1.0, 1.05, 0.95]]
)
def test_effective_sample_size_is_its_definition(ratios: list[float]):
    expected = sum(ratios) ** 2 / (len(ratios) * sum(r * r for r in ratios))
    mean, mean_square = float(np.mean(ratios)), float(np.mean(np.square(ratios)))
    assert effective_sample_size(mean, mean_square) == pytest.approx(expected, rel=1e-12)


def test_effective_sample_size_by_hand():
    # 3 and 1: 16 / (2 * 10).
    assert effective_sample_size(2.0, 5.0) == pytest.approx(0.8)
    # One token carries all of four.
    assert effective_sample_size(0.25, 0.25) == pytest.approx(0.25)


def test_effective_sample_size_of_equal_weights_is_not_above_1_for_rounding():
    assert effective_sample_size(1.0, float(np.float32(1.0) - np.float32(6e-8))) == 1.0
