"""VESPO: Variational Sequence-Level Soft Policy Optimization (arXiv:2602.10693); a Gamma weight of a completion.

The importance weight of a completion is the product of its tokens' ratios, not their mean: 100 tokens that drift by 1 %
each make w = 2.7. A bell in w, 1 at w = 1, takes the place of clipping and of the length normalisation.

Shape suffixes: B completions, T tokens.
"""

import math

import torch
from torch import Tensor

from vlm_mhpo.objectives.aggregation import Aggregation, token_mean, token_sums
from vlm_mhpo.objectives.common import check_inputs, column, log_ratios

# Where the authors' implementation stops: below it phi is 0 for every sensible constant, above it certainly.
LOWEST, HIGHEST = math.log(1e-8), 20.0


def vespo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_completions: int,
    num_tokens: int | None = None,
    aggregate: Aggregation = token_mean,
    k_pos: float = 2.0,
    lambda_pos: float = 3.0,
    k_neg: float = 3.0,
    lambda_neg: float = 2.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Minus the token mean of sg[phi(w)] A log pi, phi(w) = w^k exp(lambda (1 - w)), w = exp(sum_t x).

    Args, returns and errors as `mhpo.mhpo_loss`; `k_pos`, `lambda_pos`: exponent and decay for A >= 0, `k_neg`,
    `lambda_neg` for A < 0, all > 0. phi is largest at w = k / lambda.
    """
    check_inputs(log_probs, old_log_probs, advantages, mask, num_completions)
    constants = {"k_pos": k_pos, "lambda_pos": lambda_pos, "k_neg": k_neg, "lambda_neg": lambda_neg}
    if not all(0 < value < math.inf for value in constants.values()):
        raise ValueError(f"the constants of VESPO must be positive and finite, got {constants}")
    # In float64: the rounding of a sum over thousands of tokens would become a factor of the weight.
    log_ratio_BT = log_ratios(log_probs.detach().double(), old_log_probs, mask)
    log_weight_B1 = token_sums(log_ratio_BT.clamp(-HIGHEST, HIGHEST), mask)[:, None].clamp(LOWEST, HIGHEST)
    advantages_B1 = column(advantages, log_weight_B1)
    rises_B1 = advantages_B1 >= 0
    k_B1, lambda_B1 = (
        torch.where(rises_B1, log_weight_B1.new_tensor(up), log_weight_B1.new_tensor(down))
        for up, down in ((k_pos, k_neg), (lambda_pos, lambda_neg))
    )
    phi_B1 = torch.exp(k_B1 * log_weight_B1 - lambda_B1 * torch.expm1(log_weight_B1))
    dtype = torch.float64 if log_probs.dtype == torch.float64 else torch.float32
    surrogate_BT = (phi_B1 * advantages_B1).to(dtype) * torch.where(mask, log_probs.to(dtype), 0.0)
    loss = -aggregate(surrogate_BT, mask, num_completions=num_completions, num_tokens=num_tokens)
    return loss, {"sum/vespo/phi_mean": torch.where(mask, phi_B1, 0.0).sum().float()}
