"""An update's gradient is the objective's over the whole minibatch, however it is cut, padded or shared by ranks.

The engine is a plain stand-in: it forwards to the policy and calls `loss.backward()`.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.builders import (
    Tiny,
    completion,
    gradients,
    pixels_of,
    plain_log_probs,
    plain_logits,
    prompts_of,
    random_completions,
    relative_gap,
    scored,
    with_media,
)
from tests.builders import allowed_ids as allowed_ids_of
from tests.vlm_mhpo.update_cases import NUM_COMPLETIONS, NUM_TOKENS, PlainEngine, batch_of, settings_of
from vlm_mhpo.config import OBJECTIVES, GrpoConfig, MhpoConfig
from vlm_mhpo.engine.deepspeed import UpdateResult
from vlm_mhpo.errors import NonFiniteError
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.records.metrics import reduce_metrics
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training import update
from vlm_mhpo.training.forwards import log_probs_of, micro_batches_of
from vlm_mhpo.training.token_statistics import Totals
from vlm_mhpo.training.update import accumulate, update_on
from vlm_mhpo.types import Minibatch

BUDGETS = {"one forward": 100_000, "groups cut": 50, "one completion a row": 1}
MHPO, GRPO = build_objective(MhpoConfig(), 8), build_objective(GrpoConfig(), 8)


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("qwen2_5_vl")


@pytest.fixture(scope="module")
def batch(model):
    return batch_of(model)


@pytest.fixture(scope="module")
def precise(model):
    """The model with float64 weights: differently shaped products of float32 already differ by 1.2e-6."""
    mine = model.copy()
    mine.policy.double()
    return mine


def gradient_of(model: Tiny, batch: Minibatch, objective=MHPO, **changes):
    totals = Totals()
    bad = accumulate(PlainEngine(model.policy), objective, batch, settings_of(**changes), totals)
    return gradients(model), totals, bad


# ---- gradients -------------------------------------------------------------------------------------------------


def plain_gradient(model: Tiny, batch: Minibatch, objective, beta: float):
    """The same loss with one [1, T] call a completion of the stock model's log-probs, KL written out."""
    counts = {"num_completions": NUM_COMPLETIONS, "num_tokens": NUM_TOKENS}
    flat = 0
    for group in batch.groups:
        for one in group.group.completions:
            ids = one.token_ids
            log_probs = plain_log_probs(model, group.group.prompt, ids, 0.9)[None]
            old = batch.old_log_probs[flat][None]
            advantage = torch.tensor([batch.advantages[flat]])
            mask = torch.ones(1, len(ids), dtype=torch.bool)
            loss, _ = objective.loss(log_probs, old, advantage, mask, **counts)
            difference = batch.reference_log_probs[flat][None] - log_probs
            kl = torch.exp(difference) - difference - 1
            (loss + beta * objective.aggregate(kl, mask, **counts)).backward()
            flat += 1
    return gradients(model)


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("objective", [MHPO, GRPO], ids=["mhpo", "grpo"])
def test_the_gradient_is_that_of_plain_rows_a_completion_at_a_time(model, batch, objective, budget):
    expected = plain_gradient(model, batch, objective, beta=0.05)
    found, _, bad = gradient_of(model, batch, objective, max_tokens=BUDGETS[budget])
    gap, name = relative_gap(found, expected)
    assert gap <= 1e-5, name
    assert bad == []


@pytest.mark.parametrize("kind", OBJECTIVES, ids=[kind.model_fields["name"].default for kind in OBJECTIVES])
def test_every_objective_adds_up_over_micro_batches(model, batch, kind):
    objective = build_objective(kind(), 8)
    expected = plain_gradient(model, batch, objective, beta=0.05)
    found, _, _ = gradient_of(model, batch, objective, max_tokens=BUDGETS["groups cut"])
    gap, name = relative_gap(found, expected)
    assert gap <= 1e-5, name


