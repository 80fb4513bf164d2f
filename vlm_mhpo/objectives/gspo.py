"""GSPO: Group Sequence Policy Optimization (arXiv:2507.18071); the ratio of the whole completion is clipped.

Shape suffixes: B completions, T tokens.
"""

import torch
from torch import Tensor

from vlm_mhpo.objectives.aggregation import Aggregation, completion_mean
from vlm_mhpo.objectives.common import check_inputs, clip_metrics, column, log_ratios, ratio, row_means


def gspo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_completions: int,
    num_tokens: int | None = None,
    aggregate: Aggregation = completion_mean,
    epsilon_low: float = 3e-4,
    epsilon_high: float = 4e-4,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the mean over completions of min(s A, clip(s, 1 - epsilon_low, 1 + epsilon_high) A), s = exp(mean_t x).

    Args, returns and errors as `mhpo.mhpo_loss`; `epsilon_low`, `epsilon_high`: clipping distances from 1, > 0.
    """
    check_inputs(log_probs, old_log_probs, advantages, mask, num_completions)
    if not (epsilon_low > 0 and epsilon_high > 0):
        raise ValueError(f"epsilon_low and epsilon_high must be positive, got {epsilon_low} and {epsilon_high}")
    log_ratio_BT = log_ratios(log_probs, old_log_probs, mask)
    ratio_B1 = ratio(row_means(log_ratio_BT, mask))
    advantages_B1 = column(advantages, ratio_B1)
    clipped_B1 = ratio_B1.clamp(1.0 - epsilon_low, 1.0 + epsilon_high)
    surrogate_BT = torch.minimum(ratio_B1 * advantages_B1, clipped_B1 * advantages_B1).expand_as(log_ratio_BT)
    loss = -aggregate(surrogate_BT, mask, num_completions=num_completions, num_tokens=num_tokens)
    return loss, clip_metrics(ratio_B1, advantages_B1, mask, epsilon_low, epsilon_high)
