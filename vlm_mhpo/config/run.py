"""The schema of a run: strict, frozen, described field by field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vlm_mhpo.config.base import FREE, Section
from vlm_mhpo.config.data import DataConfig
from vlm_mhpo.config.evaluation import EvalConfig
from vlm_mhpo.config.model import ModelConfig
from vlm_mhpo.config.objectives import MhpoConfig, ObjectiveConfig
from vlm_mhpo.config.rewards import RewardsConfig
from vlm_mhpo.config.rollout import RolloutConfig
from vlm_mhpo.config.training import DeepSpeedConfig, SftConfig, TrainConfig
from vlm_mhpo.errors import ConfigError


class CheckpointConfig(Section):
    """What is saved, when."""

    save_steps: int = Field(50, ge=0, description="Training steps between checkpoints; 0 = only at the end.")
    save_total_limit: PositiveInt = Field(2, description="Newest checkpoints kept.")
    keep_best: str | None = Field(
        None, description="Metric, for example eval/accuracy, whose best checkpoint is kept as well; null = none."
    )
    best_is: Literal["highest", "lowest"] = Field("highest", description="Which value of that metric is the best.")
    on_error: Literal["stop", "continue"] = Field(
        "stop", description="A checkpoint that the disk refuses ends the run, or is left out unless it is the last."
    )
    background: bool = Field(
        False,
        description="Train on while a checkpoint is forced to the disk; it counts a step or more later, and needs host "
        "memory for its files.",
    )
    trust_folder: bool = Field(
        False, description="Continue from checkpoints that another user owns or that everybody can write."
    )
    allow_change: list[str] = Field(
        default_factory=list,
        description="Keys that change what is learnt and that the run goes on with all the same, such as "
        "train.learning_rate; run.json and the report tell of each with its step and both values.",
    )


class FaultsConfig(Section):
    """What happens when ranks, steps or batches go wrong."""

    silence_s: float = Field(
        45.0, ge=0, description="Seconds without a sign of life after which a rank counts as dead; 0 = no watchdog."
    )
    hang_s: PositiveFloat = Field(
        1800.0, description="Seconds in which no rank gets on, after which all end; above the longest save or sample."
    )
    dump_weights: bool = Field(
        True, description="Put the policy beside the batch that stopped the run, so that replay repeats it exactly."
    )
    max_idle_steps: int = Field(
        10, ge=0, description="Steps in a row in which every group has equal rewards before on_idle; 0 = never."
    )
    on_idle: Literal["stop", "warn"] = Field("warn", description="What that many idle steps do.")
    max_truncated_steps: int = Field(
        10, ge=0, description="Steps in a row with every completion cut at its budget before on_truncated; 0 = never."
    )
    on_truncated: Literal["stop", "warn"] = Field("warn", description="What that many truncated steps do.")
    max_sampling_gap: float = Field(
        0.05,
        ge=0,
        description="Nats per token by which the log-probs of sampler and trainer may differ at equal weights, mean of "
        "a step, before on_sampling_gap; 0 = any.",
    )
    on_sampling_gap: Literal["stop", "warn"] = Field("warn", description="What a step beyond it does.")


class LoggingConfig(Section):
    """What is written beside metrics.jsonl."""

    tensorboard: bool = Field(True, description="Write TensorBoard events.")
    wandb: bool = Field(False, description="Log to Weights & Biases (extra `wandb`).")
    sample_steps: int = Field(25, ge=0, description="Training steps between sample tables; 0 = none.")
    sample_prompts: PositiveInt = Field(2, description="Prompts of a sample table.")
    report: bool = Field(True, description="Write report.html at the end.")


class Config(Section):
    """A whole run."""

    output_dir: str = Field(
        description="Run folder: config, metrics, samples, checkpoints, report.", json_schema_extra=FREE
    )
    seed: int = Field(0, ge=0, description="Root of all randomness.")
    num_threads: int = Field(
        1, ge=0, description="CPU threads of a process; 0 = all cores divided by local ranks.", json_schema_extra=FREE
    )
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    objective: ObjectiveConfig = Field(default_factory=MhpoConfig)
    train: TrainConfig
    sft: SftConfig = Field(default_factory=SftConfig)
    deepspeed: DeepSpeedConfig = Field(default_factory=DeepSpeedConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig, json_schema_extra=FREE)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig, json_schema_extra=FREE)
    faults: FaultsConfig = Field(default_factory=FaultsConfig, json_schema_extra=FREE)
    logging: LoggingConfig = Field(default_factory=LoggingConfig, json_schema_extra=FREE)

    @model_validator(mode="before")
    @classmethod
    def _objective_has_a_name(cls, values: Any) -> Any:
        # A discriminated union needs the tag; `objective: {c: 2.0}` means the default objective.
        if isinstance(values, dict) and isinstance(values.get("objective"), dict):
            values = {**values, "objective": {"name": "mhpo", **values["objective"]}}
        return values

    @model_validator(mode="after")
    def _batches_divide(self) -> Config:
        prompts, minibatches = self.train.num_prompts_per_step, self.train.num_minibatches
        if prompts % minibatches:
            raise ValueError(
                f"train.num_prompts_per_step={prompts} does not divide into train.num_minibatches={minibatches}: "
                f"use {nearest_multiple(prompts, minibatches)} prompts, or a divisor of {prompts} as minibatches"
            )
        return self

    @model_validator(mode="after")
    def _quantised_weights_are_whole(self) -> Config:
        if self.model.quantization and self.deepspeed.zero_stage == 3:
            raise ValueError(
                f"model.quantization={self.model.quantization} is held whole by every rank: set "
                "deepspeed.zero_stage=2 or lower"
            )
        return self

    @model_validator(mode="after")
    def _servers_hold_the_policy(self) -> Config:
        if self.rollout.engine == "vllm" and self.model.quantization:
            raise ValueError("rollout.engine=vllm serves weights as they are: set model.quantization=null")
        if (self.rollout.engine, self.rollout.old_log_probs, self.model.dtype) == ("vllm", "sampler", "bfloat16"):
            raise ValueError(
                "rollout.old_log_probs=sampler would take the servers' log-probs for the trainer's, from which they "
                "differ in bfloat16: set rollout.old_log_probs=trainer"
            )
        return self

    @property
    def updates_per_step(self) -> int:
        """Optimizer updates of one rollout batch."""
        return self.train.num_minibatches * self.train.num_iterations


def nearest_multiple(value: int, factor: int) -> int:
    """The multiple of `factor` (>= factor) nearest to `value`."""
    return max(factor, round(value / factor) * factor)


def check_world_size(config: Config, world_size: int) -> None:
    """Refuse batch sizes that the ranks cannot share evenly.

    Raises:
        ConfigError: a minibatch or a warm-start batch does not divide by `world_size`.
    """
    per_minibatch = config.train.num_prompts_per_step // config.train.num_minibatches
    if per_minibatch % world_size:
        raise ConfigError(
            f"each minibatch has {per_minibatch} prompts (train.num_prompts_per_step / train.num_minibatches), which "
            f"{world_size} ranks cannot share evenly: set train.num_prompts_per_step="
            f"{nearest_multiple(config.train.num_prompts_per_step, config.train.num_minibatches * world_size)}"
        )
    if config.sft.num_prompts_per_step % world_size:
        raise ConfigError(
            f"sft.num_prompts_per_step={config.sft.num_prompts_per_step} cannot be shared by {world_size} ranks: "
            f"set {nearest_multiple(config.sft.num_prompts_per_step, world_size)}"
        )
