"""Group-relative advantages in plain float64 loops; imports nothing but `math`."""

import math
from collections.abc import Sequence


def mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def unbiased_std(values: Sequence[float]) -> float:
    """Standard deviation with the denominator n - 1."""
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def group_advantages(
    groups: Sequence[Sequence[float]], scale_rewards: str = "group", epsilon: float = 1e-4
) -> list[list[float]]:
    """(reward - mean of its group) / (std + epsilon), the std of the group or of the whole batch, or not divided."""
    batch_std = unbiased_std([reward for group in groups for reward in group])
    advantages = []
    for group in groups:
        divisor = {
            "group": unbiased_std(group) + epsilon,
            "batch": batch_std + epsilon,
            "none": 1.0,
        }[scale_rewards]
        centre = mean(group)
        all_equal = min(group) == max(group)
        advantages.append([0.0 if all_equal else (reward - centre) / divisor for reward in group])
    return advantages


def rloo(groups: Sequence[Sequence[float]]) -> list[list[float]]:
    """reward - mean of the other rewards of its group."""
    return [
        [reward - mean([*group[:index], *group[index + 1 :]]) for index, reward in enumerate(group)] for group in groups
    ]


def reinforce_plus_plus(groups: Sequence[Sequence[float]], epsilon: float = 1e-4) -> list[list[float]]:
    """(reward - mean of the batch) / (std of the batch + epsilon), whatever the groups."""
    batch = [reward for group in groups for reward in group]
    return [[(reward - mean(batch)) / (unbiased_std(batch) + epsilon) for reward in group] for group in groups]
