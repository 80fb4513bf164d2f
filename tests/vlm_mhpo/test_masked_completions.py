"""A masked completion is one without tokens: its group and the number of completions still count it, no token does."""

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from tests.builders import (
    Tiny,
    allowed_ids,
    completion,
    gradients,
    plain_log_probs,
    plain_logits,
    prompts_of,
    relative_gap,
    scored,
)
from tests.reference import objectives as reference
from tests.vlm_mhpo.update_cases import LENGTHS, NUM_COMPLETIONS, NUM_TOKENS, PlainEngine, batch_of, settings_of
from vlm_mhpo.config.objectives import DapoConfig, DrGrpoConfig, MhpoConfig
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.training.minibatches import make_minibatches
from vlm_mhpo.training.token_statistics import Totals
from vlm_mhpo.training.update import accumulate, update_on
from vlm_mhpo.types import Minibatch

# The longest of the first prompt, and two of the last; 16 of the 51 tokens.
MASKED = frozenset({2, 8, 10})
BUDGET, BETA, TEMPERATURE = 8, 0.05, 0.9
LENGTH = [length for lengths in LENGTHS for length in lengths]
TOKENS_LEFT = NUM_TOKENS - sum(LENGTH[flat] for flat in MASKED)
# Means over completions, or over N times the budget, divide by all completions; a mean over tokens by those left.
OBJECTIVES = {
    "mhpo": (MhpoConfig, reference.mhpo, reference.completion_mean),
    "dapo": (DapoConfig, partial(reference.grpo, epsilon_high=0.28), reference.token_mean(TOKENS_LEFT)),
    "dr_grpo": (DrGrpoConfig, reference.grpo, reference.fixed_length(BUDGET)),
}


@pytest.fixture(scope="module")
def model(tiny):
    """Float64 weights, so that differently shaped products do not differ."""
    mine = tiny("qwen2_5_vl").copy()
    mine.policy.double()
    return mine


@pytest.fixture(scope="module")
def batch(model):
    return replace(batch_of(model), masked=MASKED)


def found_on(model: Tiny, batch: Minibatch, name: str, **changes) -> tuple[dict[str, torch.Tensor], Totals]:
    """Gradient and metric sums of the batch."""
    totals = Totals()
    settings = settings_of(beta=BETA, temperature=TEMPERATURE, **changes)
    accumulate(PlainEngine(model.policy), build_objective(OBJECTIVES[name][0](), BUDGET), batch, settings, totals)
    return gradients(model), totals


def plain(
    model: Tiny, batch: Minibatch, loop: Callable, share: reference.TokenShare
) -> tuple[reference.Reference, list[float]]:
    """Loss and differences of reference and policy of the completions that are not masked, which are all there are.

    All in float64; the gradient is left behind.
    """
    rows = [(group.group.prompt, one.token_ids) for group in batch.groups for one in group.group.completions]
    kept = [flat for flat in range(NUM_COMPLETIONS) if flat not in MASKED]
    values = [plain_log_probs(model, *rows[flat], TEMPERATURE) for flat in kept]
    loss = loop(
        [row.tolist() for row in values],
        [batch.old_log_probs[flat].tolist() for flat in kept],
        [batch.advantages[flat] for flat in kept],
        [[True] * len(row) for row in values],
        NUM_COMPLETIONS,
        share=share,
    )
    total, all_differences = 0.0, []
    for row, slope, flat in zip(values, loss.gradient, kept, strict=True):
        differences = batch.reference_log_probs[flat].numpy() - np.array(row.tolist())
        all_differences += differences.tolist()
        # k3 = e^d - d - 1 with d = reference - policy has the slope 1 - e^d.
        slope = np.array(slope) - BETA * share(len(row), NUM_COMPLETIONS) * np.expm1(differences)
        total = total + (row * row.new_tensor(slope)).sum()
    total.backward()
    return loss, all_differences


def off_by(model: Tiny, batch: Minibatch) -> float:
    """By how much float32 may miss the difference of two log-probs, whatever the order of its sums.

    In units of eps / 2: a logit over the temperature is rounded twice, as the chosen one and inside the log-sum; the
    log-sum's own differences and sum and the log-prob's difference come to five more; log-probs that are stored, and
    the difference of two, to three: twelve roundings of numbers up to `size`. The log-sum has a term a word, and exp
    and log are good for 16 units.
    """
    log_probs = [*batch.old_log_probs, *batch.reference_log_probs]
    with torch.no_grad():
        rows = [(group.group.prompt, one.token_ids) for group in batch.groups for one in group.group.completions]
        logits = max(float(plain_logits(model, *row).abs().max()) / TEMPERATURE for row in rows)
    size = max(logits, *(float(row.abs().max()) for row in log_probs))
    return torch.finfo(torch.float32).eps / 2 * (12 * size + len(allowed_ids(model)) + 16)


