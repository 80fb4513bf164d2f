"""MathVerse: six versions of each problem, from text-dominant to vision-only, and text without an image."""

from __future__ import annotations

from dataclasses import replace

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks import judging
from vlm_mhpo.evaluation.benchmarks.shared import JUDGE_REPLACED, axes, by_verifier, pictured
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official

_REASON = "first conduct reasoning, and then answer the question and"
_ENDS = {
    "multi-choice": "provide the correct option letter, e.g., A, B, C, D, at the end.",
    "free-form": "provide the final value, e.g., 1, 2.5, 300, at the end.",
}


def prompt(row: Row) -> str:
    """The authors' query for reasoning (`query_cot`), rebuilt where a table lacks it."""
    query = row.metadata.get("query_cot")
    return pictured(row, str(query) if query else _query(row))


def _query(row: Row) -> str:
    text = str(row.metadata.get("question", ""))
    ends = _ENDS[str(row.metadata["question_type"])]
    if not text.strip():
        return f"According to the question shown in the image, please {_REASON} {ends}"
    return f"Please {_REASON} {ends}\nQuestion: {text}"


def official(row: Row, response: str) -> Official:
    """Value or letter; choices that only the image shows are those of `question_for_eval`, which their judge reads."""
    shown = row.metadata.get("choices_in_image")
    return by_verifier(replace(row, choices=shown) if isinstance(shown, tuple) else row, response)


BENCHMARK = Benchmark(
    name="mathverse",
    title="MathVerse",
    citation="arXiv:2403.14624",
    splits=("testmini", "testmini_text_only", "vision_only"),
    sources=("AI4Math/MathVerse:testmini@testmini",),
    download="download the data set AI4Math/MathVerse (testmini.json, testmini_text_only.json and the unpacked "
    "images_version_* folders) to {folder}",
    prompt=prompt,
    official=official,
    deviation=JUDGE_REPLACED,
    judge=judging.MATHVERSE,
    categories=axes("subject", "subfield", "question_type", version="problem_version"),
    problem=lambda row: str(row.metadata["problem_index"]),
    subsets={"vision_only": ("testmini", lambda row: row.metadata["problem_version"] == "Vision Only")},
)
