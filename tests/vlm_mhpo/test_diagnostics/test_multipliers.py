"""The multiplier read off the loss is the one on paper, for every objective, aggregation, mask and sign."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch

from tests.vlm_mhpo.test_diagnostics.analytic import FORMULAS, dppo_tv
from vlm_mhpo.config import OBJECTIVES
from vlm_mhpo.config.objectives import BaseObjective, MhpoConfig
from vlm_mhpo.objectives import Objective, build_objective
from vlm_mhpo.objectives.multipliers import multiplier_curve, multipliers, on_policy_multiplier, token_shares

BUDGET = 16
AGGREGATIONS = ("completion_mean", "token_mean", "fixed_length")
# On both sides of every clipping edge of the family, and none on an edge.
RATIOS = (0.01, 0.1, 0.5, 0.66, 0.68, 0.79, 0.81, 0.9996, 0.9998, 1.0, 1.0003, 1.0005, 1.19, 1.21, 1.27, 1.29)
RATIOS += (1.48, 1.5, 2.0, 4.99, 5.01, 20.0, 60.0)

# ratio: M, ten decimals, from the table of the MHPO formula with the paper's constants.
GOLDEN = {
    0.1: 0.0007320868,
    0.5: 0.0544176426,
    0.8: 0.1790209103,
    1.0: 0.2650622127,
    1.2: 0.3303493713,
    2.0: 0.3906509533,
    5.0: 0.1908157121,
    20.0: 0.0333002527,
}


def section_of(name: str) -> type[BaseObjective]:
    return next(section for section in OBJECTIVES if section.model_fields["name"].default == name)


def objective_of(name: str, **changes: object) -> Objective:
    return build_objective(section_of(name)(**changes), BUDGET)


def float64(values: object) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_formulas_cover_every_objective():
    assert set(FORMULAS) == {section.model_fields["name"].default for section in OBJECTIVES}


def test_mhpos_curve_is_the_golden_table():
    found = multiplier_curve(objective_of("mhpo"), float64([math.log(ratio) for ratio in GOLDEN]), 1.0)
    assert found.tolist() == pytest.approx(list(GOLDEN.values()), abs=6e-11)


def test_mhpos_curve_peaks_and_falls_where_the_paper_says():
    x = torch.linspace(-4, 4, 80_001, dtype=torch.float64)
    curve = multiplier_curve(objective_of("mhpo"), x, 1.0)
    peak = int(curve.argmax())
    assert float(curve[peak]) == pytest.approx(0.3958143075, abs=1e-9)
    assert math.exp(x[peak]) == pytest.approx(1.78202, abs=2e-4)
    above = x[curve >= 0.5 * 0.2650622127].exp()
    assert (float(above[0]), float(above[-1])) == pytest.approx((0.69828, 6.81584), rel=2e-4)


@pytest.mark.parametrize("advantage", [1.0, -1.0, 0.37, -2.5])
@pytest.mark.parametrize("name", FORMULAS)
def test_the_curve_of_an_objective_is_its_formula(name: str, advantage: float):
    xs = [math.log(ratio) for ratio in RATIOS]
    expected = [FORMULAS[name]([x], advantage)[0] for x in xs]
    found = multiplier_curve(objective_of(name), float64(xs), advantage)
    assert found.tolist() == pytest.approx(expected, rel=1e-10, abs=1e-14)


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", FORMULAS)
def test_a_curve_does_not_depend_on_the_aggregation(name: str, aggregation: str):
    x = float64([math.log(ratio) for ratio in RATIOS])
    found = multiplier_curve(objective_of(name, aggregation=aggregation), x, -1.0)
    assert torch.allclose(found, multiplier_curve(objective_of(name), x, -1.0), rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", FORMULAS)
def test_on_policy_every_objective_weighs_a_token_1_and_mhpo_less(name: str):
    expected = 0.2650622127 if name == "mhpo" else 1.0
    assert on_policy_multiplier(objective_of(name)) == pytest.approx(expected, abs=1e-10)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"normalize_hazard": True}, 1.0), ({"use_hazard": False}, 1.0), ({"use_modulator": False}, 0.2650622127)],
)
def test_on_policy_weights_of_the_ablations(changes: dict, expected: float):
    assert on_policy_multiplier(build_objective(MhpoConfig(**changes), BUDGET)) == pytest.approx(expected, abs=1e-10)


# Ragged: whole, gaps, one token, none, A = 0.
MASK = torch.tensor(
    [
        [True, True, True, True, True],
        [False, True, False, True, True],
        [True, False, False, False, False],
        [False, False, False, False, False],
        [True, True, True, False, False],
        [True, True, True, True, False],
    ]
)
ADVANTAGES = (1.3, -0.7, 0.4, 1.0, 0.0, -1.1)
LOG_RATIOS = (
    (0.3, -0.5, 0.1, 1.2, -2.0),
    (9.0, 0.45, 9.0, -0.6, 0.15),
    (0.25, 9.0, 9.0, 9.0, 9.0),
    (9.0, 9.0, 9.0, 9.0, 9.0),
    (0.5, -0.5, 0.2, 9.0, 9.0),
    (-0.1, 0.6, -0.9, 0.05, 9.0),
)


OLD_LOG_PROB = -1.25


def read_off(name: str, aggregation: str, *, junk: float = 9.0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """`multipliers` on the ragged batch, of which the micro-batch is a part: 11 completions, 40 tokens in all."""
    objective = objective_of(name, aggregation=aggregation)
    old = torch.full(MASK.shape, OLD_LOG_PROB, dtype=dtype)
    log_probs = old + float64(LOG_RATIOS).to(dtype)
    log_probs = torch.where(MASK, log_probs, junk).requires_grad_()
    advantages, counts = float64(ADVANTAGES).to(dtype), {"num_completions": 11, "num_tokens": 40}
    loss, _ = objective.loss(log_probs, old, advantages, MASK, **counts)
    found = multipliers(objective, loss, log_probs, advantages, MASK, counts)
    loss.backward()
    assert log_probs.grad is not None and not found.requires_grad
    return found


def expected_of(name: str) -> torch.Tensor:
    expected = torch.zeros(MASK.shape, dtype=torch.float64)
    formula = partial(dppo_tv, old_log_prob=OLD_LOG_PROB) if name == "dppo_tv" else FORMULAS[name]
    for row, (keep, xs, advantage) in enumerate(zip(MASK, LOG_RATIOS, ADVANTAGES, strict=True)):
        counted = [x for x, k in zip(xs, keep.tolist(), strict=True) if k]
        if advantage and counted:
            expected[row, keep] = float64(formula(counted, advantage))
    return expected


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("name", FORMULAS)
def test_multipliers_of_a_ragged_batch_are_the_formulas(name: str, aggregation: str):
    assert torch.allclose(read_off(name, aggregation), expected_of(name), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("name", FORMULAS)
def test_multipliers_in_float32_are_the_formulas(name: str):
    found = read_off(name, "completion_mean", dtype=torch.float32)
    assert torch.allclose(found.double(), expected_of(name), rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("name", ["mhpo", "grpo", "gspo", "reinforce"])
def test_what_is_masked_does_not_matter(name: str, junk: float):
    assert torch.equal(read_off(name, "token_mean", junk=junk), read_off(name, "token_mean"))


def test_shares_by_hand():
    counts = {"num_completions": 11, "num_tokens": 40}
    lengths = MASK.sum(dim=1, keepdim=True).clamp(min=1).double()
    expected = {
        "completion_mean": MASK / lengths / 11,
        "token_mean": MASK / 40.0,
        "fixed_length": MASK / (11.0 * BUDGET),
    }
    for name, shares in expected.items():
        found = token_shares(objective_of("grpo", aggregation=name), MASK, counts, torch.float64)
        assert torch.allclose(found, shares.double(), rtol=1e-14), name


def test_a_completion_with_advantage_zero_is_not_divided_by_it():
    found = read_off("mhpo", "completion_mean")
    assert torch.isfinite(found).all() and not found[4].any()


def test_a_users_own_objective_is_measured_too(tmp_path):
    # Three times REINFORCE with half the weight on falling tokens: M is 3, or 1.5 where A < 0.
    file = tmp_path / "mine.py"
    file.write_text(
        "def loss(log_probs, old_log_probs, advantages, mask, *, num_completions, num_tokens=None, aggregate):\n"
        "    weights = 3.0 * advantages.clamp(min=0) + 1.5 * advantages.clamp(max=0)\n"
        "    value = weights[:, None] * log_probs\n"
        "    return -aggregate(value, mask, num_completions=num_completions, num_tokens=num_tokens), {}\n"
    )
    from vlm_mhpo.config.objectives import CustomConfig

    objective = build_objective(CustomConfig(path=f"{file}:loss"), BUDGET)
    assert on_policy_multiplier(objective) == pytest.approx(3.0, rel=1e-12)
    assert multiplier_curve(objective, float64([0.0, 2.0]), -0.5).tolist() == pytest.approx([1.5, 1.5], rel=1e-12)


def test_a_curve_can_be_drawn_inside_no_grad():
    with torch.no_grad():
        assert on_policy_multiplier(objective_of("grpo")) == 1.0
