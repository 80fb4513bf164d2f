"""Forwards of scored groups: their settings, micro-batches that are packed once a step, log-probs without gradient.

Shape suffixes: B completions, T completion tokens, N valid completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from vlm_mhpo.config import MismatchConfig, RolloutConfig, TrainConfig
from vlm_mhpo.errors import UnreadableError
from vlm_mhpo.faults.memory import enough_memory, smaller_forward
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.objectives import Objective
from vlm_mhpo.objectives.multipliers import on_policy_multiplier
from vlm_mhpo.training.micro_batches import MicroBatch, micro_batches
from vlm_mhpo.types import Minibatch, ScoredGroup


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """What an update needs of the configuration.

    Attributes:
        beta: weight of the KL term; 0 = none.
        entropy_coef: weight of the entropy bonus; 0 = none.
        temperature: of the log-probs, as in sampling.
        max_tokens: padded tokens of one forward.
        chunk_size: completion tokens whose logits exist at once.
        num_minibatches, num_iterations: updates per pass, and passes.
        recompute: take old log-probs from the trainer's own forward instead of the sampler.
        pad_id: fills rows.
        on_nonfinite: "stop" or "skip".
        on_policy: multiplier of a token at ratio 1, of `objectives.multipliers.on_policy_multiplier`.
        mismatch: weights against the gap of sampler and trainer, whose ratios are recorded; None = neither.
        skips_idle: leave out what adds exactly nothing to the gradient: completions with advantage 0, and masked ones.
    """

    beta: float
    temperature: float
    max_tokens: int
    chunk_size: int
    num_minibatches: int
    num_iterations: int
    recompute: bool
    pad_id: int
    on_nonfinite: str
    on_policy: float = 1.0
    skips_idle: bool = False
    entropy_coef: float = 0.0
    mismatch: MismatchConfig | None = None


def update_settings(
    train: TrainConfig,
    rollout: RolloutConfig,
    objective: Objective,
    *,
    beta: float,
    pad_id: int,
    entropy_coef: float = 0.0,
) -> UpdateSettings:
    """The part of the configuration that an update reads."""
    return UpdateSettings(
        beta=beta,
        temperature=rollout.temperature,
        max_tokens=train.max_tokens_per_micro_batch,
        chunk_size=train.logits_chunk_size,
        num_minibatches=train.num_minibatches,
        num_iterations=train.num_iterations,
        recompute=rollout.old_log_probs == "trainer",
        pad_id=pad_id,
        on_nonfinite=train.on_nonfinite,
        on_policy=on_policy_multiplier(objective),
        # A KL term pulls at every token, and so does a bonus.
        skips_idle=objective.scales_with_advantage and not beta and not entropy_coef,
        entropy_coef=entropy_coef,
        mismatch=rollout.mismatch if rollout.mismatch.mode != "none" or _has_two_engines(rollout) else None,
    )


def _has_two_engines(rollout: RolloutConfig) -> bool:
    """The sampler's log-probs and the trainer's own are different figures, both known."""
    return rollout.engine != "hf" and rollout.old_log_probs == "trainer"


def log_probs_of(
    forward: Callable[..., tuple[Tensor, Tensor | None]],
    policy: Policy,
    groups: Sequence[ScoredGroup],
    settings: UpdateSettings,
    *,
    packed: Sequence[MicroBatch] | None = None,
    otherwise: Sequence[Tensor] = (),
    phase: str = "scoring log-probs",
) -> tuple[Tensor, ...]:
    """[T] float32 of each completion: log-probs of its tokens under `forward` (an engine or a module), no gradient.

    Args:
        packed: the micro-batches of the groups, when they are made already.
        otherwise: rows of completions that are in none of them.
        phase: what is going on, for an error about memory.
    """
    values = dict(enumerate(otherwise))
    with torch.no_grad():
        for micro_batch in packed or micro_batches_of(policy, groups, settings):
            with named(groups, micro_batch), fitting(phase, policy, micro_batch, settings.max_tokens):
                log_probs_N, _ = forward(
                    micro_batch.rows,
                    temperature=settings.temperature,
                    chunk_size=settings.chunk_size,
                    with_entropy=False,
                )
            if not micro_batch.is_padding:
                values |= rows_of(groups, micro_batch, micro_batch.scatter(log_probs_N)[0])
    return tuple(values[flat] for flat in sorted(values))


def rows_of(groups: Sequence[ScoredGroup], micro_batch: MicroBatch, values_BT: Tensor) -> dict[int, Tensor]:
    """[T] of each completion of a micro-batch by flat index; copies, since a view would keep the whole micro-batch."""
    lengths = [len(c.token_ids) for scored in groups for c in scored.group.completions]
    rows = zip(micro_batch.completion_indices, values_BT.detach(), strict=True)
    return {flat: row_T[: lengths[flat]].clone() for flat, row_T in rows}


def micro_batches_of(
    policy: Policy, groups: Sequence[ScoredGroup], settings: UpdateSettings, skipped: Collection[int] = ()
) -> list[MicroBatch]:
    """The micro-batches of scored groups, without the completions that no forward needs."""
    return micro_batches(
        policy,
        [scored.group.prompt for scored in groups],
        [[c.token_ids for c in scored.group.completions] for scored in groups],
        max_tokens=settings.max_tokens,
        pad_id=settings.pad_id,
        skipped=skipped,
    )


def packed_once(policy: Policy, batch: Minibatch, settings: UpdateSettings) -> Minibatch:
    """The minibatch with its micro-batches, for every forward of the step; called on all ranks."""
    if batch.packed is not None:
        return batch
    idle = {flat for flat, advantage in enumerate(batch.advantages) if not advantage} | batch.masked
    packed = micro_batches_of(policy, batch.groups, settings, idle if settings.skips_idle else ())
    return replace(batch, packed=packed)


def prompts_in(groups: Sequence[ScoredGroup], micro_batch: MicroBatch) -> list[str]:
    """Ids of the prompts whose completions are in a micro-batch."""
    owners = [scored.group.prompt.id for scored in groups for _ in scored.group.completions]
    return sorted({owners[flat] for flat in micro_batch.completion_indices})


def fitting(
    phase: str, policy: Policy, micro_batch: MicroBatch, max_tokens: int, section: str = "train"
) -> AbstractContextManager[None]:
    """Inside, a micro-batch that does not fit in memory is an OutOfMemoryError that says what to set."""
    num_tokens, num_completions = micro_batch.packed.input_ids_RS.numel(), len(micro_batch.completion_indices)
    better = partial(smaller_forward, section, max_tokens, num_tokens, num_completions, policy.recomputes_activations)
    return enough_memory(phase, better)


@contextmanager
def named(groups: Sequence[ScoredGroup], micro_batch: MicroBatch) -> Iterator[None]:
    """UnreadableError with the prompts of a micro-batch whose tokens the model cannot read."""
    try:
        yield
    except (ValueError, IndexError) as problem:
        prompts = ", ".join(prompts_in(groups, micro_batch))
        raise UnreadableError(f"the model cannot read a completion of prompts {prompts} ({problem})") from problem