@pytest.mark.parametrize("budget", [1, 40, 50, 80, 130])
def test_cutting_the_batch_differently_gives_the_same_gradient(precise, batch, budget):
    whole, totals, _ = gradient_of(precise, batch)
    cut, cut_totals, _ = gradient_of(precise, batch, max_tokens=budget)
    difference = math.fsum(float((cut[name] - whole[name]).double().square().sum()) for name in whole) ** 0.5
    assert difference <= 1e-6 * math.fsum(float(value.double().square().sum()) for value in whole.values()) ** 0.5
    assert cut_totals.metrics.keys() == totals.metrics.keys()
    for name, value in totals.metrics.items():
        assert float(cut_totals.metrics[name]) == pytest.approx(float(value), rel=1e-5, abs=1e-6), name


def test_the_cuts_of_the_test_above_are_cuts(model, batch):
    counts = [
        len(list(micro_batches_of(model.policy, batch.groups, settings_of(max_tokens=n))))
        for n in (100_000, 130, 50, 1)
    ]
    assert counts[0] == 1
    assert counts == sorted(counts)
    assert counts[-1] == 12


@pytest.mark.parametrize("extra", [1, 3])
def test_padding_micro_batches_count_exactly_nothing(model, batch, monkeypatch, extra):
    expected, totals, _ = gradient_of(model, batch, max_tokens=60)
    monkeypatch.setattr(ranks, "largest", lambda count: count + extra)
    padded = list(micro_batches_of(model.policy, batch.groups, settings_of(max_tokens=60)))
    assert [one.is_padding for one in padded][-extra:] == [True] * extra
    assert sum(one.is_padding for one in padded) == extra
    found, padded_totals, _ = gradient_of(model, batch, max_tokens=60)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert padded_totals.num_tokens == totals.num_tokens
    assert padded_totals.metrics.keys() == totals.metrics.keys()
    assert all(torch.equal(padded_totals.metrics[name], value) for name, value in totals.metrics.items())


def test_a_rank_that_only_pads_has_no_gradient(model, batch):
    padding = replace(next(iter(micro_batches_of(model.policy, batch.groups, settings_of()))), is_padding=True)
    log_probs_N, _ = model.policy(padding.rows, temperature=0.9, chunk_size=4096)
    log_probs_BT, mask_BT = padding.scatter(log_probs_N)
    assert not mask_BT.any()
    zeros, ones = torch.zeros_like(log_probs_BT), torch.ones(mask_BT.shape[0])
    loss, _ = MHPO.loss(log_probs_BT, zeros, ones, mask_BT, num_completions=12, num_tokens=NUM_TOKENS)
    loss.backward()
    assert float(loss.detach()) == 0.0
    assert all(bool((value == 0).all()) for value in gradients(model).values())


@pytest.mark.parametrize("kind", OBJECTIVES, ids=[kind.model_fields["name"].default for kind in OBJECTIVES])
def test_the_gradients_of_two_ranks_add_up_to_that_of_one(model, batch, monkeypatch, kind):
    """Each rank holds some of the completions and divides by all of them; the collectives are played."""
    objective = build_objective(kind(), 8)
    expected, totals, _ = gradient_of(model, batch, objective)
    parts, tokens = [], 0.0
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    monkeypatch.setattr(ranks, "largest", lambda count: count)
    monkeypatch.setattr(ranks, "reduce", lambda value, operation: torch.tensor([NUM_COMPLETIONS, NUM_TOKENS]))
    for groups in (slice(0, 1), slice(1, 3)):
        flat = slice(groups.start * 4, groups.stop * 4)
        constants = (batch.advantages[flat], batch.old_log_probs[flat], batch.reference_log_probs[flat])
        found, part_totals, _ = gradient_of(model, Minibatch(batch.groups[groups], *constants), objective)
        parts.append(found)
        tokens += float(part_totals.num_tokens)
    together = {name: parts[0][name] + parts[1][name] for name in expected}
    gap, name = relative_gap(together, expected)
    assert gap <= 1e-5, name
    assert tokens == float(totals.num_tokens) == NUM_TOKENS


