"""Rewards and the processes that verify answers."""

from __future__ import annotations

from typing import Any

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vlm_mhpo.config.base import FREE, Section


class RewardConfig(Section):
    """One named reward."""

    name: str = Field(description="accuracy, format, overlong, repetition, length, or a name for your own function.")
    weight: float = Field(1.0, description="Factor in the sum; 0 removes the reward and its cost.")
    path: str | None = Field(
        None,
        description="file.py:function or package.module:function of your own reward (TRL, EasyR1 or verl signature).",
    )
    conversational: bool | None = Field(
        None,
        description="Give a function of TRL's signature messages in place of texts; null = if it names their key "
        "`content`.",
    )
    kwargs: dict[str, Any] = Field(default_factory=dict, description="Keyword arguments handed to the function.")


class RewardsConfig(Section):
    """Rewards and the worker processes that verify answers."""

    functions: list[RewardConfig] = Field(
        default_factory=lambda: [RewardConfig(name="accuracy"), RewardConfig(name="format", weight=0.1)],
        description="Rewards that are summed by weight.",
    )
    num_workers: PositiveInt = Field(
        1,
        description="Killable verifier processes per rank, started when an answer first needs one; under 0.5 % of the "
        "answers do.",
        json_schema_extra=FREE,
    )
    timeout_s: PositiveFloat = Field(
        1.0,
        description="Seconds of processor time after which a verification is killed and counted; other load does not "
        "count.",
        json_schema_extra=FREE,
    )
    memory_limit_mib: PositiveInt = Field(
        1024, description="Address space of a verifier process, MiB.", json_schema_extra=FREE
    )
    max_timeout_share: float = Field(
        0.2,
        gt=0,
        le=1,
        description="A larger share of timed-out verifications stops the run; 1 = never.",
        json_schema_extra=FREE,
    )
    max_zero_accuracy_steps: int = Field(
        3,
        ge=0,
        description="Steps in a row without a correct answer, after there were some, that stop the run once chance "
        "cannot explain them; 0 = never.",
        json_schema_extra=FREE,
    )

    @model_validator(mode="after")
    def _names_differ(self) -> RewardsConfig:
        names = [function.name for function in self.functions]
        if not any(function.weight for function in self.functions):
            raise ValueError("rewards.functions: every weight is 0, so nothing would be learnt: give one a weight")
        if len(set(names)) < len(names):
            raise ValueError(f"rewards.functions: names must differ, got {names}")
        return self
