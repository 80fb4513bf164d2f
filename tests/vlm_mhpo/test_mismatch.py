"""Weights against the gap of two engines: values and gradients against a computation in float64 of its own."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.builders import completion, gradients, plain_log_probs, relative_gap
from tests.vlm_mhpo.config_cases import minimal
from tests.vlm_mhpo.update_cases import PlainEngine, batch_of, settings_of
from vlm_mhpo.config import GrpoConfig, MismatchConfig, parse_config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.objectives.mismatch import mismatch_ratios, mismatch_weights
from vlm_mhpo.training.update import update_on
from vlm_mhpo.types import Group, ScoredGroup

# Nats, trainer minus sampler: rounding, an outlier above, one below, far beyond float32's exp.
GAPS = [[0.001, -0.002, 1.5, 0.0], [-2.0, 0.1, 0.3], [2.0, 2.1], [-90.0]]
MODES = ("token", "sequence", "geometric", "icepop")
RATIO = "sampling/importance_sampling_ratio/"


def ratio_of(gaps: list[float], mode: str) -> list[float]:
    """By hand, in Python's float64."""
    if mode == "sequence":
        return [math.exp(sum(gaps))] * len(gaps)
    if mode == "geometric":
        return [math.exp(sum(gaps) / len(gaps))] * len(gaps)
    return [math.exp(gap) for gap in gaps]


def weight_of(ratio: float, mode: str, low: float, high: float) -> float:
    if ratio < low or (mode == "icepop" and ratio > high):
        return 0.0
    return min(ratio, high)


@pytest.mark.parametrize(("low", "high"), [(0.0, 3.0), (0.5, 5.0), (0.9, 1.2)])
@pytest.mark.parametrize("mode", MODES)
def test_ratios_and_weights_are_those_of_the_formulas(mode, low, high):
    width = max(map(len, GAPS))
    mask_BT = torch.tensor([[time < len(row) for time in range(width)] for row in GAPS])
    sampler_BT = torch.full((len(GAPS), width), torch.nan, dtype=torch.float64).masked_fill(mask_BT, -1.25)
    trainer_BT = sampler_BT.clone()
    for row, gaps in enumerate(GAPS):
        trainer_BT[row, : len(gaps)] += torch.tensor(gaps, dtype=torch.float64)
    ratio_BT = mismatch_ratios(trainer_BT, sampler_BT, mask_BT, mode)
    weight_BT = mismatch_weights(ratio_BT, mode, low, high)
    for row, gaps in enumerate(GAPS):
        expected = ratio_of(gaps, mode)
        assert ratio_BT[row, : len(gaps)].tolist() == pytest.approx(expected, rel=1e-12)
        weights = [weight_of(one, mode, low, high) for one in expected]
        assert weight_BT[row, : len(gaps)].tolist() == pytest.approx(weights, rel=1e-12)
    # What is masked is not looked at, NaN included.
    assert ratio_BT[~mask_BT].tolist() == [1.0] * int((~mask_BT).sum())


def test_without_a_mode_every_weight_is_one_and_the_ratio_is_the_tokens():
    ratio_BT = mismatch_ratios(torch.tensor([[-1.0]]), torch.tensor([[-3.0]]), torch.tensor([[True]]), "none")
    assert ratio_BT.item() == pytest.approx(math.exp(2.0), rel=1e-6)
    assert mismatch_weights(ratio_BT, "none", 0.0, 3.0).tolist() == [[1.0]]


@pytest.mark.parametrize("config", [MismatchConfig(mode=mode) for mode in ("none", *MODES)], ids=lambda one: one.mode)
def test_the_update_weighs_each_tokens_term_and_records_the_raw_ratios(tiny, config):
    model = tiny("qwen2").copy()
    model.policy.to(torch.float64)
    random = np.random.default_rng(3)
    batch = batch_of(model, reference=False)
    # Old log-probs are the trainer's own; the sampler's lie half a nat away, a few tokens further.
    gaps = [random.normal(0, 0.5, len(old)) for old in batch.old_log_probs]
    sampled = iter(old - torch.from_numpy(gap) for old, gap in zip(batch.old_log_probs, gaps, strict=True))
    groups = [with_log_probs(group, sampled) for group in batch.groups]
    batch = replace(batch, groups=groups)
    objective = build_objective(GrpoConfig(epsilon=0.2, aggregation="token_mean"), 16)
    settings = settings_of(beta=0.0, mismatch=config)
    engine = PlainEngine(model.policy)
    kept = {}
    engine.update = lambda learning_rate: kept.update(gradients(model)) or PlainResult()
    metrics = update_on(engine, objective, [batch], settings, learning_rate=1.0, step=1).metrics
    # The same in float64 by stock transformers: GRPO's clipped surrogate, token by token.
    ratios = [ratio_of(gap.tolist(), config.mode) for gap in gaps]
    low, high = config.bounds
    loss, num_tokens, flat = 0.0, sum(map(len, gaps)), 0
    for group in batch.groups:
        for one in group.group.completions:
            now = plain_log_probs(model, group.group.prompt, one.token_ids, settings.temperature)
            r, advantage = (now - batch.old_log_probs[flat]).exp(), batch.advantages[flat]
            weights = [
                1.0 if config.mode == "none" else weight_of(each, config.mode, low, high) for each in ratios[flat]
            ]
            term = torch.minimum(r * advantage, r.clamp(0.8, 1.2) * advantage) * torch.tensor(
                weights, dtype=torch.float64
            )
            loss = loss - term.sum() / num_tokens
            flat += 1
    loss.backward()
    gap, worst = relative_gap(kept, gradients(model))
    assert gap < 1e-4, worst
    assert metrics["policy_loss"] == pytest.approx(float(loss), rel=1e-4)
    raw = [one for row in ratios for one in row]
    assert metrics[f"{RATIO}mean"] == pytest.approx(sum(raw) / len(raw), rel=1e-4)
    assert metrics[f"{RATIO}min"] == pytest.approx(min(raw), rel=1e-4)
    assert metrics[f"{RATIO}max"] == pytest.approx(max(raw), rel=1e-4)


class PlainResult:
    applied, grad_norm = True, 1.0


def with_log_probs(group: ScoredGroup, sampled) -> ScoredGroup:
    completions = tuple(replace(completion(one.token_ids), log_probs=next(sampled)) for one in group.group.completions)
    return replace(group, group=Group(group.group.prompt, completions))


def test_bounds_that_cross_and_a_sampler_without_a_second_engine_are_refused():
    with pytest.raises(ConfigError, match=r"rollout.mismatch.min=6 is not below rollout.mismatch.max=5"):
        parse_config(minimal(rollout__mismatch={"mode": "icepop", "min": 6}))
    with pytest.raises(ConfigError, match=r"set rollout.old_log_probs=trainer"):
        parse_config(minimal(rollout={"mismatch": {"mode": "token"}, "old_log_probs": "sampler"}))
