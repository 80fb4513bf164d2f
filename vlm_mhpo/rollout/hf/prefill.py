"""Prompts of different lengths through the model at once: what their completions go on from.

Shape suffixes: P prompts, S prompt tokens, H hidden, A position axes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm_mhpo.models.attention import cache_name
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.types import Prompt


@dataclass(frozen=True, slots=True)
class Prefilled:
    """What prompts leave behind.

    Attributes:
        cache: transformers' own, of all layers.
        mask_PS: [P, S] int64, 0 on padding.
        hidden_PH: last hidden state of each prompt's last token.
        next_position_P: [P] int64 on the CPU, of the first token of a completion.
        num_axes: position axes, 3 or 1.
    """

    cache: Any
    mask_PS: Tensor
    hidden_PH: Tensor
    next_position_P: Tensor
    num_axes: int


def prefill(policy: Policy, prompts: Sequence[Prompt], pad_id: int, side: Literal["left", "right"]) -> Prefilled:
    """Run the prompts once, padded on `side`; completions that share a prompt's cache do not mind which."""
    device = policy.model.lm_head.weight.device
    width = max(prompt.num_tokens for prompt in prompts)
    positions = [policy.family.positions(policy.model, prompt) for prompt in prompts]
    num_axes = positions[0].shape[0]
    input_ids_PS = torch.full((len(prompts), width), pad_id, dtype=torch.int64)
    mask_PS = torch.zeros((len(prompts), width), dtype=torch.int64)
    positions_APS = torch.zeros((num_axes, len(prompts), width), dtype=torch.int64)
    for row, (prompt, position_AS) in enumerate(zip(prompts, positions, strict=True)):
        start = width - prompt.num_tokens if side == "left" else 0
        place = slice(start, start + prompt.num_tokens)
        input_ids_PS[row, place] = prompt.input_ids_S
        mask_PS[row, place] = 1
        positions_APS[:, row, place] = position_AS
    inputs = {
        "input_ids": input_ids_PS.to(device),
        "attention_mask": mask_PS.to(device),
        "position_ids": (positions_APS if num_axes > 1 else positions_APS[0]).to(device),
    }
    if policy.family.sight:
        # Keys of all tokens, also of layers that slide: which of them a later token sees is told by positions.
        inputs |= {cache_name(): DynamicCache()}
        segments_PS = inputs["attention_mask"] - 1
        inputs |= policy.sight_masks(inputs["input_ids"], segments_PS, inputs["position_ids"])
    media = policy.family.join([prompt.media for prompt in prompts])
    with span("sample/prefill"):
        outputs = policy.model.model(
            **inputs, **policy.media_inputs(media.to(device) if media else None), use_cache=True
        )
    last_P = mask_PS.sum(dim=1) - 1 if side == "right" else torch.full((len(prompts),), width - 1)
    return Prefilled(
        cache=outputs[cache_name()],
        mask_PS=mask_PS.to(device),
        hidden_PH=outputs.last_hidden_state[torch.arange(len(prompts), device=device), last_P.to(device)],
        next_position_P=torch.stack([position_AS.max() + 1 for position_AS in positions]),
        num_axes=num_axes,
    )
