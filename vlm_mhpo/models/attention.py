"""The attention of a policy's text layers: whole rows as transformers computes them, or piece by piece.

Packed rows and shared prompts need few of the (query, key) pairs of a row. Where a call hands over `segments` (packed
rows in training) or `shared_prefix` (decoding), attention is computed from these alone, in plain products and SDPA
calls without a mask of the whole row; everything else goes the usual way.

A packed row of P prompt tokens and completions a, b. The mask of the whole row computes every square; the pieces
compute the three that are not empty:

                 keys   P          a       b       rest
    queries  P        | causal   |       |       |       piece 0: queries[0] over keys[0], is_causal
             a        | all      | causal|       |       piece 1: queries[1] over [keys[0], keys[1]], bias 1
             b        | all      |       | causal|       piece 2: queries[2] over [keys[0], keys[2]], bias 2
             rest     |          |       |       |       zeros; padding, and the columns of a blank image

Shape suffixes: R rows, S row tokens, H heads, D head width.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

# Below this width one masked product over the whole row costs less than the calls for its pieces.
SPLIT_WIDTH = 384
PREFIX = "vlm_mhpo_"


@cache
def cache_name() -> str:
    """What transformers calls the keys and values of past tokens, as an argument of its models and in their outputs.

    Release 5.24 renamed it everywhere at once, and 5.40 will not know the old name any more.
    """
    from transformers.modeling_outputs import BaseModelOutputWithPast

    return next(field.name for field in fields(BaseModelOutputWithPast) if field.name in ("cache", "past_key_values"))


def no_mask(like: Tensor) -> Tensor:
    """An `attention_mask` that transformers takes as finished, so that it makes none, and that nobody reads here."""
    return like.new_zeros((1, 1, 1, 1))


def install(model: nn.Module, base: str) -> None:
    """Let the text layers of a transformers model attend through this file; `base` is the usual way, sdpa or eager.

    Set once and never switched: gradient checkpointing calls attention again when the forward is long over.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(PREFIX + base, attention)
    AttentionMaskInterface.register(PREFIX + base, AttentionMaskInterface()[base])
    model.config.get_text_config()._attn_implementation = PREFIX + base


def attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, Tensor | None]:
    """An attention function as transformers calls it: [R, heads, S, D] in, [R, S, heads, D] out."""
    shared_prefix, segments = options.pop("shared_prefix", None), options.pop("segments", None)
    if shared_prefix is not None:
        window = options.get("sliding_window")
        return shared_prefix.attention(_layer_of_keys(module), query, key, value, options["scaling"], window), None
    if segments is not None:
        return segment_attention(query, key, value, segments, options["scaling"]), None
    return _usual_attention(module)(module, query, key, value, attention_mask, **options)


def _layer_of_keys(module: nn.Module) -> int:
    """The layer whose keys and values a layer reads: its own, or those of an earlier one of its kind (Gemma 4)."""
    if not getattr(module, "is_kv_shared_layer", False):
        return module.layer_idx
    pairs = zip(module.config.kv_sharing_modes, module.config.layer_types, strict=True)
    return next(index for index, pair in enumerate(pairs) if pair == ("store", module.layer_type))


def _usual_attention(module: nn.Module) -> Any:
    """The function of transformers that a layer would call by itself."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    base = module.config._attn_implementation.removeprefix(PREFIX)
    return ALL_ATTENTION_FUNCTIONS.get(base, None) or sys.modules[type(module).__module__].eager_attention_forward


@dataclass(frozen=True, slots=True)
class Segments:
    """Where prompt and completions lie in packed rows.

    Attributes:
        lengths: of each row, tokens of the prompt and of each completion, one behind the other.
        biases: of each completion, what to add to its scores: a token sees the prompt and itself up to its own place.
    """

    lengths: Sequence[Sequence[int]]
    biases: Sequence[Sequence[Tensor]]


def segments_of(lengths: Sequence[Sequence[int]], like: Tensor) -> Segments:
    """Segments of rows, with biases for weights of the type and device of `like`."""
    made: dict[tuple[int, int], Tensor] = {}

    def bias(num_prompt: int, num_own: int) -> Tensor:
        if (num_prompt, num_own) not in made:
            made[num_prompt, num_own] = _causal_bias(num_prompt, num_own, like)
        return made[num_prompt, num_own]

    return Segments(lengths, [[bias(prompt, own) for own in completions] for prompt, *completions in lengths])


def _causal_bias(num_prompt: int, num_own: int, like: Tensor) -> Tensor:
    """[num_own, num_prompt + num_own]: 0 where a token of a completion may look, else -inf; on a GPU only its kind."""
    if like.device.type != "cpu":
        from torch.nn.attention.bias import causal_lower_right

        # Flash attention knows this mask by name and skips what it hides.
        return causal_lower_right(num_own, num_prompt + num_own)
    #   keys   p  p  p | c0 c1       a causal triangle in the lower right corner, everything to its left open:
    #   c0     0  0  0 | 0  -inf     token c0 sees num_prompt + 1 keys,
    #   c1     0  0  0 | 0  0        each later one sees one more
    hidden = torch.ones(num_own, num_prompt + num_own, dtype=torch.bool).triu(num_prompt + 1)
    return torch.zeros(hidden.shape, dtype=like.dtype).masked_fill(hidden, -torch.inf)


def segment_attention(
    query_RHSD: Tensor, key_RHSD: Tensor, value_RHSD: Tensor, segments: Segments, scaling: float
) -> Tensor:
    """[R, S, H, D]: causal attention inside each prompt, and of each completion to its prompt and itself.

    Keys and values may have fewer heads than queries. What lies behind a row's last completion gets zeros.
    """
    from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa

    num_shared = query_RHSD.shape[1] // key_RHSD.shape[1]
    options: dict[str, Any] = {"scale": scaling}
    if num_shared > 1:
        if use_gqa_in_sdpa(None, key_RHSD, value_RHSD):
            options["enable_gqa"] = True
        else:
            key_RHSD, value_RHSD = repeat_kv(key_RHSD, num_shared), repeat_kv(value_RHSD, num_shared)
    rows = []
    # split, not slices: its backward writes each gradient once.
    for lengths, biases, *whole in zip(
        segments.lengths, segments.biases, query_RHSD.split(1), key_RHSD.split(1), value_RHSD.split(1), strict=True
    ):
        rest = query_RHSD.shape[2] - sum(lengths)
        queries, keys, values = (tensor.split([*lengths, rest], dim=2) for tensor in whole)
        pieces = [scaled_dot_product_attention(queries[0], keys[0], values[0], is_causal=True, **options)]
        for index, bias in enumerate(biases, start=1):
            seen, mixed = (torch.cat([each[0], each[index]], dim=2) for each in (keys, values))
            pieces.append(scaled_dot_product_attention(queries[index], seen, mixed, attn_mask=bias, **options))
        rows.append(torch.cat([*pieces, torch.zeros_like(queries[-1])], dim=2))
    return torch.cat(rows).transpose(1, 2).contiguous()
