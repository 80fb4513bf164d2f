"""Held-out evaluation and benchmarks."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from vlm_mhpo.config.base import Section, check_address


class EarlyStopConfig(Section):
    """When a run ends before its last step."""

    metric: str = Field("eval/accuracy", description="Metric of metrics.jsonl; higher is better.")
    patience: PositiveInt = Field(description="Evaluations in a row without a new best that end the run.")


class JudgeConfig(Section):
    """A language model that judges beside the rules, asked over an OpenAI-compatible HTTP interface."""

    url: str = Field(description="Base address, such as http://127.0.0.1:8000/v1; no other address is ever asked.")
    model: str = Field(min_length=1, description="Name under which the server offers the model.")
    token_file: str | None = Field(
        None, description="File that holds the access token and nothing else; null = none is sent."
    )
    max_tokens: PositiveInt | None = Field(1024, description="Token budget of an answer; null = the server's.")
    timeout_s: PositiveFloat = Field(120.0, description="Seconds for one answer, from the connection to its last byte.")
    max_tries: PositiveInt = Field(5, description="Times that a question is put before the evaluation stops.")
    concurrency: PositiveInt = Field(8, description="Questions that each rank has open at the same time.")
    cache_dir: str = Field("runs/judge_answers", description="Folder of all answers; what is in it is not asked again.")

    @field_validator("url")
    @classmethod
    def _is_a_plain_address(cls, url: str) -> str:
        check_address(url, "eval.judge.url", "eval.judge.token_file", "http://127.0.0.1:8000/v1")
        return url


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
    judge: JudgeConfig | None = Field(
        None,
        description="{url, model, token_file}: `vlm-mhpo evaluate --benchmarks` also asks a language model where a "
        "benchmark's authors do; null = rules alone.",
    )
    early_stop: EarlyStopConfig | None = Field(
        None, description="{metric, patience}: end the run when the metric no longer improves; null = never."
    )

    @model_validator(mode="after")
    def _greedy_once(self) -> EvalConfig:
        if self.temperature == 0 and self.num_samples > 1:
            raise ValueError("eval.num_samples > 1 needs eval.temperature > 0: greedy samples are all the same")
        return self
