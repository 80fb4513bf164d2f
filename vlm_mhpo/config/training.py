"""Optimizer, RL loop, warm start and DeepSpeed ZeRO."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vlm_mhpo.config.base import FIXED, FREE, Section


class OptimizerConfig(Section):
    """AdamW and its learning-rate schedule."""

    optimizer: Literal["adamw", "adamw_8bit"] = Field(
        "adamw",
        description="AdamW with moments in float32, or in 8 bits where a tensor has 4096 weights (bitsandbytes).",
        json_schema_extra=FIXED,
    )
    learning_rate: PositiveFloat = Field(1e-6, description="Peak learning rate.")
    lr_scheduler_type: Literal["constant", "linear", "cosine", "cosine_with_min_lr"] = Field(
        "constant", description="Shape after warm-up."
    )
    min_lr_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Share of the learning rate that cosine_with_min_lr ends at; for it alone.",
    )
    warmup_steps: int = Field(0, ge=0, description="Training steps of linear warm-up.")
    warmup_ratio: float = Field(0.0, ge=0, lt=1, description="The same as a share of max_steps, rounded up.")
    weight_decay: float = Field(0.0, ge=0, description="Decoupled weight decay.")
    adam_beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1.")
    adam_beta2: float = Field(0.999, ge=0, lt=1, description="AdamW beta 2.")
    adam_epsilon: PositiveFloat = Field(1e-8, description="AdamW epsilon.")
    max_grad_norm: PositiveFloat = Field(1.0, description="Gradients are scaled down to this global L2 norm.")

    @model_validator(mode="after")
    def _one_warm_up(self) -> OptimizerConfig:
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("warmup_steps and warmup_ratio both say how long the warm-up is: leave one of them out")
        return self


class TrainConfig(OptimizerConfig):
    """The RL loop."""

    max_steps: PositiveInt = Field(description="Rollout batches to train on.")
    num_prompts_per_step: PositiveInt = Field(description="Prompts of a rollout batch, over all ranks.")
    num_minibatches: PositiveInt = Field(4, description="Optimizer updates per pass over the rollout batch.")
    num_iterations: PositiveInt = Field(1, description="Passes over a rollout batch (TRL's mu).")
    advantage: Literal["group", "rloo", "reinforce_plus_plus"] = Field(
        "group",
        description="What a reward is compared with: the mean of its group, of the others in it (with "
        "scale_rewards=none, or batch), or of the whole batch (with scale_rewards=batch).",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field("group", description="Which std divides the advantage.")
    max_tokens_per_micro_batch: PositiveInt = Field(
        16384,
        description="Padded tokens of one forward on a rank; lower it when training runs out of memory.",
        json_schema_extra=FREE,
    )
    logits_chunk_size: PositiveInt = Field(
        384, description="Completion tokens whose logits exist at the same time.", json_schema_extra=FREE
    )
    mask_truncated_completions: bool = Field(False, description="Tokens of completions cut at the budget do not count.")
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="What a NaN or inf loss or gradient does.")

    @model_validator(mode="after")
    def _advantage_is_that_of_its_paper(self) -> TrainConfig:
        if self.advantage == "rloo" and self.scale_rewards == "group":
            raise ValueError("train.advantage=rloo divides by no group's std: set train.scale_rewards=none (or batch)")
        if self.advantage == "reinforce_plus_plus" and self.scale_rewards != "batch":
            raise ValueError(
                "train.advantage=reinforce_plus_plus divides by the batch's std: set train.scale_rewards=batch"
            )
        return self


class SftConfig(OptimizerConfig):
    """The warm start on (prompt, solution) pairs."""

    learning_rate: PositiveFloat = Field(1e-5, description="Peak learning rate.")
    max_steps: PositiveInt = Field(100, description="Optimizer updates.")
    num_prompts_per_step: PositiveInt = Field(64, description="Pairs an update, over all ranks.")
    max_tokens_per_micro_batch: PositiveInt = Field(
        16384, description="Padded tokens of one forward on a rank.", json_schema_extra=FREE
    )
    logits_chunk_size: PositiveInt = Field(
        384, description="Target tokens whose logits exist at the same time.", json_schema_extra=FREE
    )
    on_nonfinite: Literal["stop", "skip"] = Field("stop", description="What a NaN or inf loss or gradient does.")


class DeepSpeedConfig(Section):
    """DeepSpeed ZeRO."""

    zero_stage: Literal[0, 1, 2, 3] = Field(2, description="What is sharded: 1 optimizer, 2 + gradients, 3 + weights.")
    offload_optimizer: bool = Field(
        False, description="Optimizer state in host memory (compiles DeepSpeed's CPU Adam).", json_schema_extra=FREE
    )
    offload_param: bool = Field(False, description="ZeRO-3 weights in host memory.", json_schema_extra=FREE)
    reduce_dtype: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Type that the ranks' gradients of a bfloat16 model are added in; a weight takes 4 bytes or 2 on "
        "the way.",
    )
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
