"""Work that is known to be nothing is left out, and the update is the same: flat groups, masked completions, old
log-probs of the first update, rows packed again."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.builders import completion, gradients, plain_log_probs, prompts_of, random_completions, relative_gap, scored
from tests.vlm_mhpo.update_cases import LENGTHS, NUM_TOKENS, PlainEngine, batch_of, settings_of
from vlm_mhpo.config import RolloutConfig, TrainConfig
from vlm_mhpo.config.objectives import OBJECTIVES, CustomConfig, MhpoConfig
from vlm_mhpo.models import logprobs
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training import micro_batches as packing
from vlm_mhpo.training.balance import balance, num_tokens
from vlm_mhpo.training.forwards import log_probs_of, packed_once, update_settings
from vlm_mhpo.training.minibatches import make_minibatches
from vlm_mhpo.training.token_statistics import Totals
from vlm_mhpo.training.update import accumulate, update_on

MHPO = build_objective(MhpoConfig(), 8)
# Two groups without an advantage; of the third one completion has none either, and one is masked.
FLAT = (0.0,) * 8 + (1.0, -1.0, 0.0, 0.5)
MASKED = frozenset({9})
ACTIVE = {8, 11}


@pytest.fixture(scope="module")
def model(tiny):
    return tiny("qwen2_5_vl")


@pytest.fixture(scope="module")
def batch(model):
    return replace(batch_of(model, reference=False), advantages=FLAT, masked=MASKED)


class CountingEngine(PlainEngine):
    """Counts forwards and their tokens."""

    def __init__(self, policy, **options) -> None:
        super().__init__(policy, **options)
        self.calls: list[int] = []

    def __call__(self, rows, **kwargs):
        self.calls.append(len(rows.target_N))
        return super().__call__(rows, **kwargs)


def lengths_of(indices) -> int:
    flat = [length for group in LENGTHS for length in group]
    return sum(flat[index] for index in indices)


@pytest.mark.parametrize("kind", OBJECTIVES, ids=[kind.model_fields["name"].default for kind in OBJECTIVES])
def test_loss_and_gradient_are_those_of_the_whole_batch(model, batch, kind):
    objective = build_objective(kind(), 8)
    found = {}
    for skips in (False, True):
        totals, engine = Totals(), CountingEngine(model.policy)
        assert accumulate(engine, objective, batch, settings_of(beta=0.0, skips_idle=skips), totals) == []
        found[skips] = gradients(model), float(totals.metrics["add/policy_loss"]), sum(engine.calls)
    gap, name = relative_gap(found[True][0], found[False][0])
    assert gap <= 1e-6, name
    assert found[True][1] == pytest.approx(found[False][1], abs=1e-7)
    assert (found[False][2], found[True][2]) == (NUM_TOKENS, lengths_of(ACTIVE))
    # The comparison could fail: there is a gradient.
    assert max(float(gradient.abs().max()) for gradient in found[True][0].values()) > 1e-3


@pytest.mark.parametrize(
    ("objective", "beta", "skips"),
    [
        (MhpoConfig(), 0.0, True),
        (MhpoConfig(), 0.1, False),
        # Nobody knows what it does with such a completion.
        (CustomConfig(path="tests/system/user_losses.py:negated_mhpo"), 0.0, False),
        (CustomConfig(path="{folder}/mine.py:says_so"), 0.0, True),
        (CustomConfig(path="{folder}/mine.py:says_so"), 0.1, False),
    ],
)
def test_only_what_adds_exactly_nothing_is_left_out(objective, beta, skips, tmp_path):
    (tmp_path / "mine.py").write_text(
        "def says_so(log_probs, old, advantages, mask, **_):\n"
        "    return -(advantages[:, None] * log_probs)[mask].sum(), {}\n\n\n"
        "says_so.scales_with_advantage = True\n"
    )
    if isinstance(objective, CustomConfig):
        objective = objective.model_copy(update={"path": objective.path.format(folder=tmp_path)})
    train = TrainConfig(max_steps=1, num_prompts_per_step=8)
    settings = update_settings(train, RolloutConfig(), build_objective(objective, 8), beta=beta, pad_id=0)
    assert settings.skips_idle is skips


def test_a_batch_without_any_advantage_is_still_one_update_with_a_gradient_of_zero(model, batch):
    """Adam's moments and weight decay move on as they did."""
    nothing = replace(batch, advantages=(0.0,) * len(FLAT))
    engine = CountingEngine(model.policy)
    done = update_on(engine, MHPO, [nothing], settings_of(beta=0.0, skips_idle=True), learning_rate=0.5, step=1)
    assert engine.learning_rates == [0.5]
    assert (done.grad_norms, done.metrics["policy_loss"], done.metrics["idle_tokens"]) == ([0.0], 0.0, 1.0)
    # There is no token of which these could speak.
    assert not done.metrics.keys() & {"entropy", "ratio_mean", "ratio_max", "kl_to_sampler/last_minibatch"}
    # One forward, of the shortest row there is.
    rows = zip(prompts_of(model)[::-1], LENGTHS, strict=True)
    shortest = min((prompt.num_tokens + length, length) for prompt, group in rows for length in group)
    assert engine.calls == [shortest[1]]


