"""MHPO: Modulated Hazard-aware Policy Optimization (arXiv:2603.16929).

Shape suffixes: B completions, T tokens. Not covered: a KL term (objectives/common.py adds it to any objective).
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from vlm_mhpo.objectives.aggregation import Aggregation, completion_mean
from vlm_mhpo.objectives.common import MAX_EXPONENT, check_inputs, column, log_ratios, masked_stats

# A token whose multiplier is below this share of the on-policy one barely learns: the dead zone.
DEAD_ZONE_SHARE = 0.1


def mhpo_weights(
    log_ratio: Tensor,
    *,
    c: float = 1.5,
    k_pos: float = 1.5,
    lambda_pos: float = 1.0,
    k_neg: float = 2.0,
    lambda_neg: float = 0.8,
    normalize_hazard: bool = False,
    use_modulator: bool = True,
    use_hazard: bool = True,
) -> tuple[Tensor, Tensor]:
    """The modulated log-ratio and the hazard.

    psi = c tanh(x / c)                                                          (Log-Fidelity Modulator)
    zeta = (s(psi) / lambda_pos)^k_pos + (s(-psi) / lambda_neg)^k_neg            (Decoupled Hazard Penalty)
    with s = softplus and psi held constant inside zeta.

    Args:
        log_ratio: x = log r, nats, any shape, floating.
        c: bound of psi, nats.
        k_pos, lambda_pos: Weibull shape and scale (nats) of ratios above 1; k_neg, lambda_neg: below 1.
        normalize_hazard: subtract zeta(1), so that an on-policy token weighs 1.
        use_modulator: False (ablation): psi = x, limited only where exp would overflow.
        use_hazard: False (ablation): zeta = 0.

    Returns:
        psi, zeta: shape and dtype of `log_ratio`; only psi carries a gradient.

    Raises:
        ValueError: a constant is not positive.
    """
    constants = {"c": c, "k_pos": k_pos, "lambda_pos": lambda_pos, "k_neg": k_neg, "lambda_neg": lambda_neg}
    for name, value in constants.items():
        if not 0 < value < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {value}")
    psi = c * torch.tanh(log_ratio / c) if use_modulator else log_ratio.clamp(max=MAX_EXPONENT)
    if not use_hazard:
        return psi, torch.zeros_like(psi)
    zeta = hazard(psi.detach(), k_pos=k_pos, lambda_pos=lambda_pos, k_neg=k_neg, lambda_neg=lambda_neg)
    if normalize_hazard:
        at_one = torch.zeros((), dtype=psi.dtype, device=psi.device)
        zeta = zeta - hazard(at_one, k_pos=k_pos, lambda_pos=lambda_pos, k_neg=k_neg, lambda_neg=lambda_neg)
    return psi, zeta


def hazard(psi: Tensor, *, k_pos: float, lambda_pos: float, k_neg: float, lambda_neg: float) -> Tensor:
    """zeta of a modulated log-ratio: two Weibull cumulative hazards, dimensionless, >= 0."""
    return (softplus(psi) / lambda_pos) ** k_pos + (softplus(-psi) / lambda_neg) ** k_neg


def mhpo_inside(log_ratio: Tensor, **constants: float) -> dict[str, Tensor]:
    """psi and zeta under the names of their metrics; see `mhpo_weights`."""
    psi, zeta = mhpo_weights(log_ratio, **constants)
    return {"mhpo/psi": psi, "mhpo/zeta": zeta}


def mhpo_multiplier(log_ratio: Tensor, *, c: float = 1.5, use_modulator: bool = True, **constants: float) -> Tensor:
    """M(r) = exp(psi - zeta) sech^2(x / c): the factor of A grad log pi in the gradient; shape of `log_ratio`.

    Without the modulator (ablation) psi is x itself and the last factor is 1.
    """
    psi, zeta = mhpo_weights(log_ratio, c=c, use_modulator=use_modulator, **constants)
    weight = torch.exp(psi - zeta)
    return weight * (1.0 - torch.tanh(log_ratio / c) ** 2) if use_modulator else weight


def mhpo_loss(
    log_probs: Tensor,
    old_log_probs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    num_completions: int,
    num_tokens: int | None = None,
    aggregate: Aggregation = completion_mean,
    c: float = 1.5,
    k_pos: float = 1.5,
    lambda_pos: float = 1.0,
    k_neg: float = 2.0,
    lambda_neg: float = 0.8,
    normalize_hazard: bool = False,
    use_modulator: bool = True,
    use_hazard: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """MHPO loss: minus the mean over completions of the token mean of exp(psi - sg[zeta]) A.

    Args:
        log_probs: [B, T] float, nats; current policy, of the sampled tokens. Carries the gradient.
        old_log_probs: [B, T] float, nats; the policy that sampled. Constant.
        advantages: [B] float, dimensionless. Constant.
        mask: [B, T] bool, True on sampled tokens. A row may be all False.
        num_completions: completions in the global batch (all ranks and micro-batches), >= 1.
        num_tokens: sampled tokens in the global batch; needed by `aggregation.token_mean`.
        aggregate: how token values become the loss; a function of `objectives.aggregation`.
        c, k_pos, lambda_pos, k_neg, lambda_neg, normalize_hazard, use_modulator, use_hazard: see `mhpo_weights`.

    Returns:
        loss: [] float32 (float64 for float64 inputs); add over micro-batches, sum gradients over ranks.
        metrics: detached [] float32 sums, minima and maxima over the unmasked tokens.

    Raises:
        ValueError: shapes differ, mask is not bool, a constant is not positive, or an unmasked value is not finite.
    """
    check_inputs(log_probs, old_log_probs, advantages, mask, num_completions)
    constants = {
        "c": c,
        "k_pos": k_pos,
        "lambda_pos": lambda_pos,
        "k_neg": k_neg,
        "lambda_neg": lambda_neg,
        "normalize_hazard": normalize_hazard,
        "use_modulator": use_modulator,
        "use_hazard": use_hazard,
    }
    log_ratio_BT = log_ratios(log_probs, old_log_probs, mask)
    # Only the counted tokens, in one row: vector and scalar code round tanh and pow differently, so that where a
    # token stands in a padded batch could otherwise change its last bit.
    psi_V, zeta_V = mhpo_weights(log_ratio_BT[mask], **constants)
    psi_BT, zeta_BT, weight_BT = (
        torch.zeros_like(log_ratio_BT).masked_scatter(mask, values_V)
        for values_V in (psi_V, zeta_V, torch.exp(psi_V - zeta_V))
    )
    advantages_B1 = column(advantages, weight_BT)
    loss = -aggregate(weight_BT * advantages_B1, mask, num_completions=num_completions, num_tokens=num_tokens)
    return loss, _mhpo_metrics(log_ratio_BT.detach(), psi_BT, zeta_BT, advantages_B1, mask, constants)


@torch.no_grad()
def _mhpo_metrics(
    log_ratio_BT: Tensor, psi_BT: Tensor, zeta_BT: Tensor, advantages_B1: Tensor, mask_BT: Tensor, constants: dict
) -> dict[str, Tensor]:
    """Token statistics of the ratio, the modulator, the hazard and the dead zone, for `records.metrics`."""
    # sech^2 from the psi at hand; the multiplier's own function would evaluate the hazard a second time.
    slope_BT = 1.0 - (psi_BT / constants["c"]) ** 2 if constants["use_modulator"] else 1.0
    multiplier_BT = torch.exp(psi_BT - zeta_BT) * slope_BT
    on_policy = mhpo_multiplier(torch.zeros((), dtype=psi_BT.dtype, device=psi_BT.device), **constants)
    dead_BT = multiplier_BT < DEAD_ZONE_SHARE * on_policy
    stake_BT = torch.where(mask_BT, advantages_B1.abs(), 0.0)
    metrics = {
        **masked_stats("mhpo/log_ratio", log_ratio_BT, mask_BT),
        **masked_stats("mhpo/psi", psi_BT, mask_BT),
        **masked_stats("mhpo/zeta", zeta_BT, mask_BT),
        **masked_stats("mhpo/multiplier", multiplier_BT, mask_BT),
    }
    signs = {"": mask_BT, "_positive": mask_BT & (advantages_B1 > 0), "_negative": mask_BT & (advantages_B1 < 0)}
    for suffix, chosen_BT in signs.items():
        name = f"mhpo/dead_zone_fraction{suffix}"
        metrics[f"part/{name}"] = torch.where(chosen_BT & dead_BT, stake_BT, 0.0).sum().float()
        metrics[f"whole/{name}"] = torch.where(chosen_BT, stake_BT, 0.0).sum().float()
    return metrics
