"""The warm start: maximum likelihood of worked solutions, with the trainer's own engine and packed rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from data_prep import Row
from vlm_mhpo.checkpoint.policy_folder import POLICY_FOLDER, save_policy
from vlm_mhpo.config import Config, SftConfig, check_world_size
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.optimizer import learning_rate_at
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.errors import NonFiniteError, TrainingError
from vlm_mhpo.models.loading import Codec, load_policy
from vlm_mhpo.models.tiny import resolve_model
from vlm_mhpo.prompts.builder import prompt_builder
from vlm_mhpo.prompts.messages import neutralise, special_tokens
from vlm_mhpo.prompts.rows import read_rows, usable_rows
from vlm_mhpo.prompts.stream import PromptStream
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.seeding import derive_seed
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.types import Prompt


def check_solutions(rows: Sequence[Row]) -> None:
    """TrainingError when a row has nothing to imitate; before the first step, and the same on all ranks."""
    without = [row.id for row in rows if not row.solution]
    if without:
        raise TrainingError(
            f"{len(without)} of {len(rows)} rows have no solution, so there is nothing to imitate (first: row "
            f"{without[0]}): a warm start needs a `solution` in each row"
        )


def target_ids(prompt: Prompt, codec: Codec) -> tuple[int, ...]:
    """Token ids of the row's solution and the end token; no text in the solution makes a special token."""
    text = neutralise(prompt.row.solution, special_tokens(codec))
    ids = codec.tokenizer(text, add_special_tokens=False)["input_ids"]
    return (*ids, codec.tokenizer.eos_token_id)


def sft_step(
    engine: Engine, prompts: Sequence[Prompt], codec: Codec, config: SftConfig, *, learning_rate: float
) -> dict[str, float]:
    """One update on the ranks' prompts: minus the mean log-prob of all their target tokens.

    Returns:
        Global `loss` (nats a token) and `grad_norm`, with the learning rate.
    """
    targets = [[target_ids(prompt, codec)] for prompt in prompts]
    local_tokens = torch.tensor(float(sum(len(ids) for group in targets for ids in group)), device=ranks.device())
    num_tokens = ranks.reduce(local_tokens.clone(), torch.distributed.ReduceOp.SUM)
    total = torch.zeros((), device=ranks.device())
    for micro_batch in micro_batches(
        engine.policy, prompts, targets, max_tokens=config.max_tokens_per_micro_batch, pad_id=codec.pad_id
    ):
        log_probs_N, _ = engine(micro_batch.rows, temperature=1.0, chunk_size=config.logits_chunk_size)
        loss = -log_probs_N.sum() / num_tokens * (0.0 if micro_batch.is_padding else 1.0)
        engine.backward(loss)
        total += loss.detach()
    result = engine.update(learning_rate)
    if not result.applied and config.on_nonfinite == "stop":
        raise NonFiniteError(
            "warm start: the loss or gradient was not finite; weights untouched. Lower sft.learning_rate"
        )
    loss = float(ranks.reduce(total, torch.distributed.ReduceOp.SUM))
    return {"loss": loss, "grad_norm": result.grad_norm, "learning_rate": learning_rate}


def warm_start(config: Config) -> Path:
    """Run the warm start of a configuration; returns the folder of the resulting model.

    Reads `data.train` (rows with a solution) and `sft`, writes metrics.jsonl and `policy/` under `output_dir`.
    """
    ranks.start(config.num_threads)
    check_world_size(config, ranks.world_size())
    run_dir = Path(config.output_dir)
    settings = deepspeed_settings(config.deepspeed, dtype=config.model.dtype, max_grad_norm=config.sft.max_grad_norm)
    model = config.model.model_dump() | {"path": resolve_model(config.model.path, run_dir)}
    policy, codec = load_policy(**model, zero3_settings=settings)
    data = config.data
    builder = prompt_builder(data, codec, policy.family)
    rows = read_rows(data.train, data, data.train_split, data.max_rows)
    check_solutions(rows)
    rows = usable_rows(rows, builder, overlong=data.overlong_prompts, what="warm start")
    engine = Engine(policy, optimizer=config.sft, deepspeed=config.deepspeed, dtype=config.model.dtype)
    stream = PromptStream(
        rows, builder.build, seed=derive_seed(config.seed, "sft"), num_prompts=config.sft.num_prompts_per_step
    )
    metrics_file = run_dir / "metrics.jsonl"
    if ranks.is_main():
        run_dir.mkdir(parents=True, exist_ok=True)
        metrics_file.write_text("")
    engine.policy.train()
    with tqdm(total=config.sft.max_steps, desc="warm start", unit="step", disable=not ranks.is_main()) as bar:
        for step in range(config.sft.max_steps):
            rate = learning_rate_at(step, config.sft, config.sft.max_steps)
            metrics = sft_step(engine, stream.for_step(step), codec, config.sft, learning_rate=rate)
            if ranks.is_main():
                with metrics_file.open("a") as stream_out:
                    stream_out.write(json.dumps({"step": step + 1, **metrics}) + "\n")
            bar.set_postfix(loss=f"{metrics['loss']:.3f}", refresh=False)
            bar.update()
    folder = run_dir / POLICY_FOLDER
    save_policy(engine, codec, folder)
    return folder
