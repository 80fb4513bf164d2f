"""From scored groups to the minibatches of a step: advantages, and log-probs that stay constant."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.reference import Reference
from vlm_mhpo.records.metric_table import SAMPLING_GAP
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.advantages import group_advantages
from vlm_mhpo.training.balance import balance
from vlm_mhpo.training.update import UpdateSettings, log_probs_of
from vlm_mhpo.types import Minibatch, ScoredGroup


def make_minibatches(
    engine: Engine,
    reference: Reference | None,
    scored: Sequence[ScoredGroup],
    settings: UpdateSettings,
    *,
    scale_rewards: str,
    mask_truncated: bool = False,
) -> tuple[list[Minibatch], dict[str, float]]:
    """This rank's share of each minibatch, with advantages and constant log-probs, and the sampler's mismatch.

    Args:
        engine: the policy.
        reference: of the KL term, if there is one.
        scored: this rank's groups of the step.
        settings: see `UpdateSettings`.
        scale_rewards: see `TrainConfig`.
        mask_truncated: completions cut at the budget do not count in the loss.
    """
    scored = balance(scored, settings.num_minibatches)
    advantages_PG = advantages_of(scored, scale_rewards)
    sampled = tuple(c.log_probs for group in scored for c in group.group.completions)
    metrics: dict[str, float] = {}
    old = sampled
    if settings.recompute:
        old = log_probs_of(engine, engine.policy, scored, settings)
        metrics = _mismatch_metrics(sampled, old)
    frozen = log_probs_of(reference.forward, engine.policy, scored, settings, "the reference") if reference else None
    size, width = len(scored) // settings.num_minibatches, advantages_PG.shape[1]
    minibatches = []
    for start in range(0, len(scored), size):
        groups, flat = slice(start, start + size), slice(start * width, (start + size) * width)
        minibatches.append(
            Minibatch(
                groups=scored[groups],
                masked=truncated_in(scored[groups]) if mask_truncated else frozenset(),
                advantages=tuple(advantages_PG[groups].flatten().tolist()),
                old_log_probs=old[flat],
                reference_log_probs=frozen[flat] if frozen else None,
            )
        )
    return minibatches, metrics


def truncated_in(scored: Sequence[ScoredGroup]) -> frozenset[int]:
    """Flat indices of the completions that the budget cut."""
    completions = [c for group in scored for c in group.group.completions]
    return frozenset(index for index, completion in enumerate(completions) if completion.truncated)


def advantages_of(scored: Sequence[ScoredGroup], scale_rewards: str) -> torch.Tensor:
    """[P, G] float64 advantages of this rank's groups; "batch" scaling looks at all ranks' rewards."""
    parts = ranks.gather_objects([group.rewards for group in scored])
    rewards_PG = torch.tensor([rewards for part in parts for rewards in part], dtype=torch.float64)
    start = sum(len(part) for part in parts[: ranks.rank()])
    return group_advantages(rewards_PG, scale_rewards=scale_rewards)[start : start + len(scored)]


def _mismatch_metrics(sampled: Sequence[Tensor], old: Sequence[Tensor]) -> dict[str, float]:
    """Difference of the sampler's and the trainer's log-probs of the same tokens and weights, nats."""
    gaps_N = (torch.cat(list(old)).cpu().double() - torch.cat(list(sampled)).double()).abs()
    everyone = ranks.gather_objects((float(gaps_N.sum()), len(gaps_N), float(gaps_N.max())))
    return {
        SAMPLING_GAP.of(size="mean"): sum(g[0] for g in everyone) / sum(g[1] for g in everyone),
        SAMPLING_GAP.of(size="max"): max(g[2] for g in everyone),
    }
