"""Attention of vision towers that see images, or windows of them, apart: those of one length in one call.

transformers calls SDPA once for each image and each window of a layer. Only to attention that calls itself flash it
hands all patches at once, with the places where images and windows begin; so does this one, and sorts by length.

Shape suffixes: N patches, H heads, D head width.
"""

from __future__ import annotations

from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from torch.utils.weak import WeakTensorKeyDictionary

from vlm_mhpo.models.reordering import Order, orders, reordered

NAME = "vlm_mhpo_flash_by_length"


def attend_by_length(tower: nn.Module) -> None:
    """Let a tower's layers attend through this file where they would call SDPA."""
    from transformers import AttentionInterface

    AttentionInterface.register(NAME, attention)
    given = tower.config
    if given._attn_implementation != "sdpa":
        return
    # A copy for the tower alone: whoever builds a model from the policy's configuration would have to have flash.
    own = copy(given)
    own._attn_implementation = NAME
    for module in tower.modules():
        if getattr(module, "config", None) is given:
            module.config = own


def attention(
    module: nn.Module,
    query_1HND: Tensor,
    key_1HND: Tensor,
    value_1HND: Tensor,
    attention_mask: None,
    *,
    scaling: float,
    cu_seq_lens_q: Tensor,
    **unused: Any,
) -> tuple[Tensor, None]:
    """An attention function as transformers calls it: [1, H, N, D] in, [1, N, H, D] out.

    Args:
        cu_seq_lens_q: where images or windows begin, and N.
    """
    calls = _calls_of(cu_seq_lens_q)

    def by_length(tensor_1HND: Tensor) -> list[Tensor]:
        """[pieces, H, length, D] of each length."""
        ordered_NHD = reordered(tensor_1HND[0].transpose(0, 1), calls.there, calls.back)
        parts = ordered_NHD.split([count * length for count, length in calls.shapes])
        return [part.unflatten(0, shape).transpose(1, 2) for part, shape in zip(parts, calls.shapes, strict=True)]

    tensors = zip(*map(by_length, (query_1HND, key_1HND, value_1HND)), strict=True)
    found = [scaled_dot_product_attention(*each, scale=scaling).transpose(1, 2).flatten(0, 1) for each in tensors]
    return reordered(torch.cat(found), calls.back, calls.there)[None], None


@dataclass(frozen=True, slots=True)
class _Calls:
    """The order in which pieces of one length stand together, the way back, and (pieces, length) of each call."""

    there: Order
    back: Order
    shapes: list[tuple[int, int]]


# A tower hands the same tensor of places to all its layers; a look at its values waits for the device.
_KNOWN = WeakTensorKeyDictionary()


def _calls_of(starts: Tensor) -> _Calls:
    if starts not in _KNOWN:
        bounds = starts.tolist()
        by_length: dict[int, list[int]] = {}
        for start, end in pairwise(bounds):
            by_length.setdefault(end - start, []).append(start)
        places = [at for length, some in by_length.items() for start in some for at in range(start, start + length)]
        there, back = orders(torch.tensor(places), bounds[-1], starts.device)
        _KNOWN[starts] = _Calls(there, back, [(len(some), length) for length, some in by_length.items()])
    return _KNOWN[starts]
