"""Do sampler and trainer agree? The same completions' log-probs by both, on a few prompts; loads the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from vlm_mhpo.checkpoint.opening import open_policy
from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.config import Config, FaultsConfig
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.prompts.builder import prompt_builder
from vlm_mhpo.prompts.rows import read_rows
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.build import build_sampler
from vlm_mhpo.rollout.finite import all_finite
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.forwards import log_probs_of, update_settings
from vlm_mhpo.types import ScoredGroup

NUM_PROMPTS, NUM_SAMPLES, MOST_TOKENS = 2, 2, 128
# Float32's own rounding is 1e-4 at the logits and keys of real models, 1e-3 at the largest known. In bfloat16 one token
# may be far off by rounding alone, so the mean is held, to what a run may have.
LIMITS = {"float32": ("max", 2e-3), "bfloat16": ("mean", FaultsConfig().max_sampling_gap)}
CURES = {
    "float32": "sampler and trainer compute different things, so do not train with this model, and report it with the "
    "versions above",
    "bfloat16": "try `--parity model.dtype=float32`: if that agrees, bfloat16 is too coarse for these weights, and "
    "model.dtype=float32 trains the policy that samples; if not, report the model with the versions above",
}


def examine_parity(config: Config, scratch: Path) -> Iterator[Check]:
    """Sample a few completions and compare; nats. `scratch` holds a tiny model, if one is built."""
    ranks.start(config.num_threads)
    opened = open_policy(config.model, scratch, "judge")
    policy, codec = opened.policy, opened.codec
    builder = prompt_builder(config.data, codec, policy.family)
    data = config.data
    rows = read_rows(data.train, data, data.train_split, NUM_PROMPTS, skips_bad=data.on_bad_row == "skip")
    rollout = config.rollout
    sampler = build_sampler(rollout, policy, codec)
    params = SamplingParams(NUM_SAMPLES, min(MOST_TOKENS, rollout.max_completion_length), rollout.temperature)
    groups = all_finite(sampler.sample([builder(row) for row in rows], params, (config.seed, "parity")))
    objective = build_objective(config.objective, rollout.max_completion_length)
    settings = update_settings(config.train, rollout, objective, beta=0.0, pad_id=codec.pad_id)
    unscored = [ScoredGroup(group, (0.0,) * NUM_SAMPLES, {}, (), ()) for group in groups]
    trained = log_probs_of(policy, policy, unscored, settings)
    sampled = [completion.log_probs for group in groups for completion in group.completions]
    gaps_N = (torch.cat(sampled).double() - torch.cat(trained).cpu().double()).abs()
    figures = {"max": float(gaps_N.max()), "mean": float(gaps_N.mean())}
    figure, limit = LIMITS[config.model.dtype]
    text = (
        f"sampler and trainer differ by {figures['max']:.1e} at most, {figures['mean']:.1e} on average, over "
        f"{len(gaps_N)} tokens of {len(sampled)} completions (limit in {config.model.dtype}: {figure} {limit:g})"
    )
    if figures[figure] <= limit:
        yield Check("ok", "log-prob parity", text)
    else:
        yield Check("error", "log-prob parity", f"{text}: {CURES[config.model.dtype]}")
