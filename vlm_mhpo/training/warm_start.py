"""The warm start: maximum likelihood of worked solutions, with the trainer's own engine, packed rows and safeguards."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from data_prep import Row
from vlm_mhpo.checkpoint.policy_folder import POLICY_FOLDER, save_policy
from vlm_mhpo.config import Config, SftConfig
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.optimizer import learning_rate_at
from vlm_mhpo.errors import NonFiniteError, TrainingError
from vlm_mhpo.faults.agreement import check_same_rows
from vlm_mhpo.faults.memory import enough_memory
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.prompts.messages import neutralise, special_tokens, without_tags
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.records.metric_table import GRAD_NORM, LEARNING_RATE
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import Clock, span
from vlm_mhpo.runtime.seeding import derive_seed
from vlm_mhpo.training.assembly import build_parts, record_run
from vlm_mhpo.training.forwards import fitting
from vlm_mhpo.training.guarded import Watch
from vlm_mhpo.training.identity import identity_of
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.training.progress import ProgressBar
from vlm_mhpo.training.run import guarded_run, recording
from vlm_mhpo.training.saving import Checkpoints
from vlm_mhpo.training.update import OFFLOAD
from vlm_mhpo.types import TAGS, Prompt

THINK_OPEN, THINK_CLOSE, *_ = TAGS


def warm_start(config: Config) -> Path:
    """Run or continue the warm start of a configuration; returns the folder of the resulting model.

    Reads `data.train` (rows with a solution) and `sft`; writes the records and checkpoints of a run, and `policy/`,
    under `output_dir`.

    Raises:
        VlmMhpoError: anything a user can mend, in one sentence; Stopped: a signal asked for it.
    """
    run_dir, sft, clock = Path(config.output_dir), config.sft, Clock()
    with guarded_run(config) as guard, clock.running():
        # Held-out rows are for RL.
        config = config.model_copy(update={"data": config.data.model_copy(update={"eval": None})})
        parts = build_parts(config, sft, what="warm start")
        _check_solutions(parts.train_rows, parts.builder.opens)
        check_same_rows(parts.train_rows)
        engine, values = parts.engine, config.model_dump()
        path = engine.policy.model.name_or_path
        identity = identity_of("warm start", values, parts.train_rows, engine.zero_stage, path)
        saving = Checkpoints(parts.engine, parts.codec, run_dir, config.checkpoint, identity, sft.max_steps)
        watch = Watch(guard, clock, saving, sft.max_steps)
        start = saving.resume()
        record_run(config, parts, saving.changes)
        stream = PromptStream(
            parts.train_rows,
            parts.builder.build,
            seed=derive_seed(config.seed, "sft"),
            num_prompts=sft.num_prompts_per_step,
        )
        with (
            recording(run_dir, config.logging, start) as records,
            ProgressBar("warm start", start, sft.max_steps) as bar,
        ):
            for step in range(start, sft.max_steps):
                with watch.step(step + 1, start) as now:
                    prompts = stream.for_step(step)
                    with span("update"):
                        rate = learning_rate_at(step, sft, sft.max_steps)
                        metrics = sft_step(parts.engine, prompts, parts.codec, sft, learning_rate=rate)
                    if records:
                        records.write_metrics(step + 1, metrics | watch.seconds(now))
                    watch.save(now, metrics)
                bar.advance(metrics)
        save_policy(parts.engine, parts.codec, run_dir / POLICY_FOLDER)
    return run_dir / POLICY_FOLDER


def _check_solutions(rows: Sequence[Row], opens: str) -> None:
    """TrainingError when a row has nothing to imitate; before the first step, and the same on all ranks.

    Args:
        rows: training rows.
        opens: what the chat template opens of each response.
    """
    without = [row.id for row in rows if not row.solution]
    if without:
        raise TrainingError(
            f"{len(without)} of {len(rows)} rows have no solution, so there is nothing to imitate (first: row "
            f"{without[0]}): a warm start needs a `solution` in each row"
        )
    stray = [row.id for row in rows if continued(row.solution, opens) is None]
    if stray:
        raise TrainingError(
            f"{len(stray)} of {len(rows)} solutions do not go on from {opens!r}, which the chat template opens (first: "
            f"row {stray[0]}): each must close a thought that is opened, and open none behind one that is closed"
        )


def continued(solution: str, opens: str) -> str | None:
    """A solution from where the chat template leaves off, so that no thought is opened twice; None if it cannot be."""
    text, tags = solution.lstrip(), opens.strip()
    if THINK_CLOSE in tags:
        return None if text.startswith(THINK_OPEN) else solution
    if THINK_OPEN in tags and THINK_CLOSE not in text:
        return None
    if not tags or not text.startswith(tags):
        return solution
    text = text.removeprefix(tags)
    return text if opens.endswith(tags) else text.lstrip()


def target_ids(prompt: Prompt, codec: Codec) -> tuple[int, ...]:
    """Token ids of the row's solution and the end token, from where the chat template leaves off.

    No text in the solution makes a special token, but for the tags of a response.
    """
    text = continued(prompt.row.solution, prompt.opens) or ""
    text = neutralise(text, without_tags(special_tokens(codec)))
    ids = codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    return (*ids, codec.turn_end)


def sft_step(
    engine: Engine, prompts: Sequence[Prompt], codec: Codec, config: SftConfig, *, learning_rate: float
) -> dict[str, float]:
    """One update on the ranks' prompts: minus the mean log-prob of all their target tokens.

    Returns:
        Global `loss` (nats per token) and `grad_norm`, with the learning rate.
    """
    targets = [[target_ids(prompt, codec)] for prompt in prompts]
    local_tokens = torch.tensor(float(sum(len(ids) for group in targets for ids in group)), device=ranks.device())
    num_tokens = ranks.reduce(local_tokens.clone(), torch.distributed.ReduceOp.SUM)
    total = torch.zeros((), device=ranks.device())
    for micro_batch in micro_batches(
        engine.policy, prompts, targets, max_tokens=config.max_tokens_per_micro_batch, pad_id=codec.pad_id
    ):
        with fitting("the update", engine.policy, micro_batch, config.max_tokens_per_micro_batch, "sft"):
            log_probs_N, _ = engine(
                micro_batch.rows, temperature=1.0, chunk_size=config.logits_chunk_size, with_entropy=False
            )
            loss = -log_probs_N.sum() / num_tokens * (0.0 if micro_batch.is_padding else 1.0)
            engine.backward(loss)
        total += loss.detach()
    with enough_memory("the optimizer's step", lambda: OFFLOAD):
        result = engine.update(learning_rate)
    if not result.applied and config.on_nonfinite == "stop":
        raise NonFiniteError(
            "warm start: the loss or gradient was not finite; weights untouched. Lower sft.learning_rate"
        )
    loss = float(ranks.reduce(total, torch.distributed.ReduceOp.SUM))
    return {"loss": loss, GRAD_NORM.name: result.grad_norm, LEARNING_RATE.name: learning_rate}
