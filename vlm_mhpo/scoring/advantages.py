"""Advantages: rewards relative to those of the same prompt, or of the batch.

Shape suffixes: P prompts, G completions per prompt.
"""

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["group", "rloo", "reinforce_plus_plus"]
Scale = Literal["group", "batch", "none"]


def advantages(rewards_PG: Tensor, *, kind: Kind = "group", scale_rewards: Scale = "group") -> Tensor:
    """Reward minus a baseline, divided by what `scale_rewards` says.

    The baseline of a completion is, by `kind`:
    - "group": the mean of its group, itself included (`group_advantages`).
    - "rloo": the mean of the others of its group (arXiv:2402.14740, section 2.2), which makes the difference
      G / (G - 1) times as large.
    - "reinforce_plus_plus": the mean of the batch (arXiv:2501.03262, global normalisation); of the group nothing is
      known. That paper's variant with a group baseline is kind "group" with scale_rewards "batch".

    Args, returns and errors as of `group_advantages`.
    """
    if kind == "reinforce_plus_plus":
        # All completions as one group, so equal rewards are exact zeros here, too.
        flat_1B = rewards_PG.reshape(1, -1)
        return group_advantages(flat_1B, scale_rewards=scale_rewards).view_as(rewards_PG)
    found_PG = group_advantages(rewards_PG, scale_rewards=scale_rewards)
    num_generations = rewards_PG.shape[1]
    return found_PG * (num_generations / (num_generations - 1)) if kind == "rloo" else found_PG


def group_advantages(rewards_PG: Tensor, *, scale_rewards: Scale = "group", epsilon: float = 1e-4) -> Tensor:
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
