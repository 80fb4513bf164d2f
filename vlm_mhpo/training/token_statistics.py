"""Inside the ratio: the gradient multiplier of any objective, histograms by the sign of the advantage, sample size.

The multiplier M of a token is what the objective puts before A grad log pi: 1 for REINFORCE, exp(psi - zeta) sech^2 for
MHPO, 0 for a clipped token. It is read off the loss itself by differentiation, so it is right for every objective,
a user's own included. Shape suffixes: B completions, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from vlm_mhpo.objectives import Objective
from vlm_mhpo.objectives.mhpo import DEAD_ZONE_SHARE
from vlm_mhpo.records.histograms import EDGES, NUM_BINS, SHARES, SIGNS, quantile, trim

# Largest log-ratio that is measured, so that the sum of squares of a runaway ratio is still a float32.
RATIO_LIMIT = 40.0


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


@torch.no_grad()
def token_diagnostics(
    log_ratio_BT: Tensor, multiplier_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor, on_policy: float
) -> dict[str, Tensor]:
    """Sums for `distributed.reduce_metrics`: second moment of the ratio, share of tokens that barely learn.

    Args:
        log_ratio_BT: [B, T] nats. multiplier_BT: [B, T] of `multipliers`.
        advantages_B: [B]. mask_BT: [B, T] bool.
        on_policy: of `on_policy_multiplier`.
    """
    ratio_BT = torch.where(mask_BT, torch.exp(log_ratio_BT.clamp(max=RATIO_LIMIT)), 0.0)
    stake_BT = torch.where(mask_BT, advantages_B.abs()[:, None], 0.0)
    damped_BT = multiplier_BT.abs() < DEAD_ZONE_SHARE * on_policy
    return {
        "sum/ratio_mean_square": ratio_BT.square().sum(),
        "sum/multiplier_mean": torch.where(mask_BT, multiplier_BT, 0.0).sum(),
        "part/damped_fraction": torch.where(damped_BT, stake_BT, 0.0).sum(),
        "whole/damped_fraction": stake_BT.sum(),
    }


@torch.no_grad()
def token_quantities(objective: Objective, log_ratio_BT: Tensor, multiplier_BT: Tensor) -> dict[str, Tensor]:
    """[B, T] of each quantity that is put into histograms: for every objective two, and what is inside its own."""
    return {"log_ratio": log_ratio_BT, "multiplier": multiplier_BT, **objective.inside(log_ratio_BT)}


def quantity_names(objective: Objective) -> tuple[str, ...]:
    """The names that `token_quantities` gives."""
    return tuple(token_quantities(objective, torch.zeros(1, 1), torch.zeros(1, 1)))


@torch.no_grad()
def histogram_counts(quantities: Mapping[str, Tensor], advantages_B: Tensor, mask_BT: Tensor) -> Tensor:
    """[quantities, 2 signs, NUM_BINS] int64 token counts; tokens without an advantage are not counted."""
    edges = torch.tensor(EDGES, device=mask_BT.device)
    sign_BT = (advantages_B < 0).long()[:, None].expand(mask_BT.shape)
    counted_BT = mask_BT & (advantages_B != 0)[:, None]
    places = []
    for index, values_BT in enumerate(quantities.values()):
        bins_BT = torch.bucketize(values_BT.float(), edges, right=True)
        places.append(((index * len(SIGNS) + sign_BT) * NUM_BINS + bins_BT)[counted_BT])
    size = len(quantities) * len(SIGNS) * NUM_BINS
    return torch.bincount(torch.cat(places), minlength=size).view(-1, len(SIGNS), NUM_BINS)


def named_histograms(names: Sequence[str], counts: Tensor) -> dict[str, dict[str, dict]]:
    """Counts of `histogram_counts` as JSON values: for each quantity and sign what `histograms.trim` makes."""
    return {
        name: {sign: trim(row) for sign, row in zip(SIGNS, rows, strict=True)}
        for name, rows in zip(names, counts.tolist(), strict=True)
    }


def quantiles(names: Sequence[str], counts: Tensor) -> dict[str, float]:
    """NAME_p01 to NAME_p99 over the tokens of both signs, with the ratio itself in place of its logarithm."""
    metrics = {}
    for name, row in zip(names, counts.sum(1).tolist(), strict=True):
        if not any(row):
            continue
        for label, share in SHARES.items():
            value = quantile(row, share)
            is_ratio = name == "log_ratio"
            metrics[f"{'ratio' if is_ratio else name}_{label}"] = math.exp(value) if is_ratio else value
    return metrics


def effective_sample_size(mean: float, mean_square: float) -> float:
    """(sum r)^2 / (n sum r^2), in (0, 1]: the share of tokens that the importance weights leave in effect."""
    # Sums rounded in float32 may put equal weights a little above 1.
    return min(1.0, mean**2 / mean_square)
