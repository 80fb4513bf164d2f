"""Attention of packed rows by its definition: softmax over the pairs that a mask allows, in float64."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def visible(lengths: Sequence[Sequence[int]], width: int, device: torch.device | str = "cpu") -> Tensor:
    """[R, 1, S, S] bool: a prompt sees itself, a completion its prompt and itself, up to the token's own place."""
    seen = torch.zeros(len(lengths), 1, width, width, dtype=torch.bool, device=device)
    for row, (prompt, *completions) in enumerate(lengths):
        seen[row, :, :prompt, :prompt] = True
        start = prompt
        for length in completions:
            seen[row, :, start : start + length, :prompt] = True
            seen[row, :, start : start + length, start : start + length] = True
            start += length
    return seen & torch.ones(width, width, dtype=torch.bool, device=device).tril()


def draw(lengths: Sequence[Sequence[int]], width: int, heads: int, generator: torch.Generator) -> Tensor:
    """[R, heads, S, 32] as a layer gives it: a transposed view of what lies in memory token by token."""
    drawn = torch.randn(len(lengths), width, heads, 32, generator=generator, device=generator.device)
    return 2 * drawn.transpose(1, 2)


def exact_attention(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, scaling: float) -> Tensor:
    """[R, S, H, D]; a query that sees nothing gets zeros."""
    times = query.shape[1] // key.shape[1]
    keys, values = (each.repeat_interleave(times, dim=1) for each in (key, value))
    scores = (query @ keys.transpose(-1, -2) * scaling).masked_fill(~seen, -torch.inf)
    return (scores.softmax(dim=-1).nan_to_num() @ values).transpose(1, 2)


def used(lengths: Sequence[Sequence[int]], width: int, device: torch.device | str = "cpu") -> Tensor:
    """[R, S, 1, 1] bool: places that hold a token."""
    rows = [[place < sum(row) for place in range(width)] for row in lengths]
    return torch.tensor(rows, device=device)[:, :, None, None]


class Calls(TorchDispatchMode):
    """Counts the operations dispatched inside by name."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.found[func._schema.name.removeprefix("aten::")] += 1
        return func(*args, **(kwargs or {}))

    @property
    def of_attention(self) -> int:
        """Forward calls of SDPA, whatever its kernel."""
        return sum(count for name, count in self.found.items() if "dot_product" in name and "backward" not in name)
