"""One rollout batch into several optimizer updates: the objective meets the engine.

Shape suffixes: B completions, T completion tokens, N valid completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_mhpo.config import OptimizerConfig, RolloutConfig, TrainConfig
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.optimizer import learning_rate_at
from vlm_mhpo.errors import NonFiniteError, UnreadableError
from vlm_mhpo.faults.memory import enough_memory, smaller_forward
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.objectives import Objective
from vlm_mhpo.objectives.common import NonFiniteInput, kl_penalty
from vlm_mhpo.objectives.multipliers import on_policy_multiplier
from vlm_mhpo.records.metric_table import KL_TO_SAMPLER
from vlm_mhpo.records.metrics import reduce_metrics
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.training.micro_batches import MicroBatch, micro_batches
from vlm_mhpo.training.token_statistics import Totals, measure, summarise_ratio, summarise_tokens
from vlm_mhpo.types import Minibatch, ScoredGroup, StepUpdate


@dataclass(frozen=True, slots=True)
class UpdateSettings:
    """What an update needs of the configuration.

    Attributes:
        beta: weight of the KL term; 0 = none.
        temperature: of the log-probs, as in sampling.
        max_tokens: padded tokens of one forward.
        chunk_size: completion tokens whose logits exist at once.
        num_minibatches, num_iterations: updates per pass, and passes.
        recompute: take old log-probs from the trainer's own forward instead of the sampler.
        pad_id: fills rows.
        on_nonfinite: "stop" or "skip".
        on_policy: multiplier of a token at ratio 1, of `objectives.multipliers.on_policy_multiplier`.
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


def update_settings(
    train: TrainConfig, rollout: RolloutConfig, objective: Objective, *, beta: float, pad_id: int
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
    )


def log_probs_of(
    forward: Callable[..., tuple[Tensor, Tensor]],
    policy: Policy,
    groups: Sequence[ScoredGroup],
    settings: UpdateSettings,
    phase: str = "scoring log-probs",
) -> tuple[Tensor, ...]:
    """[T] float32 of each completion: log-probs of its tokens under `forward` (an engine or a module), no gradient."""
    lengths = [len(c.token_ids) for scored in groups for c in scored.group.completions]
    values: dict[int, Tensor] = {}
    with torch.no_grad():
        for micro_batch in micro_batches_of(policy, groups, settings):
            with named(groups, micro_batch), fitting(phase, policy, micro_batch, settings.max_tokens):
                log_probs_N, _ = forward(
                    micro_batch.rows, temperature=settings.temperature, chunk_size=settings.chunk_size
                )
            if micro_batch.is_padding:
                continue
            rows_BT, _ = micro_batch.scatter(log_probs_N)
            # Copies: a view would keep the whole micro-batch.
            values |= {
                flat: row_T[: lengths[flat]].clone()
                for flat, row_T in zip(micro_batch.completion_indices, rows_BT, strict=True)
            }
    return tuple(values[flat] for flat in range(len(lengths)))


def micro_batches_of(policy: Policy, groups: Sequence[ScoredGroup], settings: UpdateSettings) -> Iterator[MicroBatch]:
    """The micro-batches of scored groups."""
    return micro_batches(
        policy,
        [scored.group.prompt for scored in groups],
        [[c.token_ids for c in scored.group.completions] for scored in groups],
        max_tokens=settings.max_tokens,
        pad_id=settings.pad_id,
    )


def update_on(
    engine: Engine,
    objective: Objective,
    batches: Sequence[Minibatch],
    settings: UpdateSettings,
    *,
    learning_rate: float,
    step: int,
    on_bad: Callable[[Minibatch, str], None] = lambda batch, message: None,
) -> StepUpdate:
    """All updates of one rollout batch.

    Args:
        engine: the policy.
        objective: a loss of `vlm_mhpo.objectives`.
        batches: this rank's share of each minibatch.
        settings: see `UpdateSettings`.
        learning_rate: of every update.
        step: for messages.
        on_bad: called on all ranks with this rank's share of a minibatch that was not applied, and why.

    Returns:
        Global figures: losses and gradient norms are means over updates, token statistics run over all updates.

    Raises:
        NonFiniteError: a loss or gradient was NaN or inf and `on_nonfinite` is "stop"; weights as before the update.
    """
    totals = Totals()
    norms: list[float] = []
    minibatches: list[dict[str, float]] = []
    for _ in range(settings.num_iterations):
        for batch in batches:
            own = Totals()
            bad_prompts = accumulate(engine, objective, batch, settings, own)
            with span("update/optimizer"), enough_memory("the optimizer's step", lambda: OFFLOAD):
                result = engine.update(learning_rate)
            if not result.applied:
                bad_prompts += [name for value, ids in own.gradients if not value.isfinite() for name in ids]
                # Its sums may lack names on the rank that failed, so no rank adds them.
                _report_bad_update(bad_prompts, partial(on_bad, batch), settings, step)
                continue
            norms.append(result.grad_norm)
            minibatches.append(reduce_metrics(pick(own, DRIFT), own.num_tokens))
            totals.add(own)
    metrics = reduce_metrics(totals.metrics, totals.num_tokens)
    num_updates = settings.num_iterations * len(batches)
    metrics["num_skipped_updates"] = float(num_updates - len(norms))
    metrics["learning_rate"] = learning_rate
    if not norms:
        return StepUpdate(metrics, [], [], {})
    metrics["policy_loss"] = metrics["policy_loss"] / len(norms)
    metrics["grad_norm"] = sum(norms) / len(norms)
    metrics["grad_norm/max"] = max(norms)
    with span("update/diagnostics"):
        summarise_ratio(metrics, minibatches, recompute=settings.recompute)
        quantiles, histograms = summarise_tokens(objective, totals)
    drifts = [each.get(KL_TO_SAMPLER.name, 0.0) for each in minibatches]
    return StepUpdate(metrics | quantiles, norms, drifts, histograms)


