"""PuzzleVQA and AlgoPuzzleVQA: the last letter in brackets, else the last capital A to D, must be the right option."""

from __future__ import annotations

import re
from functools import partial

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.shared import axes, bare, choices, gold, lettered, pictured, question
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official

_BRACKETED = re.compile(r"\(([ABCD])\)")
_LETTER = re.compile("[ABCD]")


def prompt(row: Row) -> str:
    """The authors' wording for step by step answers."""
    return pictured(
        row,
        f"Question: {bare(question(row)).rstrip()}\nOptions:\n{lettered(choices(row))}\n\n"
        "Answer: Let's describe the image first and think step by step.",
    )


def official(row: Row, response: str) -> Official:
    """The option named last; a letter beyond the options counts as the first option, as in the authors' script."""
    found = _BRACKETED.findall(response) or _LETTER.findall(response)
    if not found:
        return Official(False, None)
    options = choices(row)
    index = "ABCD".index(found[-1])
    named = options[index] if index < len(options) else options[0]
    return Official(named == gold(row), named)


_benchmark = partial(
    Benchmark,
    sources=(),
    download="clone github.com/declare-lab/LLM-PuzzleTest with its images to {folder}",
    prompt=prompt,
    official=official,
    deviation="a response without a letter is shown to the model again there; it counts as wrong here",
    categories=axes("category"),
)
PUZZLEVQA = _benchmark(name="puzzlevqa", title="PuzzleVQA", citation="arXiv:2403.13315", splits=("PuzzleVQA",))
ALGOPUZZLEVQA = _benchmark(
    name="algopuzzlevqa", title="AlgoPuzzleVQA", citation="arXiv:2403.03864", splits=("AlgoPuzzleVQA",)
)
