"""GMPO: Geometric-Mean Policy Optimization (arXiv:2507.20673); ratios are clipped in log space, then averaged there.

Shape suffixes: B completions, T tokens.
"""

import torch
from torch import Tensor

from vlm_mhpo.objectives.aggregation import Aggregation, completion_mean
from vlm_mhpo.objectives.common import check_inputs, column, log_ratios, ratio, row_means


def gmpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_completions: int,
    num_tokens: int | None = None,
    aggregate: Aggregation = completion_mean,
    epsilon: float = 0.4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the mean over completions of exp(mean_t x_clipped) A, x clipped at +-epsilon where that lowers x A.

    Args, returns and errors as `mhpo.mhpo_loss`; `epsilon`: clipping distance of the log-ratio, nats, > 0.
    """
    check_inputs(log_probs, old_log_probs, advantages, mask, num_completions)
    if not epsilon > 0:
        raise ValueError(f"epsilon must be positive, got {epsilon}")
    log_ratio_BT = log_ratios(log_probs, old_log_probs, mask)
    advantages_B1 = column(advantages, log_ratio_BT)
    bounded_BT = log_ratio_BT.clamp(-epsilon, epsilon)
    clipped_BT = torch.where(
        advantages_B1 > 0, torch.minimum(log_ratio_BT, bounded_BT), torch.maximum(log_ratio_BT, bounded_BT)
    )
    weight_B1 = ratio(row_means(clipped_BT, mask))
    surrogate_BT = (weight_B1 * advantages_B1).expand_as(log_ratio_BT)
    loss = -aggregate(surrogate_BT, mask, num_completions=num_completions, num_tokens=num_tokens)
    is_clipped_BT = (clipped_BT != log_ratio_BT) & (advantages_B1 != 0) & mask
    return loss, {"sum/clip_ratio/region_mean": is_clipped_BT.sum().float()}
