"""Everything a run is made of: model, rows, engine, sampler, loaded and checked before the first step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from tqdm import tqdm

from data_prep import Row
from vlm_mhpo.checkpoint import Saving
from vlm_mhpo.config import Config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.engine.settings import adds_in_float32, deepspeed_settings
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.evaluation.chosen import BenchmarkRows, benchmark_builder, chosen_benchmarks
from vlm_mhpo.models.families.base import parameter_table
from vlm_mhpo.models.loading import Codec, load_policy, loaded_commit
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.models.tiny import resolve_model
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.objectives.multipliers import on_policy_multiplier
from vlm_mhpo.prompts.builder import PromptBuilder, prompt_builder
from vlm_mhpo.prompts.rows import read_rows, usable_rows
from vlm_mhpo.records.run_file import write_run_file
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.runtime import ranks


@dataclass(frozen=True, slots=True)
class Setup:
    """What training and evaluation are made of.

    Attributes:
        config: the run.
        run_dir: its folder.
        engine: the policy under DeepSpeed.
        codec: tokenizer and processor.
        builder: rows to prompts.
        sampler: draws completions.
        train_rows, eval_rows: usable rows; eval_rows may be empty.
        pending: the checkpoint that is still on its way to the disk, if any.
        benchmarks: those of `eval.benchmarks`, with their rows.
    """

    config: Config
    run_dir: Path
    engine: Engine
    codec: Codec
    builder: PromptBuilder
    sampler: HfSampler
    train_rows: Sequence[Row]
    eval_rows: Sequence[Row]
    benchmarks: Sequence[BenchmarkRows] = ()
    pending: list[Saving] = field(default_factory=list)

    @property
    def policy(self) -> Policy:
        """The trained module."""
        return self.engine.policy


def build_setup(config: Config) -> Setup:
    """Load model and rows, print what is trained."""
    run_dir = Path(config.output_dir)
    benchmarks = chosen_benchmarks(config.eval)
    settings = deepspeed_settings(config.deepspeed, dtype=config.model.dtype, max_grad_norm=config.train.max_grad_norm)
    model = config.model.model_dump() | {"path": resolve_model(config.model.path, run_dir)}
    policy, codec = load_policy(**model, zero3_settings=settings)
    check_context(config, codec)
    builder = prompt_builder(config.data, codec, policy.family)
    data = config.data
    train_rows = usable_rows(
        read_rows(data.train, data, data.train_split, data.max_rows),
        builder,
        overlong=data.overlong_prompts,
        what="training",
    )
    eval_rows = (
        usable_rows(
            read_rows(data.eval, data, data.eval_split, data.max_eval_rows), builder, overlong="error", what="held-out"
        )
        if data.eval
        else []
    )
    for one in benchmarks:
        asks = benchmark_builder(config.eval.prompt, data, codec, policy.family)
        usable_rows(one.asked, asks, overlong="error", what=one.name)
    table = parameter_table(policy.model, policy.family)
    engine = Engine(policy, optimizer=config.train, deepspeed=config.deepspeed, dtype=config.model.dtype)
    sampler = HfSampler(
        policy, codec, max_batch_tokens=config.rollout.max_batch_tokens, whole_weights=engine.whole_weights
    )
    if ranks.is_main():
        print_start(config, table, len(train_rows), len(eval_rows), engine.zero_stage)
        if not policy.family.shares_prompt:
            tqdm.write(separate_rows_note(policy.family.model_type))
    return Setup(config, run_dir, engine, codec, builder, sampler, train_rows, eval_rows, benchmarks)


def record_setup(setup: Setup) -> None:
    """Write run.json and config.yaml; after it is sure that the folder's run may go on with this configuration."""
    table = parameter_table(setup.policy.model, setup.policy.family)
    model = {
        "num_parameters": sum(total for _, total, _ in table),
        "trainable": sum(trainable for _, _, trainable in table),
        "family": setup.policy.family.model_type,
    }
    if ranks.is_main():
        # The name alone may mean other weights tomorrow.
        if commit := loaded_commit(setup.policy.model.name_or_path, setup.config.model.revision):
            model["commit"] = commit
        write_run_file(setup.run_dir, setup.config, model)


def check_context(config: Config, codec: Codec) -> None:
    """ConfigError when prompt and completion budgets together exceed the model's positions."""
    needed = config.data.max_prompt_length + config.rollout.max_completion_length
    if needed > codec.max_context:
        raise ConfigError(
            f"data.max_prompt_length + rollout.max_completion_length = {needed} tokens, and the model has "
            f"{codec.max_context} positions: lower one of them"
        )


def print_start(
    config: Config, table: list[tuple[str, int, int]], num_train: int, num_eval: int, zero_stage: int
) -> None:
    """What is trained, on what, and in which regime."""
    for part, total, trainable in table:
        tqdm.write(f"{part:<16}{total / 1e6:10.2f} M weights{trainable / 1e6:10.2f} M trained")
    tqdm.write(
        f"{num_train} training rows, {num_eval} held-out rows; {config.train.num_prompts_per_step} prompts x "
        f"{config.rollout.num_generations} completions a step; ZeRO-{zero_stage} on "
        f"{ranks.world_size()} rank(s), {torch.get_num_threads()} thread(s) each"
    )
    if config.model.dtype == "bfloat16" and not adds_in_float32(zero_stage):
        tqdm.write(
            f"WARNING: ZeRO-{zero_stage} adds the gradients of micro-batches in bfloat16, which is 1 % off after 64 of "
            "them; deepspeed.zero_stage=2 adds them in float32"
        )
    for note in regime_notes(config):
        tqdm.write(note)


def separate_rows_note(model_type: str) -> str:
    """What a model that cannot share its prompts costs."""
    return (
        f"this {model_type} model has no adapter for shared prompts (or attends through sliding windows): every "
        "completion is sampled and trained with its own copy of the prompt, which is right and slower"
    )


def regime_notes(config: Config) -> list[str]:
    """What the numbers of this configuration mean for the objective."""
    notes = []
    if config.updates_per_step == 1:
        notes.append(
            "WARNING: one update a rollout batch keeps every ratio at 1: the objective is REINFORCE with a baseline. "
            "Set train.num_minibatches to 4 or more"
        )
    weight = on_policy_multiplier(build_objective(config.objective, config.rollout.max_completion_length))
    if weight < 0.99:
        notes.append(
            f"{config.objective.name} weighs an on-policy token {weight:.4f}: beside GRPO, a KL term counts "
            f"{1 / weight:.1f} times more and max_grad_norm={config.train.max_grad_norm} clips {1 / weight:.1f} times "
            "later"
        )
    return notes
