"""Inside the ratio: the gradient multiplier of any objective, histograms by the sign of the advantage, sample size.

The multiplier M of a token is what the objective puts before A grad log pi: 1 for REINFORCE, exp(psi - zeta) sech^2 for
MHPO, 0 for a clipped token. It is read off the loss itself by differentiation, so it is right for every objective,
a user's own included. Shape suffixes: B completions, T tokens.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vlm_mhpo.objectives import Objective
from vlm_mhpo.objectives.common import masked_stats
from vlm_mhpo.objectives.mhpo import DEAD_ZONE_SHARE
from vlm_mhpo.objectives.multipliers import multipliers
from vlm_mhpo.records.histograms import EDGES, NUM_BINS, SHARES, SIGNS, quantile, trim
from vlm_mhpo.records.metrics import fold
from vlm_mhpo.runtime import ranks

# Largest log-ratio that is measured, so that the sum of squares of a runaway ratio is still a float32.
RATIO_LIMIT = 40.0


@torch.no_grad()
def token_diagnostics(
    log_ratio_BT: Tensor, multiplier_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor, on_policy: float
) -> dict[str, Tensor]:
    """Sums for `records.metrics`: second moment of the ratio, share of tokens that barely learn.

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


@dataclass(slots=True)
class Totals:
    """Metric sums of micro-batches on this rank; see `records.metrics` for the name prefixes.

    `gradients` is what `gradient_sums` saw of each micro-batch, and its prompts; `fresh` are [T] log-probs by flat
    index that a first forward found. Neither is folded into another.
    """

    metrics: dict[str, Tensor] = field(default_factory=dict)
    num_tokens: Tensor = field(default_factory=lambda: torch.zeros((), device=ranks.device()))
    # A 0 that takes the shape of the first counts.
    histograms: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.int64, device=ranks.device()))
    gradients: list[tuple[Tensor, list[str]]] = field(default_factory=list)
    fresh: dict[int, Tensor] = field(default_factory=dict)

    def add(self, other: Totals) -> None:
        """Fold the sums of another in."""
        self.num_tokens = self.num_tokens + other.num_tokens
        self.histograms = self.histograms + other.histograms
        fold(self.metrics, other.metrics)


def measure(
    objective: Objective,
    loss: Tensor,
    log_probs_BT: Tensor,
    old_BT: Tensor,
    advantages_B: Tensor,
    mask_BT: Tensor,
    counts: dict[str, int],
    on_policy: float,
) -> Totals:
    """What the objective did to the tokens of a micro-batch: ratio, drift, multiplier."""
    multiplier_BT = multipliers(objective, loss, log_probs_BT, advantages_B, mask_BT, counts)
    with torch.no_grad():
        log_ratio_BT = torch.where(mask_BT, log_probs_BT - old_BT, 0.0).clamp(max=RATIO_LIMIT)
        # Under the sampling policy E[r - 1 - log r] = KL(old || current).
        drift_BT = torch.expm1(log_ratio_BT) - log_ratio_BT
        metrics = {
            "sum/kl_to_sampler": torch.where(mask_BT, drift_BT, 0.0).sum(),
            **masked_stats("ratio", torch.exp(log_ratio_BT), mask_BT),
            **token_diagnostics(log_ratio_BT, multiplier_BT, advantages_B, mask_BT, on_policy),
        }
        quantities = token_quantities(objective, log_ratio_BT, multiplier_BT)
        return Totals(metrics, mask_BT.sum(), histogram_counts(quantities, advantages_B, mask_BT))


def summarise_ratio(metrics: dict[str, float], drifts: Sequence[float | None]) -> None:
    """Add drift and effective sample size to the metrics of a step; a drift is None where no token was read."""
    if known := [drift for drift in drifts if drift is not None]:
        metrics["kl_to_sampler/last_minibatch"] = known[-1]
    if mean_square := metrics.pop("ratio_mean_square", None):
        metrics["ratio_effective_sample_size"] = effective_sample_size(metrics["ratio_mean"], mean_square)


def summarise_tokens(objective: Objective, totals: Totals) -> tuple[dict[str, float], dict[str, dict]]:
    """Quantiles and histograms of a step's tokens over all ranks; see `quantiles` and `named_histograms`."""
    names = quantity_names(objective)
    # A rank without a token still has its part in the collective.
    local = totals.histograms.expand(len(names), len(SIGNS), NUM_BINS).contiguous()
    counts = ranks.reduce(local, torch.distributed.ReduceOp.SUM)
    return quantiles(names, counts), named_histograms(names, counts)
