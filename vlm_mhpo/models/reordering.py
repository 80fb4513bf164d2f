"""Tokens in another order, forward and backward by one look-up each: how attention sorts them into calls and back.

Shape suffixes: N tokens in the new order.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Order:
    """Another order of tokens.

    Attributes:
        source_N: of each new place the old one; None where nothing moves.
        empty: the new places that have none, which hold zeros (their source is any); None where all have one.
    """

    source_N: Tensor | None
    empty: Tensor | None


def orders(place_N: Tensor, num_old: int, device: torch.device) -> tuple[Order, Order]:
    """The order whose places come from these ones of `num_old`, -1 from none, and the way back.

    Each old place is in it at most once.
    """
    if torch.equal(place_N, torch.arange(num_old)):
        return Order(None, None), Order(None, None)
    back_N = place_N.new_full((num_old,), -1)
    back_N[place_N[place_N >= 0]] = (place_N >= 0).nonzero().flatten()
    return _order(place_N, device), _order(back_N, device)


def _order(place_N: Tensor, device: torch.device) -> Order:
    empty = (place_N < 0).nonzero().flatten().to(device)
    return Order(place_N.clamp(min=0).to(device), empty if len(empty) else None)


def reordered(tokens: Tensor, there: Order, back: Order) -> Tensor:
    """[N, ...] tokens in the order `there`; its backward reads the gradients in the order `back`."""
    return tokens if there.source_N is None else _Reordered.apply(tokens, there, back)


class _Reordered(torch.autograd.Function):
    """Each token goes to one place at most, so nothing is added up on the way back."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, there: Order, back: Order) -> Tensor:
        ctx.back = back
        return _reorder(tokens, there)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return _reorder(gradient, ctx.back), None, None


def _reorder(tokens: Tensor, order: Order) -> Tensor:
    found = tokens.index_select(0, order.source_N)
    return found if order.empty is None else found.index_fill_(0, order.empty, 0.0)
