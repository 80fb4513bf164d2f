"""One rollout batch into several optimizer updates: the objective meets the engine.

Shape suffixes: B completions, T completion tokens, N valid completion tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from vlm_mhpo.config import MismatchConfig, OptimizerConfig
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.optimizer import learning_rate_at
from vlm_mhpo.errors import NonFiniteError
from vlm_mhpo.faults.memory import enough_memory
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.objectives import Objective
from vlm_mhpo.objectives.common import NonFiniteInput, kl_penalty
from vlm_mhpo.objectives.mismatch import mismatch_ratios, mismatch_weights, weighted
from vlm_mhpo.records.metric_table import ENGINE_RATIO, IDLE_TOKENS, KL_TO_SAMPLER, SAMPLING_GAP
from vlm_mhpo.records.metrics import reduce_metrics
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import span
from vlm_mhpo.training.forwards import UpdateSettings, fitting, named, packed_once, prompts_in, rows_of
from vlm_mhpo.training.micro_batches import MicroBatch
from vlm_mhpo.training.token_statistics import Totals, measure, summarise_ratio, summarise_tokens
from vlm_mhpo.types import Minibatch, StepUpdate


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
    drifts: list[float | None] = []
    batches = [packed_once(engine.policy, batch, settings) for batch in batches]
    for _ in range(settings.num_iterations):
        for index, batch in enumerate(batches):
            own = Totals()
            bad_prompts = accumulate(engine, objective, batch, settings, own)
            batches[index] = _no_longer_fresh(batch, own.fresh)
            with span("update/optimizer"), enough_memory("the optimizer's step", lambda: OFFLOAD):
                result = engine.update(learning_rate)
            if not result.applied:
                bad_prompts += [name for value, ids in own.gradients if not value.isfinite() for name in ids]
                # Its sums may lack names on the rank that failed, so no rank adds them.
                _report_bad_update(bad_prompts, partial(on_bad, batch), settings, step)
                continue
            norms.append(result.grad_norm)
            drift = {name: own.metrics[name] for name in own.metrics.keys() & {DRIFT}}
            drifts.append(reduce_metrics(drift, own.num_tokens).get(KL_TO_SAMPLER.name))
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
        summarise_ratio(metrics, drifts)
        quantiles, histograms = summarise_tokens(objective, totals)
    return StepUpdate(metrics | quantiles, norms, [drift or 0.0 for drift in drifts], histograms)


def _no_longer_fresh(batch: Minibatch, rows: Mapping[int, Tensor]) -> Minibatch:
    """The minibatch after its first forward, whose log-probs stay its old ones where they are recomputed."""
    old = tuple(
        rows.get(flat, row_T) if flat in batch.fresh else row_T for flat, row_T in enumerate(batch.old_log_probs)
    )
    return replace(batch, old_log_probs=old, fresh=frozenset()) if batch.fresh else batch


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
DRIFT = f"sum/{KL_TO_SAMPLER.name}"


def accumulate(
    engine: Engine, objective: Objective, batch: Minibatch, settings: UpdateSettings, totals: Totals
) -> list[str]:
    """Add the gradients of a minibatch; returns the prompts whose loss was not finite."""
    counts = global_counts(batch)
    bad_prompts: list[str] = []
    batch = packed_once(engine.policy, batch, settings)
    totals.add(_idle_share(batch))
    with _gradient_sums(engine.policy) as sums:
        for micro_batch in batch.packed:
            prompts = prompts_in(batch.groups, micro_batch)
            with fitting("the update", engine.policy, micro_batch, settings.max_tokens):
                is_good = _add_gradient(engine, objective, batch, micro_batch, settings, counts, totals)
            if not is_good:
                bad_prompts += prompts
            # Looked at only after a bad update: a look waits for the device.
            totals.gradients += [(value, prompts) for value in sums]
            sums.clear()
    return bad_prompts


def _idle_share(batch: Minibatch) -> Totals:
    """How many of the sampled tokens no forward reads."""
    num_tokens = sum(map(len, batch.old_log_probs))
    num_read = sum(len(one.packed.target_N) for one in batch.packed if not one.is_padding)
    sums = {"part": num_tokens - num_read, "whole": num_tokens}
    return Totals({f"{kind}/{IDLE_TOKENS.name}": torch.tensor(float(value)) for kind, value in sums.items()})


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
            micro_batch.rows,
            temperature=settings.temperature,
            chunk_size=settings.chunk_size,
            entropy_learns=bool(settings.entropy_coef),
        )
    log_probs_BT, mask_BT = micro_batch.scatter(log_probs_N)
    entropy_BT, _ = micro_batch.scatter(entropy_N)
    masked = [row for row, flat in enumerate(micro_batch.completion_indices) if flat in batch.masked]
    mask_BT[masked] = False
    old_BT = _constants_like(log_probs_BT, batch.old_log_probs, micro_batch)
    if batch.fresh:
        old_BT = _look_at_fresh(batch, micro_batch, log_probs_BT.detach(), old_BT, mask_BT, settings, totals)
    if settings.mismatch:
        objective = _against_mismatch(objective, batch, micro_batch, old_BT, mask_BT, settings.mismatch, totals)
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
    metrics |= {"add/policy_loss": loss.detach(), "sum/entropy": torch.where(mask_BT, entropy_BT.detach(), 0.0).sum()}
    if settings.entropy_coef:
        loss = loss - settings.entropy_coef * objective.aggregate(entropy_BT, mask_BT, **counts)
    if batch.reference_log_probs is not None:
        reference_BT = _constants_like(log_probs_BT, batch.reference_log_probs, micro_batch)
        kl_BT = kl_penalty(log_probs_BT, reference_BT, mask_BT)
        loss = loss + settings.beta * objective.aggregate(kl_BT, mask_BT, **counts)
        metrics["sum/kl"] = torch.where(mask_BT, kl_BT.detach(), 0.0).sum()
    with span("update/backward"):
        engine.backward(loss)
    totals.add(Totals(metrics))
    return True


def _look_at_fresh(
    batch: Minibatch,
    micro_batch: MicroBatch,
    now_BT: Tensor,
    old_BT: Tensor,
    mask_BT: Tensor,
    settings: UpdateSettings,
    totals: Totals,
) -> Tensor:
    """[B, T] old log-probs of a micro-batch whose policy is still the one that sampled.

    Adds the distance of its log-probs from the sampler's to `totals`. Where old log-probs are recomputed they are
    these, so the ratio is exactly 1.
    """
    gap_BT = torch.where(mask_BT, (now_BT - old_BT).abs(), 0.0)
    mean, largest = (SAMPLING_GAP.of(size=size) for size in ("mean", "max"))
    totals.add(
        Totals({f"part/{mean}": gap_BT.sum(), f"whole/{mean}": mask_BT.sum().float(), f"max/{largest}": gap_BT.max()})
    )
    if not settings.recompute:
        return old_BT
    if not micro_batch.is_padding:
        totals.fresh |= rows_of(batch.groups, micro_batch, now_BT)
    is_fresh_B = torch.tensor([flat in batch.fresh for flat in micro_batch.completion_indices], device=now_BT.device)
    return torch.where(is_fresh_B[:, None], now_BT, old_BT)


def _against_mismatch(
    objective: Objective,
    batch: Minibatch,
    micro_batch: MicroBatch,
    old_BT: Tensor,
    mask_BT: Tensor,
    config: MismatchConfig,
    totals: Totals,
) -> Objective:
    """The objective with a micro-batch's weights against the gap of two engines; adds their raw ratios to `totals`."""
    sampled = [completion.log_probs for scored in batch.groups for completion in scored.group.completions]
    sampler_BT = _constants_like(old_BT, sampled, micro_batch)
    ratio_BT = mismatch_ratios(old_BT, sampler_BT, mask_BT, config.mode)
    smallest, mean, largest = (ENGINE_RATIO.of(extent=extent) for extent in ("min", "mean", "max"))
    sums = {
        f"part/{mean}": torch.where(mask_BT, ratio_BT, 0.0).sum(),
        f"whole/{mean}": mask_BT.sum().float(),
        f"min/{smallest}": torch.where(mask_BT, ratio_BT, torch.inf).min(),
        f"max/{largest}": torch.where(mask_BT, ratio_BT, -torch.inf).max(),
    }
    totals.add(Totals(sums))
    return weighted(objective, mismatch_weights(ratio_BT, config.mode, *config.bounds))


@contextmanager
def _gradient_sums(policy: Policy) -> Iterator[list[Tensor]]:
    """Inside, each backward adds the sum of the gradient that reaches the token embeddings.

    It is this rank's own, whatever the stage shares out, and a NaN from the loss or any text layer passes through it.
    Not covered: a NaN in the gradient of one weight or of the vision tower alone.
    """
    sums: list[Tensor] = []

    def watch(module: torch.nn.Module, args: tuple[Tensor, ...], embedded: Tensor) -> None:
        # Frozen embeddings, below adapters, would let no gradient come so far.
        embedded.requires_grad_(True).register_hook(lambda gradient: sums.append(gradient.sum()))

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
