"""The attention of a policy's text layers: whole rows as transformers computes them, or piece by piece.

Packed rows and shared prompts need few of the (query, key) pairs of a row. Where a call hands over `segments` (packed
rows in training) or `shared_prefix` (decoding), attention is computed from these alone, in plain products and SDPA
calls without a mask of the whole row; everything else goes the usual way.

A packed row of P prompt tokens and completions a, b, c. The mask of the whole row computes every square; the pieces
compute those that are not empty, completions of like length in one call, as a batch over copies of the prompt's keys:

                 keys   P          a       b       c
    queries  P        | causal   |       |       |       call 1: queries[P] over keys[P], is_causal
             a        | all      | causal|       |       call 2: queries[a, b] over [keys[P, P], keys[a, b]], one bias
             b        | all      |       | causal|
             c        | all      |       |       | c.    call 3: queries[c] over [keys[P], keys[c]], another bias
             rest     |          |       |       |       zeros; padding, and the columns of a blank image

A shorter completion of a call is padded at its end: what stands there comes after each of its tokens, so none sees it.

Shape suffixes: R rows, S row tokens, H heads, D head width, K completions of a call, T tokens of the longest of them,
N tokens of all rows or of all calls.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass, fields
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.reordering import Order, orders, reordered

# Below this width one masked product over the whole row costs less than the calls for its pieces.
SPLIT_WIDTH = 384
# Pairs of query and key that cost about as much time as a call of their own. Completions of unlike lengths share a call
# where that costs each no more than this in pairs of padding. A GPU computes them by the billion, but waits for calls.
PAIRS_PER_CALL = {"cpu": 2_000}
PAIRS_PER_CALL_ELSEWHERE = 200_000
PREFIX = "vlm_mhpo_"
FLASH = "flash_attention_2"


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
    """Let the text layers of a transformers model attend through this file; `base` is the usual way, by its name.

    Set once and never switched: gradient checkpointing calls attention again when the forward is long over.
    """
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(PREFIX + base, attention)
    AttentionMaskInterface.register(PREFIX + base, AttentionMaskInterface()[base])
    model.config.get_text_config()._attn_implementation = PREFIX + base


def takes_masks(model: nn.Module) -> bool:
    """Whether its usual way can be told by a mask which token of a whole row sees which; flash attention cannot."""
    return FLASH not in model.config.get_text_config()._attn_implementation


def check_available(attn_implementation: str) -> None:
    """Refuse flash attention where it cannot run.

    Raises:
        ModelError: no GPU, or no package flash-attn.
    """
    from transformers.utils import is_flash_attn_2_available

    if attn_implementation == FLASH and not is_flash_attn_2_available():
        lacking = "package flash-attn" if torch.cuda.is_available() else "GPU"
        raise ModelError(
            f"model.attn_implementation={FLASH} needs an NVIDIA GPU and the package flash-attn (2.3.3 or newer), and "
            f"there is no {lacking} here: leave it at sdpa, which has flash kernels of its own on a GPU"
        )


class _AsBase:
    """A layer under the name of its usual way: transformers' flash attention looks up its kernels by it."""

    def __init__(self, module: nn.Module, base: str) -> None:
        self._module, self.config = module, copy(module.config)
        self.config._attn_implementation = base

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)


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
    base = module.config._attn_implementation.removeprefix(PREFIX)
    layer = _AsBase(module, base) if base == FLASH else module
    return _usual_attention(module, base)(layer, query, key, value, attention_mask, **options)


def _layer_of_keys(module: nn.Module) -> int:
    """The layer whose keys and values a layer reads: its own, or those of an earlier one of its kind (Gemma 4)."""
    if not getattr(module, "is_kv_shared_layer", False):
        return module.layer_idx
    pairs = zip(module.config.kv_sharing_modes, module.config.layer_types, strict=True)
    return next(index for index, pair in enumerate(pairs) if pair == ("store", module.layer_type))


def _usual_attention(module: nn.Module, base: str) -> Any:
    """The function of transformers that a layer would call by itself."""
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    return ALL_ATTENTION_FUNCTIONS.get(base, None) or sys.modules[type(module).__module__].eager_attention_forward


@dataclass(frozen=True, slots=True)
class SharedCall:
    """Completions of one row that share a call: K of them, T tokens of the longest, and which keys their tokens see."""

    count: int
    longest: int
    bias: Tensor


