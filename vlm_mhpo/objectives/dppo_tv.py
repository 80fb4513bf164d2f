"""DPPO-TV: Divergence PPO with the binary total variation (arXiv:2602.04879); a trust region in probability.

A token of probability 0.001 may triple or vanish without moving the policy by much, one of 0.9 may not: what is bounded
is the change of the sampled token's probability, where clipping bounds its ratio.

Shape suffixes: B completions, T tokens.
"""

import torch
from torch import Tensor

from vlm_mhpo.objectives.aggregation import Aggregation, token_mean
from vlm_mhpo.objectives.common import check_inputs, column, log_ratios, ratio


def dppo_tv_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_completions: int,
    num_tokens: int | None = None,
    aggregate: Aggregation = token_mean,
    delta_low: float = 0.2,
    delta_high: float = 0.2,
    max_ratio: float = 20.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the token mean of sg[m min(r, max_ratio)] A log pi.

    The mask m is 0 where the probability has risen by more than `delta_high` and A > 0, or fallen by more than
    `delta_low` and A <= 0; else 1. Args, returns and errors as `mhpo.mhpo_loss`.

    Args:
        delta_low, delta_high: largest change of the sampled token's probability, in (0, 1).
        max_ratio: bound of the importance weight, > 0.
    """
    check_inputs(log_probs, old_log_probs, advantages, mask, num_completions)
    if not (0 < delta_low < 1 and 0 < delta_high < 1 and max_ratio > 0):
        raise ValueError(
            f"delta_low and delta_high must lie between 0 and 1 and max_ratio above 0, got {delta_low}, {delta_high} "
            f"and {max_ratio}"
        )
    log_ratio_BT = log_ratios(log_probs.detach(), old_log_probs, mask)
    weight_BT = ratio(log_ratio_BT).clamp(max=max_ratio)
    advantages_B1 = column(advantages, weight_BT)
    log_probs_BT = torch.where(mask, log_probs.to(weight_BT.dtype), 0.0)
    old_log_probs_BT = torch.where(mask, old_log_probs.detach().to(weight_BT.dtype), 0.0)
    rise_BT = log_probs_BT.detach().exp() - old_log_probs_BT.exp()
    high_BT, low_BT = (advantages_B1 > 0) & (rise_BT > delta_high), (advantages_B1 <= 0) & (rise_BT < -delta_low)
    inside_BT = ~(high_BT | low_BT)
    surrogate_BT = weight_BT * inside_BT * advantages_B1 * log_probs_BT
    loss = -aggregate(surrogate_BT, mask, num_completions=num_completions, num_tokens=num_tokens)
    # A completion with advantage 0 has no gradient to mask.
    moves_BT = mask & (advantages_B1 != 0)
    names = {"low_mean": low_BT & moves_BT, "high_mean": high_BT & moves_BT, "region_mean": ~inside_BT & moves_BT}
    return loss, {f"sum/clip_ratio/{name}": each_BT.sum().float() for name, each_BT in names.items()}