def test_completions_of_very_different_length_weigh_the_same(model):
    """Per-completion mean: with equal advantages and ratio 1, a completion of 1 token pulls as hard as one of 8."""
    prompt = prompts_of(model)[2]
    for length in (1, 8):
        (ids,) = random_completions(model, (length,), seed=length)
        (values,) = log_probs_of(model.policy, model.policy, [scored(prompt, [completion(ids)])], settings_of())
        totals = Totals()
        batch = Minibatch([scored(prompt, [completion(ids)])], (1.0,), (values,))
        accumulate(PlainEngine(model.policy), GRPO, batch, settings_of(beta=0.0), totals)
        gradients(model)
        # GRPO at ratio 1: minus the advantage, whatever the length.
        assert float(totals.metrics["add/policy_loss"]) == pytest.approx(-1.0, abs=1e-5)


@pytest.mark.parametrize("beta", [0.01, 0.5])
def test_the_kl_term_pulls_with_its_exact_gradient(model, beta):
    """k3 = e^d - d - 1 with d = reference - policy has the gradient 1 - e^d in the policy's log-prob."""
    prompt = prompts_of(model)[2]
    (ids,) = random_completions(model, (3,), seed=2)
    group = scored(prompt, [completion(ids)])
    (old,) = log_probs_of(model.policy, model.policy, [group], settings_of())
    differences = (0.3, -0.7, 0.001)
    reference = old + torch.tensor(differences)
    # No advantage: the KL term is all there is.
    found, _, _ = gradient_of(model, Minibatch([group], (0.0,), (old,), (reference,)), beta=beta)
    factors = torch.tensor([1.0 - math.exp(d) for d in differences]) * beta / 3
    (plain_log_probs(model, prompt, ids, 0.9) * factors).sum().backward()
    gap, name = relative_gap(found, gradients(model))
    assert gap <= 1e-4, name


# ---- log-probs -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", BUDGETS)
def test_old_log_probs_are_the_stock_models_in_the_order_of_the_completions(model, batch, monkeypatch, budget):
    monkeypatch.setattr(ranks, "largest", lambda count: count + 1)
    found = log_probs_of(model.policy, model.policy, batch.groups, settings_of(max_tokens=BUDGETS[budget]))
    flat = 0
    for group in batch.groups:
        for one in group.group.completions:
            with torch.no_grad():
                expected = plain_log_probs(model, group.group.prompt, one.token_ids, 0.9).tolist()
            assert found[flat] == pytest.approx(expected, abs=1e-5)
            flat += 1
    assert flat == len(found)


# ---- metrics ---------------------------------------------------------------------------------------------------


def test_metrics_are_those_of_a_float64_count(model, batch):
    metrics = update_on(
        PlainEngine(model.policy), GRPO, [batch], settings_of(max_tokens=60), learning_rate=1e-3, step=1
    ).metrics
    ratios, entropies, losses, kls, sizes, flat = [], [], [], [], [], 0
    allowed = allowed_ids_of(model)
    for group in batch.groups:
        for one in group.group.completions:
            with torch.no_grad():
                logits = plain_logits(model, group.group.prompt, one.token_ids)[:, allowed].double() / 0.9
            log_p = logits.log_softmax(dim=-1)
            entropies += (-(log_p.exp() * log_p).sum(dim=-1)).tolist()
            chosen = log_p[range(len(one.token_ids)), [allowed.index(i) for i in one.token_ids]].numpy()
            log_ratio = chosen - batch.old_log_probs[flat].numpy()
            ratio = np.exp(log_ratio)
            difference = batch.reference_log_probs[flat].numpy() - chosen
            advantage = batch.advantages[flat]
            losses.append(-np.minimum(ratio * advantage, ratio.clip(0.8, 1.2) * advantage).mean())
            ratios += ratio.tolist()
            kls += (np.exp(difference) - difference - 1).tolist()
            sizes += (ratio - 1 - log_ratio).tolist()
            flat += 1
    assert metrics["policy_loss"] == pytest.approx(np.mean(losses), abs=1e-5)
    assert metrics["entropy"] == pytest.approx(np.mean(entropies), abs=1e-4)
    assert metrics["ratio_mean"] == pytest.approx(np.mean(ratios), abs=1e-5)
    assert metrics["ratio_min"] == pytest.approx(min(ratios), abs=1e-5)
    assert metrics["ratio_max"] == pytest.approx(max(ratios), abs=1e-5)
    assert metrics["kl"] == pytest.approx(np.mean(kls), abs=1e-5)
    assert metrics["kl_to_sampler"] == pytest.approx(np.mean(sizes), abs=1e-5)
    assert metrics["learning_rate"] == 1e-3
    assert metrics["num_skipped_updates"] == 0.0
    assert metrics["grad_norm"] == metrics["grad_norm/max"] > 0