@dataclass(frozen=True, slots=True)
class Segments:
    """Where prompt and completions lie in packed rows, made once for all layers.

    Attributes:
        lengths: of each row, tokens of the prompt and of each completion, one behind the other.
        batches: of each row, the calls of its completions.
        to_calls: from the tokens of all rows to those of all calls: row by row first its prompt, then its batches.
        to_rows: back.
    """

    lengths: Sequence[Sequence[int]]
    batches: Sequence[Sequence[SharedCall]]
    to_calls: Order
    to_rows: Order

    @property
    def calls(self) -> list[tuple[int, int]]:
        """K and T of each call in the order of `to_calls`; of a prompt 1 and its tokens."""
        rows = zip(self.lengths, self.batches, strict=True)
        return [
            call for (prompt, *_), batches in rows for call in ((1, prompt), *((b.count, b.longest) for b in batches))
        ]


def segments_of(lengths: Sequence[Sequence[int]], like: Tensor, width: int = 0) -> Segments:
    """Segments of rows of `width` tokens (0 = the longest), for weights of the type and device of `like`."""
    bias = cache(partial(_causal_bias, like=like))
    width = width or max(map(sum, lengths))
    places, batches = [], []
    for row, (prompt, *own) in enumerate(lengths):
        starts = [row * width + prompt + sum(own[:at]) for at in range(len(own))]
        places.append(torch.arange(row * width, row * width + prompt))
        batches.append([])
        for chosen in _sharing_calls(prompt, own, like.device):
            batch = SharedCall(len(chosen), own[chosen[0]], bias(prompt, own[chosen[0]]))
            batches[-1].append(batch)
            # -1 behind the end of a shorter one.
            pieces = [torch.arange(starts[at], starts[at] + own[at]) for at in chosen]
            places += [nn.functional.pad(piece, (0, batch.longest - len(piece)), value=-1) for piece in pieces]
    return Segments(lengths, batches, *orders(torch.cat(places), len(lengths) * width, like.device))


def _sharing_calls(num_prompt: int, lengths: Sequence[int], device: torch.device) -> list[list[int]]:
    """Cut the completions of a row, as places in `lengths`, into those that share a call, the longest of each first."""
    bearable = PAIRS_PER_CALL.get(device.type, PAIRS_PER_CALL_ELSEWHERE)
    calls: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: -lengths[at]):
        longest = lengths[calls[-1][0]] if calls else 0
        if not calls or (longest - lengths[at]) * (num_prompt + longest) > bearable:
            calls.append([])
        calls[-1].append(at)
    # Nothing has to be moved where each has a call of its own.
    return sorted(calls, key=min)


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
    shapes = segments.calls

    def by_call(tensor_RHSD: Tensor) -> Iterator[Tensor]:
        """[1, P, H, D] or [K, T, H, D] of each call."""
        tokens_NHD = tensor_RHSD.transpose(1, 2).flatten(0, 1)
        ordered_NHD = reordered(tokens_NHD, segments.to_calls, segments.to_rows)
        pieces = ordered_NHD.split([count * longest for count, longest in shapes])
        return (piece.view(*shape, *piece.shape[1:]) for piece, shape in zip(pieces, shapes, strict=True))

    def attend(*tensors_KTHD: Tensor, **options: Any) -> Tensor:
        """[K * T, H, D]: attention of queries [K, T, H, D] over keys and values."""
        found_KHTD = _sdpa(*(each.transpose(1, 2) for each in tensors_KTHD), scale=scaling, **options)
        return found_KHTD.transpose(1, 2).flatten(0, 1)

    queries, keys, values = map(by_call, (query_RHSD, key_RHSD, value_RHSD))
    results = []
    for batches in segments.batches:
        shared = next(keys), next(values)
        results.append(attend(next(queries), *shared, is_causal=True))
        for batch in batches:
            pairs = zip(shared, (next(keys), next(values)), strict=True)
            seen = [torch.cat([before.expand(batch.count, -1, -1, -1), own], dim=1) for before, own in pairs]
            results.append(attend(next(queries), *seen, attn_mask=batch.bias))
    rows_NHD = reordered(torch.cat(results), segments.to_rows, segments.to_calls)
    return rows_NHD.unflatten(0, (len(segments.lengths), -1))


def _sdpa(query: Tensor, key: Tensor, value: Tensor, **options: Any) -> Tensor:
    """SDPA of torch, where keys and values may have fewer heads."""
    from transformers.integrations.sdpa_attention import repeat_kv, use_gqa_in_sdpa

    num_shared = query.shape[1] // key.shape[1]
    if num_shared > 1 and use_gqa_in_sdpa(None, key, value):
        options["enable_gqa"] = True
    elif num_shared > 1:
        key, value = repeat_kv(key, num_shared), repeat_kv(value, num_shared)
    return scaled_dot_product_attention(query, key, value, **options)
