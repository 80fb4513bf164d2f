"""Does a server hold the policy? What it samples from fixed prompts, against the trainer's own forward of it.

Version labels say what was pushed and not what is served: half a push and caches of older weights keep them right. By
sampling, since `prompt_logprobs` make vLLM compute the prompt anew, so that a stale prefix cache stays hidden.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from vlm_mhpo.models.packing import pack_rows, plan_micro_batches
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Group, Prompt

# Log-probs and entropies of packed rows; the policy itself, or an engine around it.
Forward = Callable[..., tuple[Tensor, Tensor | None]]
PARAMS = SamplingParams(num_samples=2, max_tokens=8)
# Of the first meeting: whether bans hold where much is likely; vLLM takes no higher temperature.
HOT = SamplingParams(num_samples=8, max_tokens=32, temperature=2.0)
# Nats. In float32 two engines add up in other orders: 3e-5 on tiny models, more with the logits of real ones; weights
# or caches of another step were 0.5 to 10 off. In bfloat16 single tokens are far off by rounding alone: the mean.
LIMITS = {"float32": ("max", 1e-3), "bfloat16": ("mean", 0.02)}


@dataclass(frozen=True, slots=True)
class Gap:
    """Distance of two engines' log-probs of the same tokens, nats."""

    max: float
    mean: float

    def is_beyond(self, dtype: str) -> bool:
        """Whether it is more than rounding in this dtype."""
        figure, limit = LIMITS[dtype]
        return not getattr(self, figure) <= limit


def chosen_probes(prompts: Sequence[Prompt]) -> list[Prompt]:
    """The longest prompt with images, and the longest without; those there are."""
    kinds = [[one for one in prompts if bool(one.row.images) == seen] for seen in (True, False)]
    return [max(kind, key=lambda one: (one.num_tokens, one.id)) for kind in kinds if kind]


@torch.no_grad()
def own_log_probs(policy: Policy, forward: Forward, groups: Sequence[Group], pad_id: int) -> list[Tensor]:
    """[T] float32 on the CPU of each completion: log-probs at temperature 1; one forward, on all ranks."""
    prompts = [group.prompt for group in groups]
    ids = [completion.token_ids for group in groups for completion in group.completions]
    lengths = [[len(one.token_ids) for one in group.completions] for group in groups]
    sizes = [prompt.num_tokens for prompt in prompts]
    (items,) = plan_micro_batches(sizes, lengths, max_tokens=2**40, shares_prompt=policy.family.shares_prompt)
    positions = [policy.family.positions(policy.model, prompt) for prompt in prompts]
    rows = pack_rows(items, prompts, positions, ids, join=policy.family.join, pad_id=pad_id)
    was_training = policy.training
    policy.eval()
    try:
        values_N, _ = forward(rows.to(ranks.device()), temperature=1.0, chunk_size=256, with_entropy=False)
    finally:
        policy.train(was_training)
    values_N = values_N.float().cpu()
    return [values_N[rows.completion_N == flat] for flat in range(len(ids))]


def gap_of(groups: Sequence[Group], own: Sequence[Tensor]) -> Gap:
    """The distance between what a server said of its completions and what the trainer finds."""
    said = torch.cat([one.log_probs for group in groups for one in group.completions]).double()
    gaps = (said - torch.cat(list(own)).double()).abs()
    return Gap(float(gaps.max()), float(gaps.mean()))