def test_the_samplers_error_is_the_one_before_the_first_update(model, batch):
    engine = PlainEngine(model.copy().policy, step=True)
    settings = settings_of(recompute=False, num_iterations=2)
    fresh = replace(batch, fresh=frozenset(range(NUM_COMPLETIONS)))
    metrics = update_on(engine, GRPO, [fresh], settings, learning_rate=0.05, step=1).metrics
    gaps = []
    flat = 0
    for group in batch.groups:
        for one in group.group.completions:
            with torch.no_grad():
                current = plain_log_probs(model, group.group.prompt, one.token_ids, 0.9).numpy()
            gaps += np.abs(current - batch.old_log_probs[flat].numpy()).tolist()
            flat += 1
    assert metrics["sampling/sampling_logp_difference/mean"] == pytest.approx(np.mean(gaps), abs=1e-4)
    assert metrics["sampling/sampling_logp_difference/max"] == pytest.approx(max(gaps), abs=1e-4)


def test_every_minibatch_of_every_pass_is_one_update_at_the_rate_given(model, batch):
    half = Minibatch(batch.groups[:1], batch.advantages[:4], batch.old_log_probs[:4], batch.reference_log_probs[:4])
    engine = PlainEngine(model.policy)
    update_on(engine, MHPO, [half, batch], settings_of(num_iterations=3), learning_rate=0.25, step=1)
    assert engine.learning_rates == [0.25] * 6


def test_updates_move_the_policy_towards_better_completions(model):
    mine = model.copy()
    engine = PlainEngine(mine.policy, step=True)
    prompt = prompts_of(mine)[1]
    group = scored(prompt, [completion(ids) for ids in random_completions(mine, (3, 4), seed=5)])
    old = log_probs_of(mine.policy, mine.policy, [group], settings_of())
    batch = Minibatch([group], (1.0, -1.0), old)
    update_on(engine, MHPO, [batch], settings_of(beta=0.0, num_iterations=3), learning_rate=0.02, step=1)
    new = log_probs_of(mine.policy, mine.policy, [group], settings_of())
    assert sum(new[0]) > sum(old[0])
    assert sum(new[1]) < sum(old[1])


# ---- not finite ------------------------------------------------------------------------------------------------

POISONS = ("old nan", "old inf", "old -inf", "advantage nan", "pixels nan")


def poisoned(batch: Minibatch, kind: str) -> Minibatch:
    """The batch with something not finite in completion 5, the second of prompt "one"."""
    place, _, value = kind.partition(" ")
    value = float(value)
    if place == "old":
        old = list(batch.old_log_probs)
        old[5] = torch.cat([torch.tensor([value]), old[5][1:]])
        return replace(batch, old_log_probs=tuple(old))
    if place == "advantage":
        return replace(batch, advantages=(*batch.advantages[:5], value, *batch.advantages[6:]))
    groups = list(batch.groups)
    prompt = groups[1].group.prompt
    prompt = with_media(prompt, pixel_values=torch.full_like(pixels_of(prompt), value))
    groups[1] = replace(groups[1], group=replace(groups[1].group, prompt=prompt))
    return replace(batch, groups=groups)


