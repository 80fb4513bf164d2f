"""M3CoT: multi-step questions with choices; the last bracketed letter, else the last choice quoted or letter."""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.shared import LETTERS, axes, bare, choices, gold, lettered, pictured, verdict
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official

_BRACKETED = re.compile(r"\(([A-Za-z])\)")
_MARKS = re.compile(r"[\n.,!?]")


def prompt(row: Row) -> str:
    """The authors' wording for step by step answers."""
    context = f"[Context]\n{row.metadata['context']}\n" if row.metadata.get("context") else ""
    asked = f"{context}[Question]\n{bare(str(row.metadata['question']))}\n[Choices]\n{lettered(choices(row))}"
    return pictured(row, f"{asked}\n\nLet's think step-by-step!")


def official(row: Row, response: str) -> Official:
    """The letter that the authors' rule finds is the gold's."""
    if "[Answer]" in response:
        response = response.split("[Answer]")[-1].split("[Rationale]")[0].split("[Context]")[0]
    letter = _letter(response, choices(row))
    return verdict(letter == gold(row).strip(), letter)


def _letter(text: str, options: Sequence[str]) -> str | None:
    if bracketed := _BRACKETED.findall(text):
        return bracketed[-1].upper()
    letters = LETTERS[: len(options)]
    words = set(_MARKS.sub(" ", text).split(" "))
    quoted = [letters[i] for i, option in enumerate(options) if option.lower() in text.lower()]
    named = quoted or [each for each in letters if each in words] or [each for each in letters if each.lower() in words]
    return named[-1] if named else None


BENCHMARK = Benchmark(
    name="m3cot",
    title="M3CoT",
    citation="arXiv:2405.16473",
    splits=("test", "validation"),
    sources=("LightChen2333/M3CoT@test",),
    download="download the data set LightChen2333/M3CoT to {folder}",
    prompt=prompt,
    official=official,
    deviation="some models are asked a second time there, for the letter alone; one response is judged here",
    categories=axes("domain", "topic"),
)
