"""From scored groups to the minibatches of a step: advantages, packed rows, and log-probs that stay constant."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch

from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.reference import Reference
from vlm_mhpo.runtime import ranks
from vlm_mhpo.scoring.advantages import advantages
from vlm_mhpo.training.balance import balance
from vlm_mhpo.training.forwards import UpdateSettings, log_probs_of, packed_once
from vlm_mhpo.types import Minibatch, ScoredGroup


def make_minibatches(
    engine: Engine,
    reference: Reference | None,
    scored: Sequence[ScoredGroup],
    settings: UpdateSettings,
    *,
    scale_rewards: str,
    advantage: str = "group",
    mask_truncated: bool = False,
) -> list[Minibatch]:
    """This rank's share of each minibatch, packed, with advantages and constant log-probs.

    Args:
        engine: the policy.
        reference: of the KL term, if there is one.
        scored: this rank's groups of the step.
        settings: see `UpdateSettings`.
        scale_rewards, advantage: see `TrainConfig`.
        mask_truncated: completions cut at the budget do not count in the loss.
    """
    # Against the mean of the batch a group of equal rewards has an advantage.
    skips_flat = settings.skips_idle and advantage != "reinforce_plus_plus"
    scored = balance(scored, settings.num_minibatches, skips_flat=skips_flat)
    advantages_PG = advantages_of(scored, scale_rewards, advantage)
    size = len(scored) // settings.num_minibatches
    minibatches = []
    for start in range(0, len(scored), size):
        groups = scored[start : start + size]
        sampled = tuple(c.log_probs for group in groups for c in group.group.completions)
        batch = Minibatch(
            groups=groups,
            masked=truncated_in(groups) if mask_truncated else frozenset(),
            advantages=tuple(advantages_PG[start : start + size].flatten().tolist()),
            old_log_probs=sampled,
            # The first update starts from the policy that sampled, so its own forward gives its old log-probs.
            fresh=frozenset(range(len(sampled))) if start == 0 else frozenset(),
        )
        minibatches.append(_with_constants(packed_once(engine.policy, batch, settings), engine, reference, settings))
    return minibatches


def _with_constants(
    batch: Minibatch, engine: Engine, reference: Reference | None, settings: UpdateSettings
) -> Minibatch:
    """The minibatch with the log-probs that forwards of their own must find."""
    log_probs = partial(
        log_probs_of,
        policy=engine.policy,
        groups=batch.groups,
        settings=settings,
        packed=batch.packed,
        otherwise=batch.old_log_probs,
    )
    found = {}
    if settings.recompute and not batch.fresh:
        found["old_log_probs"] = log_probs(engine)
    if reference:
        found["reference_log_probs"] = log_probs(reference.forward, phase="the reference")
    return replace(batch, **found)


def truncated_in(scored: Sequence[ScoredGroup]) -> frozenset[int]:
    """Flat indices of the completions that the budget cut."""
    completions = [c for group in scored for c in group.group.completions]
    return frozenset(index for index, completion in enumerate(completions) if completion.truncated)


def advantages_of(scored: Sequence[ScoredGroup], scale_rewards: str, advantage: str = "group") -> torch.Tensor:
    """[P, G] float64 advantages of this rank's groups; what speaks of the batch looks at all ranks' rewards."""
    parts = ranks.gather_objects([group.rewards for group in scored])
    rewards_PG = torch.tensor([rewards for part in parts for rewards in part], dtype=torch.float64)
    start = sum(len(part) for part in parts[: ranks.rank()])
    return advantages(rewards_PG, kind=advantage, scale_rewards=scale_rewards)[start : start + len(scored)]