@pytest.mark.parametrize("kind", POISONS)
def test_what_is_not_finite_stops_and_names_step_and_prompt(model, batch, kind):
    mine = model.copy()
    before = {name: weight.clone() for name, weight in mine.policy.named_parameters()}
    engine = PlainEngine(mine.policy, step=True)
    with pytest.raises(NonFiniteError) as caught:
        update_on(engine, MHPO, [poisoned(batch, kind)], settings_of(max_tokens=1), learning_rate=0.1, step=17)
    assert "step 17" in str(caught.value)
    assert "rank 0: prompts one)" in str(caught.value)
    # The rank got as far as the update, where all agree; one that stops before leaves the others waiting.
    assert engine.learning_rates == [0.1]
    assert all(torch.equal(weight, before[name]) for name, weight in mine.policy.named_parameters())


@pytest.mark.parametrize("kind", POISONS)
def test_skipping_goes_on_and_counts(model, batch, capsys, kind):
    mine = model.copy()
    engine = PlainEngine(mine.policy, step=True)
    batches = [poisoned(batch, kind), batch]
    metrics = update_on(engine, MHPO, batches, settings_of(on_nonfinite="skip"), learning_rate=0.01, step=17).metrics
    assert metrics["num_skipped_updates"] == 1.0
    assert math.isfinite(metrics["grad_norm"])
    assert all(math.isfinite(value) for value in metrics.values())
    assert "WARNING: step 17" in capsys.readouterr().out
    assert all(torch.isfinite(weight).all() for weight in mine.policy.parameters())


@pytest.mark.parametrize("kind", ["old nan", "pixels nan"])
def test_a_rank_with_a_bad_minibatch_calls_the_same_collectives_as_the_others(model, batch, monkeypatch, kind):
    """reduce_metrics stacks one number a name: other names, or fewer calls, on one rank do not fit the others'."""

    class Refusing(PlainEngine):
        """The first update is refused on every rank, because one of them had a bad gradient."""

        def update(self, learning_rate: float) -> UpdateResult:
            first = not self.learning_rates
            result = super().update(learning_rate)
            return UpdateResult(False, math.nan) if first else result

    called: list[list[tuple]] = []
    plain_reduce = reduce_metrics

    def listening(metrics, count):
        called[-1].append(tuple(sorted(metrics)))
        return plain_reduce(metrics, count)

    monkeypatch.setattr(update, "reduce_metrics", listening)
    for first in (batch, poisoned(batch, kind)):
        called.append([])
        settings = settings_of(on_nonfinite="skip")
        update_on(Refusing(model.policy), MHPO, [first, batch], settings, learning_rate=0.01, step=1)
    assert called[0] == called[1] != []


@pytest.mark.parametrize("aggregation", ["completion_mean", "token_mean"])
def test_the_entropy_bonus_pulls_with_its_exact_gradient(precise, batch, aggregation):
    """Beside the same loss without it: minus the mean entropy of the tokens' distributions, by torch."""
    objective = build_objective(GrpoConfig(aggregation=aggregation), 8)
    without, _, _ = gradient_of(precise, batch, objective)
    found, _, _ = gradient_of(precise, batch, objective, entropy_coef=0.3, max_tokens=BUDGETS["groups cut"])
    allowed, means = allowed_ids_of(precise), []
    for group in batch.groups:
        for one in group.group.completions:
            logits = plain_logits(precise, group.group.prompt, one.token_ids)[:, allowed] / 0.9
            entropy_T = torch.distributions.Categorical(logits=logits).entropy()
            share = len(entropy_T) * NUM_COMPLETIONS if aggregation == "completion_mean" else NUM_TOKENS
            means.append(entropy_T.sum() / share)
    (-0.3 * sum(means)).backward()
    expected = gradients(precise)
    gap, name = relative_gap({name: found[name] - value for name, value in without.items()}, expected)
    assert gap <= 1e-4, name


def test_completions_without_an_advantage_are_read_where_entropy_counts():
    from vlm_mhpo.config import RolloutConfig, TrainConfig
    from vlm_mhpo.training.forwards import update_settings

    sections = TrainConfig(max_steps=1, num_prompts_per_step=4), RolloutConfig(num_generations=2)
    skips = [update_settings(*sections, GRPO, beta=0.0, pad_id=0, entropy_coef=each).skips_idle for each in (0.0, 0.1)]
    assert skips == [True, False]
