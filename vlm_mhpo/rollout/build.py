"""From the configuration to a sampler and to how it draws; the one reader of what engine samples."""

from __future__ import annotations

from contextlib import nullcontext

from vlm_mhpo.config import EvalConfig, RolloutConfig
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import Sampler, SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler


def build_sampler(rollout: RolloutConfig, policy: Policy, codec: Codec, engine: Engine | None = None) -> Sampler:
    """The sampler that a run is configured for.

    Args:
        rollout: the configuration.
        policy, codec: what is sampled from.
        engine: around the policy, when it is trained; servers are given its weights. Without one they are read only.

    Raises:
        ModelError: servers cannot sample for a model of this family.
    """
    whole_weights = engine.whole_weights if engine else nullcontext
    if rollout.engine == "vllm":
        if policy.family.own_inputs:
            raise ModelError(
                f"rollout.engine=vllm: what a {policy.family.model_type} model is given is not known well enough to "
                "compare it with a server's prompts; use rollout.engine=hf"
            )
        # Its client is of no use to others.
        from vlm_mhpo.rollout.vllm.sampler import VllmSampler
        from vlm_mhpo.rollout.vllm.sync import FilesSync, GlooSync

        kind = {"files": FilesSync, "gloo": GlooSync}[rollout.vllm.sync]
        sync = kind(rollout.vllm, policy, whole_weights) if engine else None
        options = {"sync": sync, "forward": engine, "whole_weights": whole_weights, "is_collective": engine is not None}
        return VllmSampler(rollout.vllm, policy, codec, **options)
    most = None if rollout.max_batch_tokens == "auto" else rollout.max_batch_tokens
    return HfSampler(policy, codec, max_batch_tokens=most, whole_weights=whole_weights)


def rollout_params(rollout: RolloutConfig, num_samples: int | None = None) -> SamplingParams:
    """How rollouts are drawn; `num_samples` in the place of G."""
    return SamplingParams(
        num_samples or rollout.num_generations,
        rollout.max_completion_length,
        rollout.temperature,
        rollout.top_p,
        rollout.top_k,
    )


def held_out_params(evaluation: EvalConfig, rollout: RolloutConfig) -> SamplingParams:
    """The decoding of held-out evaluation."""
    return SamplingParams(
        evaluation.num_samples,
        evaluation.max_completion_length or rollout.max_completion_length,
        evaluation.temperature,
        evaluation.top_p,
        evaluation.top_k,
    )
