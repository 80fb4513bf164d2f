"""The gradient multiplier of any objective.

The multiplier M of a token is what the objective puts before A grad log pi: 1 for REINFORCE, exp(psi - zeta) sech^2 for
MHPO, 0 for a clipped token. It is read off the loss itself by differentiation, so it is right for every objective,
a user's own included. Shape suffixes: B completions, T tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vlm_mhpo.objectives import Objective


def multipliers(
    objective: Objective,
    policy_loss: Tensor,
    log_probs_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    counts: dict[str, int],
) -> Tensor:
    """[B, T] M of each token; 0 where masked or where the advantage is 0.

    Args:
        objective: the objective that made `policy_loss`.
        policy_loss: [] with its graph, which is kept.
        log_probs_BT: [B, T] that the loss was computed from.
        advantages_B: [B].
        mask_BT: [B, T] bool.
        counts: the denominators that the loss was given.
    """
    (gradient_BT,) = torch.autograd.grad(policy_loss, log_probs_BT, retain_graph=True)
    share_BT = token_shares(objective, mask_BT, counts, log_probs_BT.dtype)
    scale_BT = share_BT * advantages_B.detach()[:, None]
    return torch.where(mask_BT & (scale_BT != 0), -gradient_BT / torch.where(scale_BT == 0, 1.0, scale_BT), 0.0)


def token_shares(objective: Objective, mask_BT: Tensor, counts: dict[str, int], dtype: torch.dtype) -> Tensor:
    """[B, T] weight of each token's value in the objective's mean."""
    with torch.enable_grad():
        values_BT = torch.zeros(mask_BT.shape, dtype=dtype, device=mask_BT.device, requires_grad=True)
        (shares_BT,) = torch.autograd.grad(objective.aggregate(values_BT, mask_BT, **counts), values_BT)
    return shares_BT


def multiplier_curve(objective: Objective, log_ratio: Tensor, advantage: float) -> Tensor:
    """M at each log-ratio for completions of one token with the given advantage; shape of `log_ratio`, [n]."""
    size = log_ratio.shape[0]
    counts = {"num_completions": size, "num_tokens": size}
    log_probs_B1 = log_ratio.detach()[:, None].clone().requires_grad_()
    advantages_B = torch.full_like(log_ratio, advantage)
    mask_B1 = torch.ones(size, 1, dtype=torch.bool, device=log_ratio.device)
    with torch.enable_grad():
        loss, _ = objective.loss(log_probs_B1, torch.zeros_like(log_probs_B1), advantages_B, mask_B1, **counts)
        return multipliers(objective, loss, log_probs_B1, advantages_B, mask_B1, counts)[:, 0]


def on_policy_multiplier(objective: Objective) -> float:
    """M at ratio 1: 0.2651 for MHPO with the paper's constants, 1 for the others."""
    return float(multiplier_curve(objective, torch.zeros(1, dtype=torch.float64), 1.0))
