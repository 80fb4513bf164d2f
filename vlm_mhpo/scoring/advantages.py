"""Group-relative advantages.

Shape suffixes: P prompts, G completions per prompt.
"""

from typing import Literal

import torch
from torch import Tensor


def group_advantages(
    rewards_PG: Tensor, *, scale_rewards: Literal["group", "batch", "none"] = "group", epsilon: float = 1e-4
) -> Tensor:
    """Reward minus its group's mean, divided by a standard deviation (arXiv:2402.03300, eq. of section 4.1.2).

    Args:
        rewards_PG: [P, G] float, any unit; the global batch when `scale_rewards` is "batch".
        scale_rewards: "group" divides by each group's std, "batch" by the std of all P*G rewards, "none" by nothing.
        epsilon: added to the std (unbiased, as in TRL).

    Returns:
        [P, G] in the dtype of the rewards; a group of equal rewards gives exact zeros.

    Raises:
        ValueError: fewer than two completions per group, or a reward that is not finite.
    """
    if rewards_PG.dim() != 2 or rewards_PG.shape[1] < 2:
        raise ValueError(f"advantages need [P, G] rewards with G >= 2, got shape {tuple(rewards_PG.shape)}")
    if not torch.isfinite(rewards_PG).all():
        raise ValueError("advantages need finite rewards; got NaN or inf")
    centred_PG = rewards_PG - rewards_PG.mean(dim=1, keepdim=True)
    # Rounding of the mean leaves 1e-17 in a group of equal rewards, which a tiny std would blow up.
    equal_P1 = (rewards_PG == rewards_PG[:, :1]).all(dim=1, keepdim=True)
    centred_PG = centred_PG.masked_fill(equal_P1, 0.0)
    if scale_rewards == "none":
        return centred_PG
    if scale_rewards == "group":
        return centred_PG / (rewards_PG.std(dim=1, keepdim=True) + epsilon)
    if scale_rewards == "batch":
        return centred_PG / (rewards_PG.std() + epsilon)
    raise ValueError(f"scale_rewards must be group, batch or none, got {scale_rewards!r}")
