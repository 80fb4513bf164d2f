"""Weights against the gap between the engine that samples and the one that trains, when both hold the same weights.

With x = log pi_trainer - log pi_sampler of a token (before any update) the ratio is, by mode,

    token, icepop   e^x of the token itself        (truncated above; IcePop masks on both sides)
    sequence        e^(sum of x) of its completion  (unbiased, of large variance)
    geometric       e^(mean of x) of its completion

and the token's term of the loss is multiplied by it, at most `high`, and by 0 below `low` (icepop: also above `high`).
This is no staleness: the objective's own ratio compares the trainer with itself some updates later.

Shape suffixes: B completions, T tokens.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from vlm_mhpo.objectives import Objective
from vlm_mhpo.objectives.aggregation import token_sums
from vlm_mhpo.objectives.common import log_ratios, ratio, row_means


def mismatch_ratios(trainer_BT: Tensor, sampler_BT: Tensor, mask_BT: Tensor, mode: str) -> Tensor:
    """[B, T] ratios before any bound, 1 where masked.

    Args:
        trainer_BT, sampler_BT: [B, T] log-probs of the same weights by either engine, nats.
        mask_BT: [B, T] bool, True on sampled tokens.
        mode: see above; "none" has the ratios of "token", to be looked at.
    """
    x_BT = log_ratios(trainer_BT.detach(), sampler_BT, mask_BT)
    if mode == "sequence":
        x_BT = token_sums(x_BT, mask_BT)[:, None].expand_as(x_BT)
    elif mode == "geometric":
        x_BT = row_means(x_BT, mask_BT).expand_as(x_BT)
    return torch.where(mask_BT, ratio(x_BT), 1.0)


def mismatch_weights(ratio_BT: Tensor, mode: str, low: float, high: float) -> Tensor:
    """[B, T] what each token's term of the loss is multiplied by; [B, T] ratios as `mismatch_ratios` gives them."""
    if mode == "none":
        return torch.ones_like(ratio_BT)
    bounded_BT = torch.where(ratio_BT > high, 0.0, ratio_BT) if mode == "icepop" else ratio_BT.clamp(max=high)
    return torch.where(ratio_BT < low, 0.0, bounded_BT)


def weighted(objective: Objective, weight_BT: Tensor) -> Objective:
    """The objective with each token's term of its loss multiplied; terms that are added to it are not."""

    def aggregate(values_BT: Tensor, mask_BT: Tensor, **counts: int) -> Tensor:
        return objective.aggregate(values_BT * weight_BT, mask_BT, **counts)

    return replace(objective, loss=partial(objective.loss, aggregate=aggregate))
