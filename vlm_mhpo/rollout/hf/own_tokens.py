"""What completions add to the cache while they are decoded: their own keys and values, and which of them are there.

Shape suffixes: B rows (slots), H key-value heads, T own tokens, D head width, Y heads x rows, R rows or prompts, K
keys.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

# Room for a completion's keys grows by doubling: one move of what is there for every doubling.
FIRST_ROOM = 32


def in_float32(tensor: Tensor) -> Tensor:
    """Queries and keys as their products are taken: a score is rounded to float32 and not to bfloat16.

    Fused attention does so inside. Qwen2 and Qwen2.5 have key biases that make scores of hundreds, of which bfloat16
    keeps the ones place at best: after the softmax that is another policy than the one that is trained. Keys are held
    so, once, because to widen all of them for every token would cost more than the memory.
    """
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def bias(hidden_RK: Tensor, like: Tensor) -> Tensor:
    """[R, K] what to add to scores: -inf where hidden, else 0, of the type of `like`."""
    return like.new_zeros(hidden_RK.shape).masked_fill_(hidden_RK, -torch.inf)


class ByHeads:
    """A bias [R, K] of rows or prompts, and the same for all heads, [heads x R, 1, K]; None = there is none.

    Layers may differ in their number of heads; it is repeated once for each number.
    """

    def __init__(self, bias_RK: Tensor | None) -> None:
        self._bias_RK = bias_RK
        self._repeated: dict[int, Tensor] = {}

    def of(self, num_heads: int) -> Tensor | None:
        """The bias for so many heads."""
        if self._bias_RK is None:
            return None
        if num_heads not in self._repeated:
            self._repeated[num_heads] = self._bias_RK.repeat(num_heads, 1)[:, None]
        return self._repeated[num_heads]


@dataclass(frozen=True, slots=True)
class Columns:
    """Where a step's tokens go in the buffers of own tokens.

    Attributes:
        width: T, of the row that is furthest, the new token included.
        place: their column, if it is that of all rows; else the rows [B] and the column [B] of each.
        bias_BT: 0 where a row has a token, else -inf; none where all rows are equally far.
    """

    width: int
    place: int | tuple[Tensor, Tensor]
    bias_BT: ByHeads

    @classmethod
    def at(cls, time_B: np.ndarray, like: Tensor) -> Columns:
        """For rows that have `time_B` tokens so far, and keys of the type and device of `like`."""
        width = int(time_B.max()) + 1
        if width == time_B.min() + 1:
            return cls(width, width - 1, ByHeads(None))
        column_B = torch.from_numpy(time_B).to(like.device)
        hidden_BT = torch.arange(width, device=like.device) > column_B[:, None]
        place = (torch.arange(len(time_B), device=like.device), column_B)
        return cls(width, place, ByHeads(bias(hidden_BT, like)))


class OwnTokens:
    """Keys and values that the completions have added to one layer, in buffers [H, B, places, D] with room for more.

    buffer  | a0  a1  a2  .   .  .  .  . |    slots of a, which has 3 tokens, and of b, which took its slot over from
            | b0  c1  c2  c3  .  .  .  . |    c: what is left of c is hidden, and written over as b goes on

    Args:
        max_tokens: places of a row at most.
    """

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._buffers: list[Tensor] = []

    def write(self, columns: Columns, keys_BH1D: Tensor, values_BH1D: Tensor) -> None:
        """Write one token of each row."""
        room = self._buffers[0].shape[2] if self._buffers else 0
        if columns.width > room:
            most = max(columns.width, min(self._max_tokens, max(FIRST_ROOM, 2 * room)))
            old = self._buffers or [each.transpose(0, 1)[:, :, :0] for each in (in_float32(keys_BH1D), values_BH1D)]
            self._buffers = [_with_room(buffer, buffer.shape[1], most) for buffer in old]
        for buffer, token in zip(self._buffers, (keys_BH1D, values_BH1D), strict=True):
            token_HBD = token.squeeze(2).transpose(0, 1)
            if isinstance(columns.place, int):
                buffer.select(2, columns.place).copy_(token_HBD)
            else:
                buffer[:, *columns.place] = token_HBD.to(buffer.dtype)

    def tokens(self, columns: Columns) -> list[Tensor]:
        """Keys and values that are there now, [H, B, T, D] each."""
        return [buffer[:, :, : columns.width] for buffer in self._buffers]

    def seat(self, kept: Sequence[int], num_rows: int) -> None:
        """See `SharedPrefixCache.seat`."""
        for index, buffer in enumerate(self._buffers):
            if len(kept) < buffer.shape[1]:
                buffer = chosen(buffer, kept)
            if num_rows > buffer.shape[1]:
                buffer = _with_room(buffer, num_rows, buffer.shape[2])
            self._buffers[index] = buffer


def chosen(rows_HXTD: Tensor, kept: Sequence[int], axis: int = 1) -> Tensor:
    """Some rows or prompts; an index in brackets would leave them in another order in memory."""
    return rows_HXTD.index_select(axis, torch.tensor(kept, dtype=torch.int64, device=rows_HXTD.device))


def _with_room(tokens_HBTD: Tensor, num_rows: int, room: int) -> Tensor:
    """The tokens in a buffer of more rows or places; zeros elsewhere, since even a hidden NaN would be one."""
    num_heads, old_rows, length, width = tokens_HBTD.shape
    buffer = tokens_HBTD.new_zeros((num_heads, num_rows, room, width))
    buffer[:, :old_rows, :length] = tokens_HBTD
    return buffer
