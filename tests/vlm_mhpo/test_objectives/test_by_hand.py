"""Each objective of the family on numbers small enough to work out by hand."""

import math

import pytest
import torch

from tests.vlm_mhpo.test_objectives.cases import Case, Objective, float64, loss_and_gradient
from vlm_mhpo.objectives.cispo import cispo_loss
from vlm_mhpo.objectives.dppo_tv import dppo_tv_loss
from vlm_mhpo.objectives.gmpo import gmpo_loss
from vlm_mhpo.objectives.gspo import gspo_loss
from vlm_mhpo.objectives.reinforce import reinforce_loss
from vlm_mhpo.objectives.sapo import sapo_loss
from vlm_mhpo.objectives.vespo import vespo_loss

LOG_PROB = -2.0


def completion(log_ratios: list[float], advantage: float) -> Case:
    """The only completion of a batch, its log-probs all -2, and as many masked tokens of junk."""
    length = len(log_ratios)
    log_probs = torch.full((1, 2 * length), LOG_PROB, dtype=torch.float64)
    old_log_probs = log_probs - float64(log_ratios + [-0.7] * length)
    mask = torch.arange(2 * length)[None, :] < length
    return Case(log_probs, old_log_probs, float64([advantage]), mask, num_completions=1, num_tokens=length)


def check(
    objective: Objective, log_ratios: list[float], advantage: float, loss: float, gradient: list[float], **knobs: float
) -> None:
    case = completion(log_ratios, advantage)
    value, slopes = loss_and_gradient(objective, case, **knobs)
    assert value.item() == pytest.approx(loss, rel=1e-12), (log_ratios, advantage)
    assert slopes[0].tolist() == pytest.approx(gradient + [0.0] * len(gradient), rel=1e-12), (log_ratios, advantage)


def test_gspo_clips_the_ratio_of_the_whole_completion() -> None:
    # Mean log-ratio 1e-4 is inside, though both tokens alone are far outside: both get s A / 2.
    inside = math.exp(1e-4)
    check(gspo_loss, [0.5001, -0.4999], 2.0, -2 * inside, [-inside, -inside])
    # Mean 0.1: a gain stops at 1.0004, a loss goes on.
    check(gspo_loss, [0.3, -0.1], 2.0, -2.0008, [0.0, 0.0])
    check(gspo_loss, [0.3, -0.1], -2.0, 2 * math.exp(0.1), [math.exp(0.1)] * 2)
    # Mean -0.1: a loss stops at 0.9997, a gain goes on.
    check(gspo_loss, [0.1, -0.3], -2.0, 1.9994, [0.0, 0.0])
    check(gspo_loss, [0.1, -0.3], 2.0, -2 * math.exp(-0.1), [-math.exp(-0.1)] * 2)


def test_gmpo_clips_each_log_ratio_before_the_geometric_mean() -> None:
    # log-ratios 0.4 (cut from 0.5) and 0.1: weight e^0.25; the cut token has no gradient.
    weight = math.exp(0.25)
    check(gmpo_loss, [0.5, 0.1], 2.0, -2 * weight, [0.0, -weight])
    check(gmpo_loss, [-0.5, -0.1], -2.0, 2 / weight, [0.0, 1 / weight])
    # The side that costs is not cut.
    check(gmpo_loss, [-0.5, -0.1], 2.0, -2 * math.exp(-0.3), [-math.exp(-0.3)] * 2)
    check(gmpo_loss, [0.5, 0.1], -2.0, 2 * math.exp(0.3), [math.exp(0.3)] * 2)


def test_cispo_bounds_the_weight_and_keeps_the_gradient() -> None:
    # Weights 5 (cut from 20) and 0.5; log-prob -2; each token half.
    check(cispo_loss, [math.log(20), math.log(0.5)], 3.0, 3 * 5.5, [-7.5, -0.75])
    check(cispo_loss, [math.log(20), math.log(0.5)], -3.0, -3 * 5.5, [7.5, 0.75])
    check(cispo_loss, [math.log(20)], 1.0, 2 * 1.5, [-1.5], epsilon_high=0.5)


def test_sapo_gates_by_the_sign_of_the_advantage() -> None:
    # At r = 1 the gate is 2 / tau and its slope 1.
    check(sapo_loss, [0.0], 3.0, -3 * 2, [-3.0])
    check(sapo_loss, [0.0], -3.0, 3 * 2 / 1.05, [3.0])
    # tau (r - 1) = log 3: sigmoid 3/4; slope 4 (3/4) (1/4) r = 0.75 r.
    ratio = 1 + math.log(3)
    check(sapo_loss, [math.log(ratio)], 1.0, -3.0, [-0.75 * ratio])
    ratio = 1 + math.log(3) / 2
    check(sapo_loss, [math.log(ratio)], -1.0, 1.5, [0.75 * ratio], tau_neg=2.0)


def test_vespo_weighs_by_the_product_of_all_ratios() -> None:
    # w = 2 of two tokens, neither of them 2: phi = 4 e^-3 for a gain, 8 e^-2 for a loss; log-prob -2, each token half.
    log_ratios = [math.log(4), math.log(0.5)]
    check(vespo_loss, log_ratios, 3.0, 24 * math.exp(-3), [-6 * math.exp(-3)] * 2)
    check(vespo_loss, log_ratios, -3.0, -48 * math.exp(-2), [12 * math.exp(-2)] * 2)
    # On the policy it is REINFORCE; for a gain the weight is largest at k / lambda = 2 / 3.
    check(vespo_loss, [0.0], 1.0, 2.0, [-1.0])
    check(vespo_loss, [math.log(2 / 3)], 1.0, 8 / 9 * math.e, [-4 / 9 * math.e])


def test_dppo_tv_stops_at_a_change_of_the_probability() -> None:
    # From 0.1 to e^-2 = 0.135 is inside, though the ratio of 1.35 would be clipped; weight 10 e^-2, log-prob -2.
    inside = 10 * math.exp(-2)
    check(dppo_tv_loss, [math.log(inside)], 3.0, 6 * inside, [-3 * inside])
    # From 0.35 down by 0.215 is outside for a loss, and goes on for a gain.
    fallen = math.exp(-2) / 0.35
    check(dppo_tv_loss, [math.log(fallen)], -3.0, 0.0, [0.0])
    check(dppo_tv_loss, [math.log(fallen)], 3.0, 6 * fallen, [-3 * fallen])
    # From 0.03 up by 0.105 is outside where the bound is 0.1; a weight of 4.5 is cut to 3 where that is the bound.
    risen = math.exp(-2) / 0.03
    check(dppo_tv_loss, [math.log(risen)], 3.0, 0.0, [0.0], delta_high=0.1)
    check(dppo_tv_loss, [math.log(risen)], 3.0, 18.0, [-9.0], max_ratio=3.0)


def test_reinforce_sees_no_ratio() -> None:
    check(reinforce_loss, [0.0, 5.0, -5.0], 3.0, 6.0, [-1.0] * 3)
    check(reinforce_loss, [0.0], -3.0, -6.0, [3.0])
