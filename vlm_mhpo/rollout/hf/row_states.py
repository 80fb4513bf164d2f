"""States of recurrent layers in decoding: that of a prompt is of constant size, and each row begins with a copy.

    prompts            rows, by the prompt of each          after a token
    s0  s1             s0  s0  s1  s0                       s0' s0" s1' s0'"

Shape suffixes: P prompts, B rows (slots).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


class RowStates:
    """What one layer remembers in each row: the last inputs of its convolution, and its recurrent state."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []

    def seat(self, kept: Sequence[int], num_rows: int) -> None:
        """See `SharedPrefixCache.seat`; what new rows hold is written over when they `begin`."""
        for index, rows in enumerate(self.tensors):
            rows = rows[kept] if len(kept) < len(rows) else rows
            self.tensors[index] = torch.cat([rows, rows.new_zeros(num_rows - len(rows), *rows.shape[1:])])

    def begin(self, prompts: tuple[Tensor, Tensor], rows_B: Tensor, prompt_B: Tensor) -> None:
        """Let some rows begin where their prompts ended.

        Args:
            prompts: both states of all prompts, [P, ...] each.
            rows_B: [B] bool, those that begin.
            prompt_B: [B] int64, the prompt of every row.
        """
        if not self.tensors:
            self.tensors = [states.new_zeros(len(prompt_B), *states.shape[1:]) for states in prompts]
        for rows, states in zip(self.tensors, prompts, strict=True):
            rows[rows_B] = states[prompt_B[rows_B]]


class RecurrentCache:
    """What recurrent layers ask of the cache in a step of decoding: one token per row, on from the row's own states."""

    _states: dict[int, RowStates]

    def get_conv_state(self, layer: int, **_: Any) -> Tensor:
        """[B, channels, width]; the layer shifts it in place."""
        return self._states[layer].tensors[0]

    def get_recurrent_state(self, layer: int, **_: Any) -> Tensor:
        """[B, heads, key width, value width] float32."""
        return self._states[layer].tensors[1]

    def is_recording_past(self, layer: int) -> bool:
        """Nothing is ever taken back."""
        return False

    def update_recurrent_state(self, state: Tensor, layer: int, **_: Any) -> None:
        """The states after the token."""
        self._states[layer].tensors[1] = state
