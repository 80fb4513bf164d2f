"""ChartQA: relaxed accuracy, numbers within 5 % of the gold, over questions of people and generated ones."""

from __future__ import annotations

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks.shared import axes, bare, pictured, question, verdict
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official
from vlm_mhpo.evaluation.benchmarks.values import plain_float

_TOLERANCE = 0.05


def prompt(row: Row) -> str:
    """The question alone."""
    return pictured(row, bare(question(row)))


def official(row: Row, response: str) -> Official:
    """Relative error of at most 5 % where both are numbers and the gold is not 0; else the same text but for case."""
    answer = (extract(response).answer or response).strip()
    value, right = _number(answer), _number(row.answer)
    if value is not None and right:
        return verdict(abs(value - right) / abs(right) <= _TOLERANCE, answer)
    return verdict(answer.lower() == row.answer.lower(), answer)


def _number(text: str) -> float | None:
    """A number; a percentage as its share."""
    value = plain_float(text.rstrip("%")) if text.endswith("%") else plain_float(text)
    return value / 100 if value is not None and text.endswith("%") else value


BENCHMARK = Benchmark(
    name="chartqa",
    title="ChartQA test",
    citation="arXiv:2203.10244",
    splits=("test", "human", "augmented"),
    sources=("HuggingFaceM4/ChartQA@test",),
    download="download the data set HuggingFaceM4/ChartQA, or the test folder of github.com/vis-nlp/ChartQA, to "
    "{folder}",
    prompt=prompt,
    official=official,
    instruction="\nAnswer the question with a single word.",
    deviation="the authors ask fine-tuned models the question alone; a single word is asked for here, as public "
    "harnesses do, and the answer that a response declares is read",
    categories=axes("half"),
    subsets={half: ("test", lambda row, half=half: row.metadata["half"] == half) for half in ("human", "augmented")},
)