@dataclass(frozen=True, slots=True)
class Updater:
    """The updates of a run: what stays the same from step to step.

    Attributes:
        engine, objective, settings: see `update_on`.
        optimizer: gives the learning rate of each step.
        max_steps: of the run.
        on_bad: (step, minibatch, reason) -> keeps the evidence of an update that was not applied; step is 1-based.
    """

    engine: Engine
    objective: Objective
    settings: UpdateSettings
    optimizer: OptimizerConfig
    max_steps: int
    on_bad: Callable[[int, Minibatch, str], None]

    def __call__(self, minibatches: Sequence[Minibatch], step: int) -> StepUpdate:
        """All updates of `step` (0-based)."""
        return update_on(
            self.engine,
            self.objective,
            minibatches,
            self.settings,
            learning_rate=learning_rate_at(step, self.optimizer, self.max_steps),
            step=step + 1,
            on_bad=partial(self.on_bad, step + 1),
        )


OFFLOAD = "deepspeed.offload_optimizer=true, or a higher deepspeed.zero_stage"
# What is also looked at for every minibatch alone.
DRIFT = (f"sum/{KL_TO_SAMPLER.name}", "sum/log_ratio_size/mean", "max/log_ratio_size/max")


def pick(totals: Totals, names: Sequence[str]) -> dict[str, Tensor]:
    """The entries of some metrics."""
    return {name: totals.metrics[name] for name in names if name in totals.metrics}


def accumulate(
    engine: Engine, objective: Objective, batch: Minibatch, settings: UpdateSettings, totals: Totals
) -> list[str]:
    """Add the gradients of a minibatch; returns the prompts whose loss was not finite."""
    counts = global_counts(batch)
    bad_prompts: list[str] = []
    with _gradient_sums(engine.policy) as sums:
        for micro_batch in micro_batches_of(engine.policy, batch.groups, settings):
            prompts = _prompts_in(batch.groups, micro_batch)
            with fitting("the update", engine.policy, micro_batch, settings.max_tokens):
                is_good = _add_gradient(engine, objective, batch, micro_batch, settings, counts, totals)
            if not is_good:
                bad_prompts += prompts
            # Looked at only after a bad update: a look waits for the device.
            totals.gradients += [(value, prompts) for value in sums]
            sums.clear()
    return bad_prompts


def _add_gradient(
    engine: Engine,
    objective: Objective,
    batch: Minibatch,
    micro_batch: MicroBatch,
    settings: UpdateSettings,
    counts: dict[str, int],
    totals: Totals,
) -> bool:
    """Add the gradient of a micro-batch; False when the objective met a log-prob that was not finite."""
    with named(batch.groups, micro_batch), span("update/forward"):
        log_probs_N, entropy_N = engine(
            micro_batch.rows, temperature=settings.temperature, chunk_size=settings.chunk_size
        )
    log_probs_BT, mask_BT = micro_batch.scatter(log_probs_N)
    entropy_BT, _ = micro_batch.scatter(entropy_N)
    masked = [row for row, flat in enumerate(micro_batch.completion_indices) if flat in batch.masked]
    mask_BT[masked] = False
    old_BT = _constants_like(log_probs_BT, batch.old_log_probs, micro_batch)
    advantages_B = log_probs_BT.new_tensor([batch.advantages[flat] for flat in micro_batch.completion_indices])
    try:
        loss, metrics = objective.loss(log_probs_BT, old_BT, advantages_B, mask_BT, **counts)
    except NonFiniteInput:
        # Stopping here would leave the other ranks waiting, so the NaN goes on into the gradient, where
        # all ranks see it before the weights move.
        with span("update/backward"):
            engine.backward(log_probs_N.sum() * torch.nan)
        return False
    with span("update/diagnostics"):
        totals.add(measure(objective, loss, log_probs_BT, old_BT, advantages_B, mask_BT, counts, settings.on_policy))
    metrics |= {"add/policy_loss": loss.detach(), "sum/entropy": torch.where(mask_BT, entropy_BT, 0.0).sum()}
    if batch.reference_log_probs is not None:
        reference_BT = _constants_like(log_probs_BT, batch.reference_log_probs, micro_batch)
        kl_BT = kl_penalty(log_probs_BT, reference_BT, mask_BT)
        loss = loss + settings.beta * objective.aggregate(kl_BT, mask_BT, **counts)
        metrics["sum/kl"] = torch.where(mask_BT, kl_BT.detach(), 0.0).sum()
    with span("update/backward"):
        engine.backward(loss)
    totals.add(Totals(metrics))
    return True


