"""The schema of a run: strict, frozen, described field by field."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vlm_mhpo.config.base import Section
from vlm_mhpo.config.objectives import MhpoConfig, ObjectiveConfig
from vlm_mhpo.errors import ConfigError


class ModelConfig(Section):
    """Which policy is trained and how it is held in memory."""

    path: str = Field(description="Local folder or hub name of a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or text causal model.")
    revision: str | None = Field(None, description="Hub commit hash; pins what is downloaded.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Type of the weights in forward passes.")
    attn_implementation: Literal["sdpa", "eager"] = Field("sdpa", description="transformers attention implementation.")
    freeze_vision_tower: bool = Field(False, description="Do not train the vision encoder.")
    freeze_projector: bool = Field(False, description="Do not train the vision-language merger.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward: less memory, slower.")
    min_pixels: PositiveInt | None = Field(None, description="Smallest image area in pixels; smaller is enlarged.")
    max_pixels: PositiveInt | None = Field(None, description="Largest image area in pixels; larger is shrunk.")

    @model_validator(mode="after")
    def _pixels_in_order(self) -> ModelConfig:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.min_pixels={self.min_pixels} is above model.max_pixels={self.max_pixels}: swap them"
            )
        return self


class DataConfig(Section):
    """Rows and the prompt that is built from each."""

    train: str | list[str] = Field(
        description="Row source(s): file, folder, glob, name@split, name:configuration, synthetic:FAMILY?seed=0; in a "
        "list where every source ends in :WEIGHT they are mixed in these shares."
    )
    eval: str | list[str] | None = Field(None, description="Held-out row source(s); null = no evaluation.")
    format: str = Field("auto", description="Reader of both sources (auto, geometry3k, formalgeo7k, jsonl, ...).")
    train_split: str | None = Field(None, description="Split of `train`, when the source has several.")
    eval_split: str | None = Field(None, description="Split of `eval`, when the source has several.")
    image_root: str | None = Field(
        None, description="Folder that relative image paths start from (default: the file's)."
    )
    max_rows: PositiveInt | None = Field(None, description="Use only the first rows of `train`.")
    max_eval_rows: PositiveInt | None = Field(None, description="Use only the first rows of `eval`.")
    template: Literal["think_answer", "think_boxed", "boxed"] = Field(
        "think_answer", description="Response format that is asked for, rewarded (format) and read (accuracy)."
    )
    system_prompt: str | None = Field(None, description="System message; null = none (the chat template may add one).")
    instruction: str = Field("", description="Text after each problem, for example how to answer.")
    max_prompt_length: PositiveInt = Field(4096, description="Tokens of a prompt, image tokens included.")
    overlong_prompts: Literal["error", "filter"] = Field(
        "filter", description="A longer prompt stops the program, or is left out and counted. Never truncated."
    )
    prefetch: bool = Field(
        True, description="Prepare the next step's prompts (images too) in a thread while this one computes."
    )


class RolloutConfig(Section):
    """Sampling of completions."""

    num_generations: int = Field(8, ge=2, description="G, completions sampled a prompt; the group of the advantage.")
    max_completion_length: PositiveInt = Field(512, description="Token budget of a completion.")
    temperature: PositiveFloat = Field(1.0, description="Softmax temperature, also of the trainer's log-probs.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass; log-probs stay those of the whole distribution.")
    top_k: int = Field(0, ge=0, description="Sample among the k most likely tokens; 0 = all.")
    max_batch_tokens: PositiveInt = Field(
        65536,
        description="Tokens decoded together on a rank: a prompt once, the budget of each of its completions; lower it "
        "when sampling runs out of memory.",
    )
    dynamic_sampling: bool = Field(False, description="Replace groups of equal rewards by groups of other prompts.")
    max_resample_times: int = Field(3, ge=0, description="Tries of dynamic sampling; then the step goes on.")
    old_log_probs: Literal["trainer", "sampler"] = Field(
        "trainer",
        description="Where the ratio's denominator comes from: one more forward of the trainer (exact in bfloat16), "
        "or the sampler's own (free; right in float32).",
    )


class RewardConfig(Section):
    """One named reward."""

    name: str = Field(description="accuracy, format, overlong, repetition, length, or a name for your own function.")
    weight: float = Field(1.0, description="Factor in the sum; 0 removes the reward and its cost.")
    path: str | None = Field(None, description="file.py:function of your own reward (TRL, EasyR1 or verl signature).")
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments handed to the function.")


class RewardsConfig(Section):
    """Rewards and the worker processes that verify answers."""

    functions: list[RewardConfig] = Field(
        default_factory=lambda: [RewardConfig(name="accuracy"), RewardConfig(name="format", weight=0.1)],
        description="Rewards that are summed by weight.",
    )
    num_workers: PositiveInt = Field(2, description="Killable verifier processes a rank.")
    timeout_s: PositiveFloat = Field(1.0, description="Seconds after which a verification is killed and counted.")
    memory_limit_mib: PositiveInt = Field(1024, description="Address space of a verifier process, MiB.")
    max_timeout_share: float = Field(
        0.2, gt=0, le=1, description="A larger share of timed-out verifications stops the run; 1 = never."
    )
    max_zero_accuracy_steps: int = Field(
        3,
        ge=0,
        description="Steps in a row without a correct answer, after there were some, that stop the run once chance "
        "cannot explain them; 0 = never.",
    )

    @model_validator(mode="after")
    def _names_differ(self) -> RewardsConfig:
        names = [function.name for function in self.functions]
        if not any(function.weight for function in self.functions):
            raise ValueError("rewards.functions: every weight is 0, so nothing would be learnt: give one a weight")
        if len(set(names)) < len(names):
            raise ValueError(f"rewards.functions: names must differ, got {names}")
        return self


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    learning_rate: PositiveFloat = Field(1e-6, description="Peak learning rate.")
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = Field("constant", description="Shape after warm-up.")
    warmup_steps: int = Field(0, ge=0, description="Training steps of linear warm-up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta 2.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="AdamW epsilon.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are scaled down to this global L2 norm.")


class TrainConfig(OptimizerConfig):
    """The RL loop."""

    max_steps: PositiveInt = Field(description="Rollout batches to train on.")
    num_prompts_per_step: PositiveInt = Field(description="Prompts of a rollout batch, over all ranks.")
    num_minibatches: PositiveInt = Field(4, description="Optimizer updates a pass over the rollout batch.")
    num_iterations: PositiveInt = Field(1, description="Passes over a rollout batch (TRL's mu).")
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="Which std divides the advantage.")
    max_tokens_per_micro_batch: PositiveInt = Field(
        16384, description="Padded tokens of one forward on a rank; lower it when training runs out of memory."
    )
    logits_chunk_size: PositiveInt = Field(384, description="Completion tokens whose logits exist at the same time.")
    mask_truncated_completions: bool = Field(False, description="Tokens of completions cut at the budget do not count.")
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="What a NaN or inf loss or gradient does.")


class SftConfig(OptimizerConfig):
    """The warm start on (prompt, solution) pairs."""

    learning_rate: PositiveFloat = Field(1e-5, description="Peak learning rate.")
    max_steps: PositiveInt = Field(100, description="Optimizer updates.")
    num_prompts_per_step: PositiveInt = Field(64, description="Pairs an update, over all ranks.")
    max_tokens_per_micro_batch: PositiveInt = Field(16384, description="Padded tokens of one forward on a rank.")
    logits_chunk_size: PositiveInt = Field(384, description="Target tokens whose logits exist at the same time.")
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="What a NaN or inf loss or gradient does.")


class DeepSpeedConfig(Section):
    """DeepSpeed ZeRO."""

    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="What is sharded: 1 optimizer, 2 + gradients, 3 + weights.")
    offload_optimizer: bool = Field(
        False, description="Optimizer state in host memory (compiles DeepSpeed's CPU Adam)."
    )
    offload_param: bool = Field(False, description="ZeRO-3 weights in host memory.")
    config: str | None = Field(
        None, description="Your own DeepSpeed JSON; batch, clipping and precision keys are ours."
    )

    @model_validator(mode="after")
    def _offload_fits_stage(self) -> DeepSpeedConfig:
        if self.offload_param and self.zero_stage != 3:
            raise ValueError("deepspeed.offload_param needs deepspeed.zero_stage=3")
        if self.offload_optimizer and self.zero_stage == 0:
            raise ValueError("deepspeed.offload_optimizer needs deepspeed.zero_stage 1, 2 or 3")
        return self


class EarlyStopConfig(Section):
    """When a run ends before its last step."""

    metric: str = Field("eval/accuracy", description="Metric of metrics.jsonl; higher is better.")
    patience: PositiveInt = Field(description="Evaluations in a row without a new best that end the run.")


class EvalConfig(Section):
    """Held-out evaluation."""

    every: int = Field(0, ge=0, description="Training steps between evaluations; 0 = only before and after.")
    before: bool = Field(True, description="Evaluate before the first step.")
    num_samples: PositiveInt = Field(1, description="k of Avg@k; 1 with temperature 0 is greedy accuracy.")
    temperature: float = Field(0.0, ge=0, description="0 = greedy.")
    top_p: float = Field(1.0, gt=0, le=1, description="Nucleus mass when temperature > 0.")
    max_completion_length: PositiveInt | None = Field(None, description="Token budget; null = the rollout's.")
    top_k: int = Field(0, ge=0, description="Sample among the k most likely tokens when temperature > 0; 0 = all.")
    seed: int = Field(0, ge=0, description="Of sampling and probes on benchmarks; part of their protocol.")
    gallery: int = Field(48, ge=0, description="Held-out rows, of each benchmark too, whose pictures are kept.")
    prompt: Literal["official", "run"] = Field(
        "official", description="How benchmarks ask: in their own words, or as training does (data.instruction)."
    )
    benchmarks: list[str] = Field(
        default_factory=list, description="Benchmarks evaluated in training: name, name@split, or either with =PLACE."
    )
    benchmark_dir: str = Field("data/benchmarks", description="Folder that holds benchmarks, each under its name.")
    max_benchmark_rows: PositiveInt | None = Field(
        None, description="Use only the first rows of each benchmark in training."
    )
    early_stop: EarlyStopConfig | None = Field(
        None, description="{metric, patience}: end the run when the metric no longer improves; null = never."
    )

    @model_validator(mode="after")
    def _greedy_once(self) -> EvalConfig:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError("eval.num_samples > 1 needs eval.temperature > 0: greedy samples are all the same")
        return self


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


class LoggingConfig(Section):
    """What is written beside metrics.jsonl."""

    tensorboard: bool = Field(True, description="Write TensorBoard events.")
    wandb: bool = Field(False, description="Log to Weights & Biases (extra `wandb`).")
    sample_steps: int = Field(25, ge=0, description="Training steps between sample tables; 0 = none.")
    sample_prompts: PositiveInt = Field(2, description="Prompts of a sample table.")
    report: bool = Field(True, description="Write report.html at the end.")


class Config(Section):
    """A whole run."""

    output_dir: str = Field(description="Run folder: config, metrics, samples, checkpoints, report.")
    seed: int = Field(0, ge=0, description="Root of all randomness.")
    num_threads: int = Field(1, ge=0, description="CPU threads of a process; 0 = all cores divided by local ranks.")
    model: ModelConfig
    data: DataConfig
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    rewards: RewardsConfig = Field(default_factory=RewardsConfig)
    objective: ObjectiveConfig = Field(default_factory=MhpoConfig)
    train: TrainConfig
    sft: SftConfig = Field(default_factory=SftConfig)
    deepspeed: DeepSpeedConfig = Field(default_factory=DeepSpeedConfig)
    eval: EvalConfig = Field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = Field(default_factory=CheckpointConfig)
    faults: FaultsConfig = Field(default_factory=FaultsConfig)
    logging: LoggingConfig = Field(default_factory=LoggingConfig)

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
