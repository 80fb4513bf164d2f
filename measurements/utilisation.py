"""What a step of a benchmark asks for in FLOPs, and the matmul rate of the device; over a time they are utilisation.

FLOPs are those of the mathematics (`commands.profiling.flops`): each prompt once, no padding, nothing computed twice.
Both sides of a benchmark are held to the same number, whatever they compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from shapes import CONFIG, Shape


@dataclass(frozen=True, slots=True)
class Flops:
    """FLOPs of a whole step and of its updates alone, and what the device does a second in large matrix products."""

    step: float
    updates: float
    rate: float


def step_flops(shape: Shape, overrides: Sequence[str], mean_length: float) -> Flops:
    """The FLOPs of a step whose completions have `mean_length` tokens; the rate is that of the step's dtype."""
    from vlm_mhpo.commands.profiling.flops import Work, model_flops, parts_of, sampling_work, training_work
    from vlm_mhpo.commands.profiling.rate import matmul_rate
    from vlm_mhpo.config import load_config
    from vlm_mhpo.models.loading import DTYPES, load_codec
    from vlm_mhpo.prompts.builder import prompt_builder
    from vlm_mhpo.prompts.rows import read_rows
    from vlm_mhpo.runtime import ranks

    config = load_config(CONFIG, list(overrides))
    ranks.start(config.num_threads)
    rate = matmul_rate(ranks.device(), DTYPES[config.model.dtype])
    policy = weightless(config.model)
    codec = load_codec(config.model.path, policy.model, policy.family, revision=None, min_pixels=None, max_pixels=None)
    build = prompt_builder(config.data, codec, policy.family)
    rows = read_rows(config.data.train, config.data, config.data.train_split, shape.num_prompts)
    lengths = [round(mean_length)] * shape.num_generations
    sampling = training = Work()
    for prompt in map(build, rows):
        seen = policy.family.vision.work(policy.model, prompt.media)
        sampling += sampling_work(prompt.num_tokens, lengths) + seen
        training += training_work(prompt.num_tokens, lengths) + seen
    parts = parts_of(policy)
    rollout = model_flops(parts, sampling, backward=False)
    if config.rollout.old_log_probs == "trainer":
        rollout += model_flops(parts, training, backward=False)
    updates = model_flops(parts, training, backward=True)
    return Flops(rollout + updates, updates, rate)


def weightless(model: Any) -> Any:
    """The policy of a model section without memory for its weights: their shapes are all that counts."""
    import torch

    from vlm_mhpo.commands.doctor.shapes import transformers_config
    from vlm_mhpo.models.families import family_of
    from vlm_mhpo.models.policy import Policy

    config = transformers_config(model)
    family = family_of(config.model_type)
    with torch.device("meta"):
        return Policy(family.auto_classes[0].from_config(config), family, torch.zeros(0))
