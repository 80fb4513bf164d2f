"""MMK12: multimodal problems of school subjects with free-form and lettered answers."""

from __future__ import annotations

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks import judging
from vlm_mhpo.evaluation.benchmarks.shared import BOXED, JUDGE_REPLACED, axes, by_verifier, pictured
from vlm_mhpo.evaluation.benchmarks.types import Benchmark


def prompt(row: Row) -> str:
    """The question alone."""
    return pictured(row, row.problem)


BENCHMARK = Benchmark(
    name="mmk12",
    title="MMK12 test",
    citation="arXiv:2503.07365",
    splits=("test",),
    sources=("FanqingM/MMK12@test",),
    download="download the data set FanqingM/MMK12, or eval/k12 of github.com/ModalMinds/MM-EUREKA, to {folder}",
    prompt=prompt,
    official=by_verifier,
    instruction=BOXED,
    deviation=JUDGE_REPLACED,
    judge=judging.MMK12,
    categories=axes("subject"),
)
