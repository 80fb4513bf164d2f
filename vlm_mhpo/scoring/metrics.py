"""Reward, verdict and length metrics under TRL's names."""

from __future__ import annotations

from collections.abc import Sequence

from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import ScoredGroup


def reward_metrics(scored: Sequence[ScoredGroup]) -> dict[str, float]:
    """Global reward, verdict and length metrics under TRL's names; the same on all ranks."""
    local = [
        (
            list(group.rewards),
            {name: list(values) for name, values in group.rewards_by_name.items()},
            list(group.verdicts),
            [(len(c.token_ids), c.truncated) for c in group.group.completions],
            group.group.prompt.num_tokens,
            dict(group.logged),
            group.num_by_worker,
        )
        for group in scored
    ]
    groups = [group for part in ranks.gather_objects(local) for group in part]
    rewards = [reward for group in groups for reward in group[0]]
    lengths = [length for group in groups for length, _ in group[3]]
    finished = [length for group in groups for length, truncated in group[3] if not truncated]
    verdicts = [verdict for group in groups for verdict in group[2]]
    count = len(rewards)
    metrics = {
        "reward": mean(rewards),
        # As in TRL: the mean over groups of the std inside a group.
        "reward_std": mean([std(group[0]) for group in groups]),
        "frac_reward_zero_std": mean([float(max(group[0]) == min(group[0])) for group in groups]),
        "completions/mean_length": mean(lengths),
        "completions/min_length": float(min(lengths)),
        "completions/max_length": float(max(lengths)),
        "completions/clipped_ratio": 1.0 - len(finished) / count,
        "verdicts/by_worker": sum(group[6] for group in groups) / count,
        "num_tokens": float(sum(lengths) + sum(group[4] for group in groups)),
    }
    if finished:
        metrics["completions/mean_terminated_length"] = mean(finished)
        metrics["completions/min_terminated_length"] = float(min(finished))
        metrics["completions/max_terminated_length"] = float(max(finished))
    for name in groups[0][1]:
        values = [value for group in groups for value in group[1][name] if value is not None]
        if values:
            metrics[f"rewards/{name}/mean"] = mean(values)
            metrics[f"rewards/{name}/std"] = std(values)
    for name in sorted({name for group in groups for name in group[5]}):
        metrics[f"logged/{name}"] = mean([group[5][name] for group in groups if name in group[5]])
    for verdict in sorted(set(verdicts)):
        metrics[f"verdicts/{verdict}"] = verdicts.count(verdict) / count
    return metrics


def mean(values: Sequence[float]) -> float:
    """Arithmetic mean of at least one value."""
    return sum(values) / len(values)


def std(values: Sequence[float]) -> float:
    """Unbiased standard deviation; 0 for one value."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return (sum((value - centre) ** 2 for value in values) / (len(values) - 1)) ** 0.5
