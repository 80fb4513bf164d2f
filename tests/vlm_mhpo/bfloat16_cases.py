"""Tiny models in bfloat16 whose weights have the scales of real ones, and the truth about them in float64.

A model with plain random weights hides what bfloat16 rounds away: its logits are within 4 and its attention scores
within 3, where real models reach 25 and, through the key biases of Qwen2 and Qwen2.5, several hundreds.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from tests.builders import Tiny, plain_log_probs, prompts_of, scored
from tests.vlm_mhpo.update_cases import settings_of
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.forwards import log_probs_of
from vlm_mhpo.types import Group

BIASES = (0.0, 20.0, 60.0, 150.0)
FAMILIES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2")
# Chosen tokens then have logits of some 20, as in trained models.
HEAD_SCALE = 7.0
HEAD_WIDTH = 32
# The slowest of the 16 frequencies of the rotary embedding, both halves: they turn a key by next to nothing.
SLOW = [14, 15, 30, 31]
# The hidden channel that is the same at every token; trained models have such channels, too.
CHANNEL, CONSTANT = 0, 8.0


def build_and_load_bfloat16(folder: Path, family: str, bias: float) -> Tiny:
    """A tiny model of a family with keys that all have an offset of `bias` in their slow dimensions."""
    policy, codec = load_policy(str(build_tiny(folder, family)), dtype="bfloat16")
    with torch.no_grad():
        give_real_scales(policy, bias)
    return Tiny(family, folder, policy, codec)


def give_real_scales(policy: Policy, bias: float) -> None:
    """Large logits, and an offset of all keys along which queries look.

    With a bias of projections the offset is that bias. Families that normalise keys instead get it through a channel of
    the hidden states that never changes: it fills the slow dimensions of every key before the norm, whose weights then
    give them their size.
    """
    sizes = {"q": min(bias, 20.0) / 2, "k": bias}
    policy.model.lm_head.weight *= HEAD_SCALE
    # Heads of towers have other widths.
    weights = {name: weight for name, weight in policy.named_parameters() if "vision_tower" not in name}
    normed = any(name.endswith("k_norm.weight") for name in weights)
    if normed:
        policy.model.get_input_embeddings().weight[:, CHANNEL] = CONSTANT
    for name, weight in weights.items():
        kind = name.split(".")[-2]
        if name.endswith("visual.merger.linear_fc2.bias") and normed:
            weight[CHANNEL] = CONSTANT
        elif kind in ("q_proj", "k_proj") and name.endswith("bias"):
            weight.view(-1, HEAD_WIDTH)[:, SLOW] = sizes[kind[0]]
        elif kind in ("q_proj", "k_proj") and normed:
            weight.view(-1, HEAD_WIDTH, weight.shape[-1])[:, SLOW, CHANNEL] = 1.0
        elif kind in ("q_norm", "k_norm"):
            # Four of 32 dimensions hold nearly all of the norm: they come out at sqrt(32 / 4), the others small.
            weight.fill_(5.0)
            weight[SLOW] = sizes[kind[0]] / (HEAD_WIDTH / len(SLOW)) ** 0.5


def sampled_groups(model: Tiny, *, num_samples: int = 8, max_tokens: int = 24) -> list[Group]:
    """Groups of a few prompts, with the sampler's log-probs."""
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=100_000)
    return sampler.sample(prompts_of(model), SamplingParams(num_samples, max_tokens), (5, "rollout", 0))


def three_log_probs(model: Tiny, groups: list[Group]) -> tuple[Tensor, Tensor, Tensor]:
    """[N] float64 each, of all sampled tokens: the sampler's, the trainer's, and the same weights' in float64."""
    sampled = torch.cat([completion.log_probs for group in groups for completion in group.completions])
    batch = [scored(group.prompt, group.completions) for group in groups]
    trained = torch.cat(log_probs_of(model.policy, model.policy, batch, settings_of(temperature=1.0)))
    exact = model.copy()
    exact.policy.double()
    with torch.no_grad():
        truth = torch.cat(
            [plain_log_probs(exact, group.prompt, c.token_ids) for group in groups for c in group.completions]
        )
    return sampled.double(), trained.double(), truth
