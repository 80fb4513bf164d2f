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

Heads come first in everything that is held, rows and prompts after them: where every prompt has as many rows and they
lie in order, as most do most of the time, rows [H, B, ...] and places [H, P x slots, ...] are the same memory, and
nothing is moved between the products.

Shape suffixes: P prompts, B rows (slots), H key-value heads, Q query heads a key-value head, S prompt tokens, T own
tokens, D head width.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from vlm_mhpo.models.attention import cache_name, no_mask
from vlm_mhpo.rollout.hf.own_tokens import ByHeads, Columns, OwnTokens, bias, chosen, in_float32
from vlm_mhpo.rollout.hf.row_states import RecurrentCache, RowStates


class SharedPrefixCache(RecurrentCache):
    """Stands where transformers expects its cache while completions are decoded.

    Args:
        max_tokens: own tokens of a completion at most.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        # Of each layer keys and values of the prompts, or what a recurrent layer remembers of them.
        self._prefix: list[tuple[Tensor, Tensor]] = []
        self._own: list[OwnTokens | RowStates] = []
        self._states: dict[int, RowStates] = {}
        # Of each row the place of its prompt, and how many tokens it has.
        self._prompt_B, self._time_B = np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
        # Of a step, by window: what is out of sight.
        self._far: dict[int, tuple[ByHeads, ByHeads]] = {}
        self._mask_PS = torch.zeros((0, 0), dtype=torch.int64)
        self._bias_PS = ByHeads(None)
        self._num_slots = 0
        # [B] place of each row among prompts x slots, and [places] a row of each; None = all are taken, in order.
        self._place_B: Tensor | None = None
        self._row_of: Tensor | None = None
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
            self._states = {i: RowStates() for i, layer in enumerate(cache.layers) if hasattr(layer, "conv_states")}
            self._own = [self._states.get(i) or OwnTokens(self._max_tokens) for i in range(len(cache.layers))]
        width = max(self.width if self._num_prompts else 0, mask_PS.shape[1])
        for index, layer in enumerate(cache.layers):
            # One layer after the other, and then gone: both caches whole would be the peak of the rollout.
            if index in self._states:
                fresh, join = (layer.conv_states[0], layer.recurrent_states[0]), _followed
            else:
                fresh = (in_float32(layer.keys).transpose(0, 1), layer.values.transpose(0, 1))
                join = partial(_joined, width=width)
                layer.keys = layer.values = None
            if not self._num_prompts:
                self._prefix[index:] = [tuple(each.contiguous() for each in fresh)]
            else:
                self._prefix[index] = tuple(join(*pair) for pair in zip(self._prefix[index], fresh, strict=True))
        if self._num_prompts:
            mask_PS = _joined(self._mask_PS[None, ..., None], mask_PS[None, ..., None], width=width)[0, ..., 0]
        self._hide(mask_PS)

    def leave(self, kept: Sequence[int]) -> None:
        """Hold only the prompts at these places."""
        if len(kept) < self._num_prompts:
            for layer, pair in enumerate(self._prefix):
                axis = 0 if layer in self._states else 1
                self._prefix[layer] = tuple(chosen(each, kept, axis) for each in pair)
            self._hide(self._mask_PS[kept])

    def _hide(self, mask_PS: Tensor) -> None:
        """Hide what the mask says from now on."""
        self._mask_PS, hidden_PS = mask_PS, mask_PS == 0
        self._bias_PS = ByHeads(bias(hidden_PS, self._some_keys) if bool(hidden_PS.any()) else None)

    def seat(self, kept: Sequence[int], prompt_B: np.ndarray) -> None:
        """Go on with these rows, in order, and behind them empty ones.

        Args:
            kept: rows that stay, own tokens and all; who takes one over from another writes over its tokens.
            prompt_B: [B] the place of each row's prompt; B >= len(kept).
        """
        for own in self._own:
            own.seat(kept, len(prompt_B))
        #   prompt_B  0 0 1 0 1  ->  counts_P  3 2  ->  slot_B  0 1 0 2 1  ->  place  0 1 3 2 4   (3 slots per prompt)
        counts_P = np.bincount(prompt_B, minlength=len(self._mask_PS))
        order_B = np.argsort(prompt_B, kind="stable")
        slot_B = np.empty_like(order_B)
        slot_B[order_B] = np.arange(len(prompt_B)) - np.repeat(counts_P.cumsum() - counts_P, counts_P)
        self._num_slots = int(counts_P.max())
        place_B = prompt_B * self._num_slots + slot_B
        in_order = np.array_equal(place_B, np.arange(self._num_prompts * self._num_slots))
        self._prompt_B = prompt_B
        self._place_B = self._row_of = None
        if not in_order:
            # A place that nobody has computes what some row does, and nobody reads it.
            row_of = np.zeros(self._num_prompts * self._num_slots, dtype=np.int64)
            row_of[place_B] = np.arange(len(place_B))
            self._place_B, self._row_of = (
                torch.from_numpy(each).to(self._mask_PS.device) for each in (place_B, row_of)
            )

    def inputs(self, time_B: np.ndarray) -> dict[str, Any]:
        """Keyword arguments of the transformers model that feed one token to each row, its `time_B`-th (from 0)."""
        self._columns = Columns.at(time_B, self._some_keys)
        self._time_B, self._far = time_B, {}
        if self._states and not time_B.all():
            rows_B, prompt_B = (
                torch.from_numpy(each).to(self._mask_PS.device) for each in (time_B == 0, self._prompt_B)
            )
            for layer, states in self._states.items():
                states.begin(self._prefix[layer], rows_B, prompt_B)
        return {
            cache_name(): self,
            "shared_prefix": self,
            "attention_mask": no_mask(self._prefix[self._first_attention][1]),
        }

    def update(self, keys_BH1D: Tensor, values_BH1D: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Add a token to each row; all own keys and values of the layer, [B, H, T, D] each."""
        self._own[layer].write(self._columns, keys_BH1D, values_BH1D)
        keys_HBTD, values_HBTD = self._own[layer].tokens(self._columns)
        return keys_HBTD.transpose(0, 1), values_HBTD.transpose(0, 1)

    def attention(
        self, layer: int, query: Tensor, key: Tensor, value: Tensor, scaling: float, window: int | None = None
    ) -> Tensor:
        """[B, 1, heads, D]: attention as `models.attention` asks for it, one new token a row, after `update`.

        With a `window` a token sees those less than so many positions before it.
        """
        num_rows, num_heads, _one, width = query.shape
        num_key_heads = len(self._prefix[layer][0])
        query_BHQD = query.reshape(num_rows, num_key_heads, num_heads // num_key_heads, width)
        return self.attend(layer, query_BHQD, scaling, window).reshape(num_rows, 1, num_heads, width)

    def add_and_attend(
        self, layer: int, query_BHQD: Tensor, keys_BH1D: Tensor, values_BH1D: Tensor, scaling: float
    ) -> Tensor:
        """`update` and then `attend`."""
        self._own[layer].write(self._columns, keys_BH1D, values_BH1D)
        return self.attend(layer, query_BHQD, scaling)

    @property
    def _num_prompts(self) -> int:
        return len(self._mask_PS)

    @property
    def _first_attention(self) -> int:
        """A layer that holds keys and values; others may be recurrent."""
        return next(index for index in range(len(self._prefix)) if index not in self._states)

    @property
    def _some_keys(self) -> Tensor:
        return self._prefix[self._first_attention][0]

    def _out_of_sight(self, window: int) -> tuple[ByHeads, ByHeads]:
        """Biases [B, S] and [B, T] of the step: -inf on tokens of prompt and row before the window."""
        if window not in self._far:
            device = self._mask_PS.device
            prompt_B, time_B1 = (torch.from_numpy(each).to(device) for each in (self._prompt_B, self._time_B[:, None]))
            # Positions of prompts count up, without padding.
            count_PS = self._mask_PS.cumsum(dim=1)
            away_BS = (count_PS[:, -1:] - count_PS + 1)[prompt_B] + time_B1
            away_BT = time_B1 - torch.arange(self._columns.width, device=device)
            self._far[window] = tuple(ByHeads(bias(away >= window, self._some_keys)) for away in (away_BS, away_BT))
        return self._far[window]

    def attend(self, layer: int, query_BHQD: Tensor, scaling: float, window: int | None = None) -> Tensor:
        """[B, H, Q, D] outputs of queries over prompt and own tokens, those of the window if there is one."""
        num_rows, num_heads, num_queries, width = query_BHQD.shape
        by_row = (num_heads, num_rows, num_queries, -1)
        by_place = (num_heads, self._num_prompts * self._num_slots, num_queries, -1)
        # X = H x P, Y = H x B: all queries of a prompt meet its keys at once.
        keys_XSD, values_XSD = (each.flatten(0, 1) for each in self._prefix[layer])
        own_keys_YTD, own_values_YTD = (each.flatten(0, 1) for each in self._own[layer].tokens(self._columns))
        num_prompt_keys = keys_XSD.shape[1]
        query_HBQD = keys_XSD.new_empty((num_heads, num_rows, num_queries, width)).copy_(query_BHQD.transpose(0, 1))
        query_XGD = self._moved(query_HBQD, self._row_of).view(len(keys_XSD), -1, width)
        scores_XGS = _product(query_XGD, keys_XSD.mT, self._bias_PS.of(num_heads), scaling)
        scores_YQS = self._moved(scores_XGS.view(by_place), self._place_B).flatten(0, 1)
        bias_Y1T = self._columns.bias_BT.of(num_heads)
        scores_YQT = _product(query_HBQD.flatten(0, 1), own_keys_YTD.mT, bias_Y1T, scaling)
        if window is not None:
            far_BS, far_BT = self._out_of_sight(window)
            scores_YQS, scores_YQT = scores_YQS + far_BS.of(num_heads), scores_YQT + far_BT.of(num_heads)
        weights = torch.cat([scores_YQS, scores_YQT], dim=-1).softmax(dim=-1, dtype=torch.float32)
        weights = weights.to(values_XSD.dtype)
        weights_HBQS = weights[..., :num_prompt_keys].view(by_row)
        over_prompt_XGD = self._moved(weights_HBQS, self._row_of).view(len(keys_XSD), -1, num_prompt_keys) @ values_XSD
        output_YQD = self._moved(over_prompt_XGD.view(by_place), self._place_B).flatten(0, 1)
        output_YQD.baddbmm_(weights[..., num_prompt_keys:], own_values_YTD)
        return output_YQD.view(by_row).transpose(0, 1)

    def _moved(self, rows_HXQD: Tensor, index: Tensor | None) -> Tensor:
        """The rows at `index`; None = as they are."""
        return rows_HXQD if index is None else rows_HXQD.index_select(1, index)


def _product(left_XMK: Tensor, right_XKN: Tensor, bias_X1N: Tensor | None, scale: float) -> Tensor:
    """scale left @ right + bias, in one call."""
    if bias_X1N is None:
        return torch.baddbmm(left_XMK.new_empty((1, 1, 1)), left_XMK, right_XKN, beta=0, alpha=scale)
    return torch.baddbmm(bias_X1N, left_XMK, right_XKN, alpha=scale)


def _followed(*states_P: Tensor) -> Tensor:
    """States of prompts one behind the other."""
    return torch.cat(states_P)


def _joined(*prompts_HPSD: Tensor, width: int) -> Tensor:
    """Prompts of several prefills one behind the other, each with padding in front up to S = `width`."""
    return torch.cat([pad(each, (0, 0, width - each.shape[-2], 0)) for each in prompts_HPSD], dim=1)


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
        # As beams are chosen: recurrent layers know no other way.
        self._cache.reorder_cache(rows_B)
        self._mask_BS, self._is_fresh = self._mask_BS[rows_B], False

    def inputs(self, time_B: np.ndarray) -> dict[str, Any]:
        """See `SharedPrefixCache.inputs`."""
        self._mask_BS = torch.cat([self._mask_BS, self._mask_BS.new_ones(len(time_B), 1)], dim=1)
        return {cache_name(): self._cache, "attention_mask": self._mask_BS}