@pytest.mark.parametrize("kind", OBJECTIVES, ids=[kind.model_fields["name"].default for kind in OBJECTIVES])
def test_with_rows_packed_alike_weights_are_equal_bit_for_bit(model, batch, kind):
    weights = []
    for skips in (False, True):
        mine = model.copy()
        # Two updates: the second sees ratios on both sides of 1.
        settings = settings_of(beta=0.0, skips_idle=skips, max_tokens=1, num_iterations=2)
        engine = PlainEngine(mine.policy, step=True)
        metrics = update_on(engine, build_objective(kind(), 8), [batch], settings, learning_rate=0.05, step=1).metrics
        assert metrics["idle_tokens"] == pytest.approx(1 - lengths_of(ACTIVE) / NUM_TOKENS if skips else 0.0)
        weights.append(dict(mine.policy.named_parameters()))
    assert all(torch.equal(weights[1][name], value) for name, value in weights[0].items())
    start = dict(model.policy.named_parameters())
    assert any(not torch.equal(start[name], value) for name, value in weights[0].items())


def test_groups_that_no_forward_reads_weigh_nothing_for_the_balance_of_ranks(model, monkeypatch):
    heard = []
    monkeypatch.setattr(ranks, "world_size", lambda: 2)
    # The other rank has the same, so that nothing moves.
    monkeypatch.setattr(ranks, "gather_objects", lambda value: heard.append(value) or [value, value])
    groups = groups_of(model, [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
    whole = [num_tokens(group) for group in groups]
    balance(groups, 2, skips_flat=False)
    balance(groups, 2, skips_flat=True)
    assert heard == [whole, [whole[0], 0, whole[2], 0]]


def test_ranks_run_equally_many_forwards_whatever_is_idle(model, batch, monkeypatch):
    busy = packed_once(model.policy, batch, settings_of(skips_idle=True, max_tokens=1)).packed
    assert len(busy) == len(ACTIVE) and not any(each.is_padding for each in busy)
    monkeypatch.setattr(ranks, "largest", lambda number: max(number, len(busy)))
    idle = replace(batch, advantages=(0.0,) * len(FLAT))
    padded = packed_once(model.policy, idle, settings_of(skips_idle=True, max_tokens=1)).packed
    assert [each.is_padding for each in padded] == [True] * len(busy)


def test_entropies_that_nobody_reads_are_not_computed(model, batch, monkeypatch):
    settings = settings_of()
    (micro_batch,) = packed_once(model.policy, batch, settings).packed
    with torch.no_grad():
        both, _ = model.policy(micro_batch.rows, temperature=0.9, chunk_size=4096)

    def never(logits_NV):
        raise AssertionError("an entropy was computed")

    monkeypatch.setattr(logprobs, "entropy", never)
    found = log_probs_of(model.policy, model.policy, batch.groups, settings)
    rows_BT, _ = micro_batch.scatter(both)
    for flat, row_T in zip(micro_batch.completion_indices, rows_BT, strict=True):
        assert torch.equal(found[flat], row_T[: len(found[flat])])


# ---- old log-probs -----------------------------------------------------------------------------------------------


def groups_of(model, rewards) -> list:
    """Two completions a prompt, with log-probs of the sampler's that are off by some tenths of a nat."""
    random, groups = np.random.default_rng(3), []
    for index, (prompt, pair) in enumerate(zip(prompts_of(model)[:2] * 2, rewards, strict=True)):
        ids = random_completions(model, (4, 6), seed=index)
        rows = []
        for one in ids:
            with torch.no_grad():
                exact = plain_log_probs(model, prompt, one, 0.9)
            rows.append(completion(one, (exact + torch.from_numpy(random.normal(0, 0.3, len(one)))).tolist()))
        groups.append(scored(prompt, rows, rewards=pair))
    return groups


def test_only_later_minibatches_need_a_forward_for_their_old_log_probs(model):
    engine, settings = CountingEngine(model.policy), settings_of(beta=0.0, num_minibatches=2, skips_idle=True)
    # The second and the last group are flat.
    groups = groups_of(model, [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (0.0, 0.0)])
    first, second = make_minibatches(engine, None, groups, settings, scale_rewards="none")
    assert sum(engine.calls) == 10
    assert (first.fresh, second.fresh) == (frozenset(range(4)), frozenset())
    exact = log_probs_of(model.policy, model.policy, second.groups, settings)
    for flat, row_T in enumerate(second.old_log_probs):
        sampled = second.groups[flat // 2].group.completions[flat % 2].log_probs
        assert torch.allclose(row_T, exact[flat] if flat < 2 else sampled, atol=1e-6)


@pytest.mark.parametrize("num_iterations", [1, 3])
def test_the_first_forwards_own_log_probs_do_what_recomputed_ones_did(model, num_iterations):
    settings = settings_of(beta=0.0, num_iterations=num_iterations)
    groups = groups_of(model, [(1.0, 0.0), (1.0, 1.0), (0.0, 1.0), (2.0, 0.0)])
    (fresh,) = make_minibatches(PlainEngine(model.policy), None, groups, settings, scale_rewards="none")
    explicit = replace(
        fresh, old_log_probs=log_probs_of(model.policy, model.policy, groups, settings), fresh=frozenset()
    )
    weights, metrics = [], []
    for batch in (fresh, explicit):
        mine = model.copy()
        engine = PlainEngine(mine.policy, step=True)
        metrics.append(update_on(engine, MHPO, [batch], settings, learning_rate=0.05, step=1).metrics)
        weights.append({name: value.detach().clone() for name, value in mine.policy.named_parameters()})
    gap, name = relative_gap(weights[0], weights[1])
    assert gap <= 1e-6, name
    for name in ("policy_loss", "kl_to_sampler", "ratio_mean", "ratio_max"):
        assert metrics[0][name] == pytest.approx(metrics[1][name], abs=1e-6)
    if num_iterations == 1:
        assert metrics[0]["ratio_min"] == metrics[0]["ratio_max"] == 1.0
    # The distance to the sampler is measured all the same, before anything moved.
    gaps = [
        (one.log_probs - exact).abs()
        for one, exact in zip(
            [one for group in groups for one in group.group.completions],
            log_probs_of(model.policy, model.policy, groups, settings),
            strict=True,
        )
    ]
    assert metrics[0]["sampling/sampling_logp_difference/mean"] == pytest.approx(
        float(torch.cat(gaps).mean()), abs=1e-5
    )
    assert metrics[0]["sampling/sampling_logp_difference/max"] == pytest.approx(float(torch.cat(gaps).max()), abs=1e-5)


def test_a_minibatch_is_packed_once_for_all_its_forwards(model, monkeypatch):
    built = []
    original = packing.pack_rows
    monkeypatch.setattr(
        packing, "pack_rows", lambda items, *a, **k: built.append(len(items)) or original(items, *a, **k)
    )
    settings = settings_of(beta=0.0, num_minibatches=2, num_iterations=3)
    groups = groups_of(model, [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (2.0, 0.0)])
    engine = CountingEngine(copy.deepcopy(model.policy))
    batches = make_minibatches(engine, None, groups, settings, scale_rewards="none")
    update_on(engine, MHPO, batches, settings, learning_rate=0.0, step=1)
    assert built == [2, 2]
    assert len(engine.calls) == 1 + 2 * 3
