"""Held-out evaluation and benchmarks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from vlm_mhpo.config.base import Section


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
    gallery: int = Field(48, ge=0, description="Held-out rows, of each benchmark too, whose images are kept.")
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
