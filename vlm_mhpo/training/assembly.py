"""The parts of a run: policy, engine, sampler and rows, loaded and checked before the first step, and told of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from data_prep import Row
from vlm_mhpo.checkpoint.opening import open_policy
from vlm_mhpo.config import Config, DataConfig, OptimizerConfig
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.settings import adds_in_float32
from vlm_mhpo.errors import ConfigError, PromptError
from vlm_mhpo.models.families.base import parameter_table
from vlm_mhpo.models.loading import Codec, loaded_commit
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.objectives.multipliers import on_policy_multiplier
from vlm_mhpo.prompts.builder import PromptBuilder, prompt_builder
from vlm_mhpo.prompts.rows import read_rows, usable_rows
from vlm_mhpo.records.run_file import write_run_file
from vlm_mhpo.rollout.base import Sampler
from vlm_mhpo.rollout.build import build_sampler
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.own_check import check_own_path


@dataclass(frozen=True, slots=True)
class Parts:
    """What a run is made of; each stage takes of it what it needs.

    Attributes:
        engine: the policy under DeepSpeed.
        codec: processor, tokenizer and token ids.
        builder: rows to prompts.
        sampler: draws completions.
        train_rows, eval_rows: usable rows; eval_rows may be empty.
    """

    engine: Engine
    codec: Codec
    builder: PromptBuilder
    sampler: Sampler
    train_rows: Sequence[Row]
    eval_rows: Sequence[Row]


def build_parts(config: Config, optimizer: OptimizerConfig, *, what: str = "training") -> Parts:
    """Load model and rows, and check both.

    Args:
        config: of the run.
        optimizer: `train` or `sft` of it.
        what: name of the training rows in messages.
    """
    run_dir = Path(config.output_dir)
    opened = open_policy(config.model, run_dir, "train", deepspeed=config.deepspeed)
    policy, codec, data = opened.policy, opened.codec, config.data
    builder = prompt_builder(data, codec, policy.family)
    skips = data.on_bad_row == "skip"
    train_rows = usable_rows(
        read_rows(data.train, data, data.train_split, data.max_rows, skips_bad=skips),
        builder,
        overlong=data.overlong_prompts,
        what=what,
        max_bad_share=data.max_bad_share if skips else None,
    )
    eval_rows = _held_out_rows(data, builder)
    if config.rollout.engine == "vllm" and any(row.videos for rows in (train_rows, eval_rows) for row in rows):
        raise PromptError("there are rows with videos, which rollout.engine=vllm does not take: use rollout.engine=hf")
    engine = Engine(policy, optimizer=optimizer, deepspeed=config.deepspeed, dtype=config.model.dtype)
    sampler = build_sampler(config.rollout, policy, codec, engine)
    if policy.family.own_inputs:
        check_own_path(policy, sampler, [builder(row) for row in _one_of_each(train_rows)], engine.whole_weights)
    return Parts(engine, codec, builder, sampler, train_rows, eval_rows)


def _held_out_rows(data: DataConfig, builder: PromptBuilder) -> Sequence[Row]:
    """The usable rows of `data.eval`; none without one."""
    if not data.eval:
        return []
    rows = read_rows(data.eval, data, data.eval_split, data.max_eval_rows)
    return usable_rows(rows, builder, overlong="never", what="held-out")


def _one_of_each(rows: Sequence[Row]) -> list[Row]:
    """The first row with an image and the first without one, as far as there are any."""
    firsts = (next((row for row in rows if bool(row.images) == has_image), None) for has_image in (True, False))
    return [row for row in firsts if row is not None]


def record_run(config: Config, parts: Parts, changes: Sequence[Mapping[str, Any]] = ()) -> None:
    """Write run.json and config.yaml; after it is sure that the folder's run may go on with this configuration.

    Args:
        config, parts: of the run.
        changes: of `training.saving.Checkpoints`.
    """
    policy = parts.engine.policy
    table = parameter_table(policy.model, policy.family)
    model = {
        "num_parameters": sum(total for _, total, _ in table),
        "trainable": sum(trainable for _, _, trainable in table),
        "family": policy.family.model_type,
        "tensors": policy.weights.digest,
    }
    if policy.has_adapters:
        model["base"] = policy.base[0]
    if ranks.is_main():
        # The name alone may mean other weights tomorrow.
        if commit := loaded_commit(policy.model.name_or_path, config.model.revision):
            model["commit"] = commit
        write_run_file(Path(config.output_dir), config.model_dump(), model, changes)


def check_context(needed: int, codec: Codec) -> None:
    """ConfigError when prompt and completion budgets together, `needed` tokens, exceed the model's positions."""
    if needed > codec.max_context:
        raise ConfigError(
            f"data.max_prompt_length + rollout.max_completion_length = {needed} tokens, and the model has "
            f"{codec.max_context} positions: lower one of them"
        )


def print_start(config: Config, parts: Parts) -> None:
    """What is trained, on what, and in which regime."""
    if not ranks.is_main():
        return
    policy, zero_stage = parts.engine.policy, parts.engine.zero_stage
    for part, total, trainable in parameter_table(policy.model, policy.family):
        tqdm.write(f"{part:<16}{total / 1e6:10.2f} M weights{trainable / 1e6:10.2f} M trained")
    tqdm.write(
        f"{len(parts.train_rows)} training rows, {len(parts.eval_rows)} held-out rows; "
        f"{config.train.num_prompts_per_step} prompts x {config.rollout.num_generations} completions per step; "
        f"ZeRO-{zero_stage} on {ranks.world_size()} rank(s), {torch.get_num_threads()} thread(s) each"
    )
    if config.model.dtype == "bfloat16" and not adds_in_float32(zero_stage):
        tqdm.write(
            f"WARNING: ZeRO-{zero_stage} adds the gradients of micro-batches in bfloat16, which is 1 % off after 64 of "
            "them; deepspeed.zero_stage=2 adds them in float32"
        )
    for note in _regime_notes(config):
        tqdm.write(note)
    if policy.family.own_inputs:
        tqdm.write(
            f"a {policy.family.model_type} model is of the generic family (docs/families.md), right before fast: a row "
            "for each completion, inputs and cache as transformers' generate makes them, image features computed anew "
            "in each forward; its log-probs have just been compared with a plain forward's"
        )
    elif not policy.family.shares_prompt:
        tqdm.write(
            f"this {policy.family.model_type} model is of no family that shares prompts (docs/families.md), or has "
            "positions or layers that a shared row would change: every completion is sampled and trained with its own "
            "copy of the prompt, which is right and slower"
        )


def _regime_notes(config: Config) -> list[str]:
    """What the numbers of this configuration mean for the objective."""
    notes = []
    if config.updates_per_step == 1:
        notes.append(
            "WARNING: one update per rollout batch keeps every ratio at 1: the objective is REINFORCE with a baseline. "
            "Set train.num_minibatches to 4 or more"
        )
    if config.model.lora and config.model.lora.dropout:
        notes.append(
            "WARNING: model.lora.dropout drops what the sampler kept, so ratios differ from 1 although no weight has "
            "moved; set it to 0 to measure the policies alone"
        )
    weight = on_policy_multiplier(build_objective(config.objective, config.rollout.max_completion_length))
    if weight < 0.99:
        notes.append(
            f"{config.objective.name} weighs an on-policy token {weight:.4f}: compared with GRPO, a KL term counts "
            f"{1 / weight:.1f} times more and max_grad_norm={config.train.max_grad_norm} clips {1 / weight:.1f} times "
            "later"
        )
    return notes
