"""Decoding attention: a prompt's keys and values are held and read once for all its completions.

A new token attends to its prompt and to its own completion. Scores against the prompt are one product for all
completions of the prompt, scores against the own tokens one product per completion; one softmax runs over both.

Two prompts with three completions each, of which some have ended: rows, and the places that they take for the product
with their prompt's keys.

    prompt    0  0  0 | 1  1         rows B, those of a prompt together (`_prompt_B`)
    place     0  1  2 | 3  4  (5)    slots of P x 3; 5 is empty: zeros go in, and what comes out is not read

    scores of a row   [ against S prompt keys, held once per prompt | against its own T keys ]
                      [ x  x  -inf (padding of a shorter prompt)    | y  y  y                ]   one softmax over all

The padding side does not matter: positions are given, and padded keys get the bias -inf.

Shape suffixes: P prompts, B rows (completions that go on, those of a prompt together), H key-value heads, Q query heads
a key-value head, S prompt tokens, T own tokens, D head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm_mhpo.models.attention import cache_name, no_mask

# Room for a completion's keys grows by doubling: one move of what is there for every doubling.
FIRST_ROOM = 32


class SharedPrefixCache:
    """Stands where transformers expects its cache while completions are decoded.

    Args:
        prefix: (keys, values) of every layer, [P, H, S, D] each, of the prompts.
        mask_PS: [P, S] int64, 0 on padding.
        num_samples: completions of each prompt.
    """

    def __init__(self, prefix: list[tuple[Tensor, Tensor]], mask_PS: Tensor, num_samples: int) -> None:
        self._prefix = [(in_float32(keys), values) for keys, values in prefix]
        self._own: list[OwnTokens] = [OwnTokens() for _ in prefix]
        hidden_PS = mask_PS == 0
        self._bias_P11S = (
            torch.zeros(mask_PS.shape, device=mask_PS.device).masked_fill(hidden_PS, -torch.inf)[:, None, None]
            if bool(hidden_PS.any())
            else None
        )
        self._prompt_B = torch.arange(len(mask_PS), device=mask_PS.device).repeat_interleave(num_samples)
        self._num_slots = num_samples
        # [B] place of each row among prompts x slots; None = every place is taken, in order.
        self._place_B: Tensor | None = None

    def inputs(self, num_rows: int) -> dict[str, Any]:
        """Keyword arguments of the transformers model that feed one token to each row."""
        return {
            cache_name(): self,
            "shared_prefix": self,
            "attention_mask": no_mask(self._prefix[0][1]),
        }

    def update(self, keys_BH1D: Tensor, values_BH1D: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add a token to each row; all own keys and values of the layer, [B, H, T, D] each."""
        return self._own[layer].append(in_float32(keys_BH1D), values_BH1D)

    def select(self, keep_B: Tensor) -> None:
        """Go on with the rows where `keep_B` is True; prompts without any leave, too."""
        for own in self._own:
            own.select(keep_B)
        alive_P, self._prompt_B, counts_P = self._prompt_B[keep_B].unique_consecutive(
            return_inverse=True, return_counts=True
        )
        if len(alive_P) < self._num_prompts:
            self._prefix = [(keys[alive_P], values[alive_P]) for keys, values in self._prefix]
            self._bias_P11S = None if self._bias_P11S is None else self._bias_P11S[alive_P]
        self._num_slots = int(counts_P.max())
        num_rows = len(self._prompt_B)
        # prompt_B  0 0 0 1 1  ->  first_P  0 3  ->  slot_B  0 1 2 0 1  ->  place_B  0 1 2 3 4   (3 slots per prompt)
        if num_rows == len(alive_P) * self._num_slots:
            self._place_B = None
        else:
            first_P = counts_P.cumsum(0) - counts_P
            slot_B = torch.arange(num_rows, device=first_P.device) - first_P[self._prompt_B]
            self._place_B = self._prompt_B * self._num_slots + slot_B

    def attention(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
        """[B, 1, heads, D]: attention as `models.attention` asks for it, one new token a row."""
        num_rows, num_heads, _one, width = query.shape
        query_BHQD = (in_float32(query) * scaling).reshape(num_rows, key.shape[1], num_heads // key.shape[1], width)
        return self.attend(layer, query_BHQD, key, value).reshape(num_rows, 1, num_heads, width)

    @property
    def _num_prompts(self) -> int:
        return self._prefix[0][0].shape[0]

    def attend(self, layer: int, query_BHQD: Tensor, own_keys_BHTD: Tensor, own_values_BHTD: Tensor) -> Tensor:
        """[B, H, Q, D] outputs of scaled queries over prompt and own tokens; queries and keys of `in_float32`."""
        keys_PHSD, values_PHSD = self._prefix[layer]
        scores_PHXS = self._by_prompt(query_BHQD) @ keys_PHSD.transpose(-1, -2)
        if self._bias_P11S is not None:
            scores_PHXS = scores_PHXS + self._bias_P11S
        scores_BHQS = self._by_row(scores_PHXS, query_BHQD.shape[2])
        scores_BHQT = query_BHQD @ own_keys_BHTD.transpose(-1, -2)
        weights = torch.cat([scores_BHQS, scores_BHQT], dim=-1).softmax(dim=-1, dtype=torch.float32)
        weights = weights.to(own_values_BHTD.dtype)
        weights_BHQS, weights_BHQT = weights.split([scores_BHQS.shape[-1], scores_BHQT.shape[-1]], dim=-1)
        over_prompt_PHXD = self._by_prompt(weights_BHQS) @ values_PHSD
        return self._by_row(over_prompt_PHXD, query_BHQD.shape[2]) + weights_BHQT @ own_values_BHTD

    def _by_prompt(self, rows_BHQX: Tensor) -> Tensor:
        """[P, H, slots * Q, X]: the rows of each prompt one below the other, zeros where a slot is empty."""
        # [B, H, Q, X]  ->  [P, slots, H, Q, X]  ->  [P, H, slots x Q, X]: all queries of a prompt meet its keys at once
        num_heads, num_queries, width = rows_BHQX.shape[1:]
        if self._place_B is not None:
            places = rows_BHQX.new_zeros((self._num_prompts * self._num_slots, *rows_BHQX.shape[1:]))
            rows_BHQX = places.index_copy_(0, self._place_B, rows_BHQX)
        split = rows_BHQX.reshape(self._num_prompts, self._num_slots, num_heads, num_queries, width)
        return split.transpose(1, 2).reshape(self._num_prompts, num_heads, self._num_slots * num_queries, width)

    def _by_row(self, prompts_PHXW: Tensor, num_queries: int) -> Tensor:
        """The inverse of `_by_prompt`."""
        num_prompts, num_heads, _, width = prompts_PHXW.shape
        split = prompts_PHXW.reshape(num_prompts, num_heads, self._num_slots, num_queries, width)
        rows_BHQX = split.transpose(1, 2).reshape(-1, num_heads, num_queries, width)
        return rows_BHQX if self._place_B is None else rows_BHQX[self._place_B]


def in_float32(tensor: Tensor) -> Tensor:
    """Queries and keys as their products are taken: a score is rounded to float32 and not to bfloat16.

    Fused attention does so inside. Qwen2 and Qwen2.5 have key biases that make scores of hundreds, of which bfloat16
    keeps the ones place at best: after the softmax that is another policy than the one that is trained. Keys are held
    so, once, because to widen all of them for every token would cost more than the memory.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


class OwnTokens:
    """Keys and values that the completions have added to one layer, in buffers with room for more.

    buffer  | t0  t1  t2  .  .  .  .  . |    `_length` = 3 of 8 places; all rows have decoded equally far
    """

    def __init__(self) -> None:
        self._buffers: list[Tensor] = []
        self._length = 0

    def append(self, *tokens_BH1D: Tensor) -> tuple[Tensor, ...]:
        """Add one token; what is there now, [B, H, T, D] each."""
        if not self._buffers:
            self._buffers = [_with_room(token, FIRST_ROOM) for token in tokens_BH1D]
        elif self._length == self._buffers[0].shape[2]:
            self._buffers = [_with_room(buffer, 2 * self._length) for buffer in self._buffers]
        for buffer, token in zip(self._buffers, tokens_BH1D, strict=True):
            buffer[:, :, self._length] = token[:, :, 0]
        self._length += 1
        return tuple(buffer[:, :, : self._length] for buffer in self._buffers)

    def select(self, keep_B: Tensor) -> None:
        """Drop the other rows."""
        self._buffers = [buffer[keep_B] for buffer in self._buffers]


def _with_room(tokens_BHTD: Tensor, room: int) -> Tensor:
    """The tokens in a buffer of `room` places."""
    num_rows, num_heads, length, width = tokens_BHTD.shape
    buffer = tokens_BHTD.new_empty((num_rows, num_heads, room, width))
    buffer[:, :, :length] = tokens_BHTD
    return buffer


class CopiedPrefixCache:
    """The same for families that cannot share: transformers' own cache with a copy of the prompt for each completion.

    Args:
        cache: of the prompts; changed in place.
        mask_PS: [P, S] int64, 0 on padding.
        num_samples: completions of each prompt.
    """

    def __init__(self, cache: Any, mask_PS: Tensor, num_samples: int) -> None:
        cache.batch_repeat_interleave(num_samples)
        self._cache = cache
        self._mask_BS = mask_PS.repeat_interleave(num_samples, dim=0)

    def inputs(self, num_rows: int) -> dict[str, Any]:
        """See `SharedPrefixCache.inputs`."""
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(num_rows, 1)], dim=1)
        return {cache_name(): self._cache, "attention_mask": self._mask_BS}

    def select(self, keep_B: Tensor) -> None:
        """See `SharedPrefixCache.select`."""
        self._cache.batch_select_indices(keep_B.nonzero().squeeze(-1))
        self._mask_BS = self._mask_BS[keep_B]
