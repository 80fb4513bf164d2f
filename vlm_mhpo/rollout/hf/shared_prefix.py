"""Decoding attention: a prompt's keys and values are held and read once for all its completions.

A new token attends to its prompt and to its own completion. Scores against the prompt are one product for all
completions of the prompt, scores against the own tokens one product per completion; one softmax runs over both.

Completions are decoded in slots. One that ends leaves its slot to one that waits, of whatever prompt, so slots have
decoded different numbers of tokens, and those of a prompt lie anywhere. Two prompts whose completions have five slots:

    slot      0  1  2  3  4          rows B of every product with own tokens
    prompt    0  0  1  0  1          (`prompt_B`)
    place     0  1  3  2  4  (5)     of a row for the product with its prompt's keys: P x 3; 5 is empty: zeros go in,
                                     and what comes out is not read

    scores of a row   [ against S prompt keys, held once per prompt | against its own T keys                  ]
                      [ x  x  -inf (padding of a shorter prompt)    | y  y  -inf (others have decoded further) ]

The padding side does not matter: positions are given, and hidden keys get the bias -inf.

Shape suffixes: P prompts, B rows (slots), H key-value heads, Q query heads a key-value head, S prompt tokens, T own
tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm_mhpo.models.attention import cache_name, no_mask

# Room for a completion's keys grows by doubling: one move of what is there for every doubling.
FIRST_ROOM = 32


class SharedPrefixCache:
    """Stands where transformers expects its cache while completions are decoded.

    Args:
        max_tokens: own tokens of a completion at most.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._prefix: list[tuple[Tensor, Tensor]] = []
        self._own: list[OwnTokens] = []
        self._mask_PS = torch.zeros((0, 0), dtype=torch.int64)
        self._bias_P11S: Tensor | None = None
        self._num_slots = 0
        # [B] place of each row among prompts x slots; None = every place is taken, in order.
        self._place_B: Tensor | None = None
        # Of the prompt of each row its place, and how many tokens the row has.
        self._prompt_B, self._time_B = np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64)
        # Of a step, by window: what is out of sight.
        self._far: dict[int, tuple[Tensor, Tensor]] = {}
        # Where the next token goes, and what hides the places that a row has not reached; see `inputs`.
        self._columns: Columns | None = None

    @property
    def width(self) -> int:
        """S: tokens of the longest prompt."""
        return self._mask_PS.shape[1]

    def enter(self, cache: Any, mask_PS: Tensor) -> None:
        """Hold these prompts, too, behind those that are here.

        Args:
            cache: transformers' own, as the prompts left it.
            mask_PS: [P, S] int64, 0 on padding.
        """
        if not self._own:
            self._own = [OwnTokens(self._max_tokens) for _ in cache.layers]
        fresh = [(in_float32(layer.keys), layer.values) for layer in cache.layers]
        if not self._num_prompts:
            self._prefix = fresh
        else:
            width = max(self.width, mask_PS.shape[1])
            for layer, pair in enumerate(zip(self._prefix, fresh, strict=True)):
                # One layer after the other: both prefixes twice would be the peak of the rollout.
                self._prefix[layer] = tuple(_joined(*tensors, width=width) for tensors in zip(*pair, strict=True))
            mask_PS = _joined(self._mask_PS[..., None], mask_PS[..., None], width=width)[..., 0]
        self._hide(mask_PS)

    def leave(self, kept: Sequence[int]) -> None:
        """Hold only the prompts at these places."""
        if len(kept) < self._num_prompts:
            for layer, (keys, values) in enumerate(self._prefix):
                self._prefix[layer] = (keys[kept], values[kept])
            self._hide(self._mask_PS[kept])

    def _hide(self, mask_PS: Tensor) -> None:
        """Hide what the mask says from now on."""
        self._mask_PS, hidden_PS = mask_PS, mask_PS == 0
        self._bias_P11S = (
            torch.zeros(mask_PS.shape, device=mask_PS.device).masked_fill(hidden_PS, -torch.inf)[:, None, None]
            if bool(hidden_PS.any())
            else None
        )

    def seat(self, kept: Sequence[int], prompt_B: np.ndarray) -> None:
        """Go on with these rows, in order, and behind them empty ones.

        Args:
            kept: rows that stay, own tokens and all; who takes one over from another writes over its tokens.
            prompt_B: [B] the place of each row's prompt; B >= len(kept).
        """
        for own in self._own:
            own.seat(kept, len(prompt_B))
        self._prompt_B = prompt_B
        #   prompt_B  0 0 1 0 1  ->  counts_P  3 2  ->  slot_B  0 1 0 2 1  ->  place  0 1 3 2 4   (3 slots per prompt)
        counts_P = np.bincount(prompt_B, minlength=len(self._mask_PS))
        order_B = np.argsort(prompt_B, kind="stable")
        slot_B = np.empty_like(order_B)
        slot_B[order_B] = np.arange(len(prompt_B)) - np.repeat(counts_P.cumsum() - counts_P, counts_P)
        self._num_slots = int(counts_P.max())
        place_B = prompt_B * self._num_slots + slot_B
        in_order = np.array_equal(place_B, np.arange(self._num_prompts * self._num_slots))
        self._place_B = None if in_order else torch.from_numpy(place_B).to(self._mask_PS.device)

    def inputs(self, time_B: np.ndarray) -> dict[str, Any]:
        """Keyword arguments of the transformers model that feed one token to each row, its `time_B`-th (from 0)."""
        self._columns = Columns.at(time_B, self._mask_PS.device)
        self._time_B, self._far = time_B, {}
        return {
            cache_name(): self,
            "shared_prefix": self,
            "attention_mask": no_mask(self._prefix[0][1]),
        }

    def update(self, keys_BH1D: Tensor, values_BH1D: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add a token to each row; all own keys and values of the layer, [B, H, T, D] each."""
        return self._own[layer].write(self._columns, in_float32(keys_BH1D), values_BH1D)

    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None
    ) -> Tensor:
        """[B, 1, heads, D]: attention as `models.attention` asks for it, one new token a row.

        With a `window` a token sees those less than so many positions before it.
        """
        num_rows, num_heads, _one, width = query.shape
        query_BHQD = (in_float32(query) * scaling).reshape(num_rows, key.shape[1], num_heads // key.shape[1], width)
        return self.attend(layer, query_BHQD, key, value, window).reshape(num_rows, 1, num_heads, width)

    @property
    def _num_prompts(self) -> int:
        return len(self._mask_PS)

    def _out_of_sight(self, window: int) -> tuple[Tensor, Tensor]:
        """Biases [B, 1, 1, S] and [B, 1, 1, T] of the step: -inf on tokens of prompt and row before the window."""
        if window not in self._far:
            device = self._mask_PS.device
            prompt_B, time_B1 = (torch.from_numpy(each).to(device) for each in (self._prompt_B, self._time_B[:, None]))
            # Positions of prompts count up, without padding.
            count_PS = self._mask_PS.cumsum(dim=1)
            away_BS = (count_PS[:, -1:] - count_PS + 1)[prompt_B] + time_B1
            away_BT = time_B1 - torch.arange(self._columns.width, device=device)
            self._far[window] = tuple(
                torch.zeros(away.shape, device=device).masked_fill_(away >= window, -torch.inf)[:, None, None]
                for away in (away_BS, away_BT)
            )
        return self._far[window]

    def attend(
        self,
        layer: int,
        query_BHQD: Tensor,
        own_keys_BHTD: Tensor,
        own_values_BHTD: Tensor,
        window: int | None = None,
    ) -> Tensor:
        """[B, H, Q, D] outputs of scaled queries over prompt and own tokens; queries and keys of `in_float32`."""
        keys_PHSD, values_PHSD = self._prefix[layer]
        scores_PHXS = self._by_prompt(query_BHQD) @ keys_PHSD.transpose(-1, -2)
        if self._bias_P11S is not None:
            scores_PHXS = scores_PHXS + self._bias_P11S
        scores_BHQS = self._by_row(scores_PHXS, query_BHQD.shape[2])
        scores_BHQT = query_BHQD @ own_keys_BHTD.transpose(-1, -2)
        if self._columns.bias_B11T is not None:
            scores_BHQT = scores_BHQT + self._columns.bias_B11T
        if window is not None:
            far_B11S, far_B11T = self._out_of_sight(window)
            scores_BHQS, scores_BHQT = scores_BHQS + far_B11S, scores_BHQT + far_B11T
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


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a step's tokens go in the buffers of own tokens.

    Attributes:
        width: T, of the row that is furthest, the new token included.
        column: of all rows, or [B] of each.
        bias_B11T: 0 where a row has a token, else -inf; None where all rows are equally far.
    """

    width: int
    column: int | Tensor
    bias_B11T: Tensor | None

    @classmethod
    def at(cls, time_B: np.ndarray, device: torch.device) -> Columns:
        """For rows that have `time_B` tokens so far."""
        width = int(time_B.max()) + 1
        if width == time_B.min() + 1:
            return cls(width, width - 1, None)
        column_B = torch.from_numpy(time_B).to(device)
        hidden_BT = torch.arange(width, device=device) > column_B[:, None]
        bias_BT = torch.zeros(hidden_BT.shape, device=device).masked_fill_(hidden_BT, -torch.inf)
        return cls(width, column_B, bias_BT[:, None, None])


class OwnTokens:
    """Keys and values that the completions have added to one layer, in buffers with room for more.

    buffer  | a0  a1  a2  .   .  .  .  . |    slots of a, which has 3 tokens, and of b, which took its slot over from
            | b0  c1  c2  c3  .  .  .  . |    c: what is left of c is hidden, and written over as b goes on

    Args:
        max_tokens: places of a row at most.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._buffers: list[Tensor] = []

    def write(self, columns: Columns, *tokens_BH1D: Tensor) -> tuple[Tensor, ...]:
        """Write one token of each row; what is there now, [B, H, T, D] each."""
        room = self._buffers[0].shape[2] if self._buffers else 0
        if columns.width > room:
            most = max(columns.width, min(self._max_tokens, max(FIRST_ROOM, 2 * room)))
            old = self._buffers or [token[:, :, :0] for token in tokens_BH1D]
            self._buffers = [_with_room(buffer, len(buffer), most) for buffer in old]
        for buffer, token in zip(self._buffers, tokens_BH1D, strict=True):
            if isinstance(columns.column, int):
                buffer[:, :, columns.column] = token[:, :, 0]
            else:
                buffer[torch.arange(len(buffer), device=buffer.device), :, columns.column] = token[:, :, 0]
        return tuple(buffer[:, :, : columns.width] for buffer in self._buffers)

    def seat(self, kept: Sequence[int], num_rows: int) -> None:
        """See `SharedPrefixCache.seat`."""
        for index, buffer in enumerate(self._buffers):
            if len(kept) < len(buffer):
                buffer = buffer[kept]
            if num_rows > len(buffer):
                buffer = _with_room(buffer, num_rows, buffer.shape[2])
            self._buffers[index] = buffer


def _with_room(tokens_BHTD: Tensor, num_rows: int, room: int) -> Tensor:
    """The tokens in a buffer of more rows or places; zeros elsewhere, since even a hidden NaN would be one."""
    old_rows, num_heads, length, width = tokens_BHTD.shape
    buffer = tokens_BHTD.new_zeros((num_rows, num_heads, room, width))
    buffer[:old_rows, :, :length] = tokens_BHTD
    return buffer


def _joined(*prompts_PXSD: Tensor, width: int) -> Tensor:
    """Prompts of several prefills one behind the other, each with padding in front up to S = `width`."""
    return torch.cat([pad(each, (0, 0, width - each.shape[-2], 0)) for each in prompts_PXSD])


class CopiedPrefixCache:
    """The same for families that cannot share: transformers' own cache with a copy of the prompt for each completion.

    Its rows grow together, so prompts enter it only when no row is left.
    """

    def __init__(self) -> None:
        self._cache: Any = None
        self._mask_BS = torch.zeros((0, 0), dtype=torch.int64)
        self._is_fresh = False

    def enter(self, cache: Any, mask_PS: Tensor) -> None:
        """Begin again with these prompts."""
        self._cache, self._mask_BS, self._is_fresh = cache, mask_PS, True

    def leave(self, kept: Sequence[int]) -> None:
        """The prompts go with their rows."""

    def seat(self, kept: Sequence[int], prompt_B: np.ndarray) -> None:
        """See `SharedPrefixCache.seat`; rows of prompts that have just entered are all new."""
        rows_B = torch.as_tensor(prompt_B if self._is_fresh else kept, device=self._mask_BS.device)
        self._cache.batch_select_indices(rows_B)
        self._mask_BS, self._is_fresh = self._mask_BS[rows_B], False

    def inputs(self, time_B: np.ndarray) -> dict[str, Any]:
        """See `SharedPrefixCache.inputs`."""
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(time_B), 1)], dim=1)
        return {cache_name(): self._cache, "attention_mask": self._mask_BS}