@pytest.mark.parametrize("max_tokens", [100_000, 1], ids=["one forward", "one completion a row"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_loss_and_gradient_are_those_of_a_batch_without_its_tokens(model, batch, name, max_tokens):
    expected, differences = plain(model, batch, *OBJECTIVES[name][1:])
    expected_gradient = gradients(model)
    found, totals = found_on(model, batch, name, max_tokens=max_tokens)
    off = off_by(model, batch)
    gap, weight = relative_gap(found, expected_gradient)
    # Slope and probabilities, the factors of every part of the gradient, follow the exponential of a log-prob. Parts of
    # both signs cancel, but so do errors that are, one by one, a small share of what `off` allows for.
    assert gap <= off, weight
    # A token's term changes with its log-prob by at most what `magnitude` says.
    margin = off * expected.total_magnitude
    assert float(totals.metrics["add/policy_loss"]) == pytest.approx(expected.loss, rel=0, abs=margin)
    assert float(totals.num_tokens) == TOKENS_LEFT
    kl, kl_off = kl_sum(differences, off)
    assert float(totals.metrics["sum/kl"]) == pytest.approx(kl, rel=0, abs=kl_off)


def kl_sum(differences: list[float], off: float) -> tuple[float, float]:
    """Sum of k3 = e^d - d - 1, and by how much float32 may miss it where it misses each d by `off`."""
    d = np.array(differences)
    # The slope is e^d - 1. Three roundings of e^d, two of the differences, and one for each addition to the sum.
    k3, roundings = np.expm1(d) - d, 3 * np.exp(d) + 2 * (np.exp(d) + np.abs(d) + 1)
    unit = torch.finfo(torch.float32).eps / 2
    return float(k3.sum()), float((np.abs(np.expm1(d)) * off + unit * (roundings + len(d) * k3)).sum())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_whatever_a_masked_completion_brings_changes_not_a_bit(model, batch, name):
    def spoiled(rows):
        return tuple(torch.full_like(row, math.nan) if flat in MASKED else row for flat, row in enumerate(rows))

    advantages = tuple(math.inf if flat in MASKED else value for flat, value in enumerate(batch.advantages))
    junk = Minibatch(
        batch.groups, advantages, spoiled(batch.old_log_probs), spoiled(batch.reference_log_probs), masked=MASKED
    )
    expected, totals = found_on(model, batch, name)
    found, junk_totals = found_on(model, junk, name)
    assert all(torch.equal(found[weight], value) for weight, value in expected.items())
    assert junk_totals.metrics.keys() == totals.metrics.keys()
    assert all(torch.equal(junk_totals.metrics[key], value) for key, value in totals.metrics.items())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_with_every_completion_masked_nothing_moves_and_nothing_breaks(model, batch, name):
    engine = PlainEngine(model.copy().policy, step=True)
    empty = replace(batch, masked=frozenset(range(NUM_COMPLETIONS)))
    objective = build_objective(OBJECTIVES[name][0](), BUDGET)
    metrics = update_on(engine, objective, [empty], settings_of(beta=BETA), learning_rate=0.1, step=1).metrics
    assert metrics["policy_loss"] == metrics["grad_norm"] == metrics["num_skipped_updates"] == 0.0
    assert all(math.isfinite(value) for value in metrics.values())
    for weight, start in zip(engine.policy.parameters(), model.policy.parameters(), strict=True):
        assert torch.equal(weight, start)


@pytest.mark.parametrize("asked", [True, False])
def test_the_completions_cut_at_the_budget_are_masked_in_every_minibatch_if_asked(model, asked):
    """Rewards of cut completions still count in the mean of their group, so no advantage depends on the setting."""
    cut = ((False, True), (False, False), (True, True), (True, False))
    prompt = prompts_of(model)[2]
    groups = [
        scored(prompt, [completion((5, 6, 7), truncated=one) for one in pair], rewards=(1.0, 3.0)) for pair in cut
    ]
    settings = settings_of(num_minibatches=2, recompute=False)
    batches = make_minibatches(
        PlainEngine(model.policy), None, groups, settings, scale_rewards="none", mask_truncated=asked
    )
    assert [len(each.groups) for each in batches] == [2, 2]
    for each in batches:
        completions = [one for group in each.groups for one in group.group.completions]
        assert each.masked == {index for index, one in enumerate(completions) if asked and one.truncated}
        assert each.advantages == (-1.0, 1.0, -1.0, 1.0)
    assert sum(len(each.masked) for each in batches) == 4 * asked
