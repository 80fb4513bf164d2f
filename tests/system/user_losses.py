"""A loss as a user would bring it by mistake: with the wrong sign."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from vlm_mhpo.objectives.mhpo import mhpo_loss


def negated_mhpo(*args: Any, **kwargs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """MHPO uphill."""
    loss, metrics = mhpo_loss(*args, **kwargs)
    return -loss, metrics
