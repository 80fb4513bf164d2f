"""What every objective shares: input checks, the masked log-ratio and ratio, the KL term, token statistics.

Shape suffixes: B completions, T tokens.
"""

import math

import torch
from torch import Tensor

from vlm_mhpo.objectives.aggregation import token_sums

# exp of it times an advantage of 1e6, summed over a batch, is still a finite float32.
MAX_EXPONENT = 60.0


class NonFiniteInput(ValueError):
    """An unmasked log-prob or advantage is NaN or inf: a bad step, where other ValueErrors are a wrong call."""


def check_inputs(
    log_probs_BT: Tensor, old_log_probs_BT: Tensor, advantages_B: Tensor, mask_BT: Tensor, num_completions: int
) -> None:
    """Raise ValueError for shapes that differ, a mask that is not bool, an empty batch, or an unmasked NaN or inf."""
    if log_probs_BT.dim() != 2 or log_probs_BT.shape != old_log_probs_BT.shape or log_probs_BT.shape != mask_BT.shape:
        raise ValueError(
            "log_probs, old_log_probs and mask must all be [B, T], got "
            f"{tuple(log_probs_BT.shape)}, {tuple(old_log_probs_BT.shape)}, {tuple(mask_BT.shape)}"
        )
    if log_probs_BT.numel() == 0:
        raise ValueError(f"there is no token: log_probs is {list(log_probs_BT.shape)}")
    if advantages_B.shape != log_probs_BT.shape[:1]:
        raise ValueError(f"advantages must be [B] = [{log_probs_BT.shape[0]}], got {tuple(advantages_B.shape)}")
    if mask_BT.dtype != torch.bool:
        raise ValueError(f"mask must be bool, got {mask_BT.dtype}")
    if num_completions < 1:
        raise ValueError(f"num_completions must be at least 1, got {num_completions}")
    # One reduction instead of three keeps the check to a single device synchronisation.
    valid_BT = torch.isfinite(log_probs_BT) & torch.isfinite(old_log_probs_BT) & torch.isfinite(advantages_B)[:, None]
    if not (valid_BT | ~mask_BT).all():
        raise NonFiniteInput("a log-prob, old log-prob or advantage of an unmasked token is NaN or inf")


def log_ratios(log_probs_BT: Tensor, old_log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """x = log pi_theta - log pi_old, nats, [B, T]; 0 where masked. float64 stays, everything lower becomes float32."""
    dtype = torch.float64 if log_probs_BT.dtype == torch.float64 else torch.float32
    # Masked before the subtraction: inf - inf would give NaN, and NaN * 0 gradients.
    current_BT = torch.where(mask_BT, log_probs_BT.to(dtype), 0.0)
    old_BT = torch.where(mask_BT, old_log_probs_BT.detach().to(dtype), 0.0)
    return current_BT - old_BT


def column(advantages_B: Tensor, like: Tensor) -> Tensor:
    """[B, 1] constant advantages in the dtype of `like`."""
    return advantages_B.detach().to(like.dtype)[:, None]


def ratio(log_ratio_BT: Tensor) -> Tensor:
    """r = exp(x); x is limited where exp would leave float32, far outside any trust region."""
    return torch.exp(log_ratio_BT.clamp(max=MAX_EXPONENT))


def row_means(values_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, 1] token mean of each completion; 0 for a row without tokens."""
    return (token_sums(values_BT, mask_BT) / mask_BT.sum(dim=1).clamp(min=1))[:, None]


def kl_penalty(log_probs_BT: Tensor, reference_log_probs_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """[B, T] k3 estimate of KL(pi_theta || pi_ref), nats: exp(d) - d - 1 with d = log pi_ref - log pi_theta."""
    # A token further than MAX_EXPONENT from the reference is penalised linearly: still pulled back, never inf.
    difference_BT = -log_ratios(log_probs_BT, reference_log_probs_BT, mask_BT)
    bounded_BT = difference_BT.clamp(max=MAX_EXPONENT)
    # expm1: e^d - 1 loses every digit of the small d of a policy near its reference.
    # relu, not difference - bounded: the gradients 1e26 - 1e26 of the two would swallow the one of the KL itself.
    beyond_BT = torch.relu(difference_BT - MAX_EXPONENT) * math.expm1(MAX_EXPONENT)
    return torch.expm1(bounded_BT) - bounded_BT + beyond_BT


def masked_stats(prefix: str, values_BT: Tensor, mask_BT: Tensor) -> dict[str, Tensor]:
    """Detached sum, min and max of the unmasked values, keyed for `records.metrics`.

    The mean needs the global token count, which the reducer has under the name "tokens".
    """
    values_BT = values_BT.detach().float()
    return {
        f"sum/{prefix}_mean": torch.where(mask_BT, values_BT, 0.0).sum(),
        f"min/{prefix}_min": torch.where(mask_BT, values_BT, torch.inf).min(),
        f"max/{prefix}_max": torch.where(mask_BT, values_BT, -torch.inf).max(),
    }


@torch.no_grad()
def clip_metrics(
    ratio_BT: Tensor, advantages_B1: Tensor, mask_BT: Tensor, epsilon_low: float, epsilon_high: float
) -> dict[str, Tensor]:
    """Counts of the tokens whose gradient is clipped away, under TRL's names; a [B, 1] ratio counts for its row."""
    low_BT = (ratio_BT < 1.0 - epsilon_low) & (advantages_B1 < 0) & mask_BT
    high_BT = (ratio_BT > 1.0 + epsilon_high) & (advantages_B1 > 0) & mask_BT
    return {
        "sum/clip_ratio/low_mean": low_BT.sum().float(),
        "sum/clip_ratio/high_mean": high_BT.sum().float(),
        "sum/clip_ratio/region_mean": (low_BT | high_BT).sum().float(),
    }
