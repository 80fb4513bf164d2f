"""Text benchmarks: MATH-500, AIME, AMC, HMMT and GSM8K."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks.shared import BOXED, axes, by_verifier
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official
from vlm_mhpo.evaluation.benchmarks.values import numbers, plain_float

_MARK = "####"


def prompt(row: Row) -> str:
    """The problem alone."""
    return row.problem


def number(row: Row, response: str) -> Official:
    """The answer is the gold number; a degree sign or unit behind it does not matter."""
    return by_verifier(replace(row, kind="number"), response)


def gsm8k(row: Row, response: str) -> Official:
    """The number behind "####", else in the last box, else the last of the response."""
    behind = numbers(response.rpartition(_MARK)[2])[:1] if _MARK in response else []
    if not behind:
        answer = extract(response).answer
        behind = (numbers(answer)[-1:] if answer else []) or numbers(response)[-1:]
    value = plain_float(behind[0]) if behind else None
    right = numbers(row.answer)[-1:]
    return Official(value is not None and bool(right) and value == plain_float(right[0]), behind[0] if behind else None)


_benchmark = partial(Benchmark, prompt=prompt, instruction=BOXED)
_DOWNLOAD = "download the data set {} to {{folder}}"
_GRADER = "the sympy grader of the original is replaced by our verifier"

MATH500 = _benchmark(
    name="math500", title="MATH-500", citation="arXiv:2305.20050", splits=("test",),
    sources=("HuggingFaceH4/MATH-500@test",), download=_DOWNLOAD.format("HuggingFaceH4/MATH-500"),
    official=by_verifier, deviation=_GRADER, categories=axes("subject", "level"),
)  # fmt: skip
AIME24 = _benchmark(
    name="aime24", title="AIME 2024", citation="huggingface.co/datasets/HuggingFaceH4/aime_2024", splits=("train",),
    sources=("HuggingFaceH4/aime_2024@train",), download=_DOWNLOAD.format("HuggingFaceH4/aime_2024"),
    official=number,
)  # fmt: skip
AIME25 = _benchmark(
    name="aime25", title="AIME 2025", citation="huggingface.co/datasets/math-ai/aime25", splits=("test",),
    sources=("math-ai/aime25@test",), download=_DOWNLOAD.format("math-ai/aime25"), official=number,
)  # fmt: skip
AMC23 = _benchmark(
    name="amc23", title="AMC 2023", citation="huggingface.co/datasets/math-ai/amc23", splits=("test",),
    sources=("math-ai/amc23@test",), download=_DOWNLOAD.format("math-ai/amc23"), official=number,
)  # fmt: skip
HMMT25 = _benchmark(
    name="hmmt25", title="HMMT February 2025", citation="huggingface.co/datasets/MathArena/hmmt_feb_2025",
    splits=("train",), sources=("MathArena/hmmt_feb_2025@train",), download=_DOWNLOAD.format("MathArena/hmmt_feb_2025"),
    official=by_verifier, deviation=_GRADER,
)  # fmt: skip
GSM8K = _benchmark(
    name="gsm8k", title="GSM8K", citation="arXiv:2110.14168", splits=("test",), sources=("openai/gsm8k:main@test",),
    download=_DOWNLOAD.format("openai/gsm8k"), official=gsm8k,
    deviation="the original reads only what stands behind '####'; without it the box or the last number is read here",
)  # fmt: skip