@contextmanager
def _gradient_sums(policy: Policy) -> Iterator[list[Tensor]]:
    """Inside, each backward adds the sum of the gradient that reaches the token embeddings.

    It is this rank's own, whatever the stage shares out, and a NaN from the loss or any text layer passes through it.
    Not covered: a NaN in the gradient of one weight or of the vision tower alone.
    """
    sums: list[Tensor] = []

    def watch(module: torch.nn.Module, args: tuple[Tensor, ...], embedded: Tensor) -> None:
        embedded.register_hook(lambda gradient: sums.append(gradient.sum()))

    handle = policy.model.get_input_embeddings().register_forward_hook(watch)
    try:
        yield sums
    finally:
        handle.remove()


def global_counts(batch: Minibatch) -> dict[str, int]:
    """Completions and sampled tokens of the minibatch over all ranks: the denominators of every objective."""
    num_tokens = sum(len(row) for flat, row in enumerate(batch.old_log_probs) if flat not in batch.masked)
    local = torch.tensor([len(batch.advantages), num_tokens], device=ranks.device())
    num_completions, num_tokens = ranks.reduce(local, torch.distributed.ReduceOp.SUM).tolist()
    # Everything may be masked; the loss is then 0 whatever it is divided by.
    return {"num_completions": num_completions, "num_tokens": max(1, num_tokens)}


def _constants_like(like_BT: Tensor, rows: Sequence[Tensor], micro_batch: MicroBatch) -> Tensor:
    """[B, T] of per-token constants of the micro-batch's completions, zeros where there is no token."""
    return pad_sequence([rows[flat] for flat in micro_batch.completion_indices], batch_first=True).to(like_BT)


def _prompts_in(groups: Sequence[ScoredGroup], micro_batch: MicroBatch) -> list[str]:
    """Ids of the prompts whose completions are in a micro-batch."""
    owners = [scored.group.prompt.id for scored in groups for _ in scored.group.completions]
    return sorted({owners[flat] for flat in micro_batch.completion_indices})


def fitting(
    phase: str, policy: Policy, micro_batch: MicroBatch, max_tokens: int, section: str = "train"
) -> AbstractContextManager[None]:
    """Inside, a micro-batch that does not fit in memory is an OutOfMemoryError that says what to set."""
    num_tokens, num_completions = micro_batch.rows.input_ids_RS.numel(), len(micro_batch.completion_indices)
    recomputes = policy.model.is_gradient_checkpointing
    return enough_memory(phase, partial(smaller_forward, section, max_tokens, num_tokens, num_completions, recomputes))


@contextmanager
def named(groups: Sequence[ScoredGroup], micro_batch: MicroBatch) -> Iterator[None]:
    """UnreadableError with the prompts of a micro-batch whose tokens the model cannot read."""
    try:
        yield
    except (ValueError, IndexError) as problem:
        prompts = ", ".join(_prompts_in(groups, micro_batch))
        raise UnreadableError(f"the model cannot read a completion of prompts {prompts} ({problem})") from problem


def _report_bad_update(
    bad_prompts: list[str], keep: Callable[[str], None], settings: UpdateSettings, step: int
) -> None:
    """Keep the minibatch, then stop, or print, with the ranks and prompts of a non-finite loss or gradient."""
    by_rank = ranks.gather_objects(bad_prompts)
    culprits = "; ".join(
        f"rank {index}: prompts {', '.join(sorted(set(ids)))}" for index, ids in enumerate(by_rank) if ids
    )
    where = culprits or "in the backward of some rank"
    message = f"step {step}: the loss or gradient was not finite ({where}); weights untouched"
    keep(message)
    if settings.on_nonfinite == "stop":
        raise NonFiniteError(f"{message}. Lower train.learning_rate, or set train.on_nonfinite=skip to go on")
    if ranks.is_main():
        print(f"WARNING: {message}; the update was skipped", flush=True)
