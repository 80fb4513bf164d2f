"""Sampling of completions."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt

from vlm_mhpo.config.base import Section


class RolloutConfig(Section):
    """Sampling of completions."""

    num_generations: int = Field(8, ge=2, description="G, completions sampled a prompt; the group of the advantage.")
    max_completion_length: PositiveInt = Field(512, description="Token budget of a completion.")
    temperature: PositiveFloat = Field(1.0, description="Softmax temperature, also of the trainer's log-probs.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass; log-probs stay those of the whole distribution.")
    top_k: int = Field(0, ge=0, description="Sample among the k most likely tokens; 0 = all.")
    max_batch_tokens: PositiveInt | Literal["auto"] = Field(
        "auto",
        description="Tokens that a rank's attention cache may hold: a prompt once, and the budget of each completion "
        "that is decoded at the same time; waiting ones take the places of those that end. auto = what fits in the "
        "memory that is free at the first rollout, the same on all ranks (recorded as sampling/max_batch_tokens).",
    )
    dynamic_sampling: bool = Field(False, description="Replace groups of equal rewards by groups of other prompts.")
    max_resample_times: int = Field(3, ge=0, description="Tries of dynamic sampling; then the step goes on.")
    old_log_probs: Literal["trainer", "sampler"] = Field(
        "trainer",
        description="Where the ratio's denominator comes from: the trainer (exact in bfloat16; one more forward of "
        "all minibatches but the first), or the sampler's own (free; right in float32).",
    )
