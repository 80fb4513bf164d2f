"""LogicVista: logical reasoning over images; the set of letters must be the gold's."""

from __future__ import annotations

import re

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks.shared import LETTERS, bare, choices, gold, pictured
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official

_BRACKETED = re.compile(r"\(([A-Z])\)")
_LETTER = re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_NUMBER = re.compile(r"(?<![\d.])(\d+)(?![\d.]*\d)")


def prompt(row: Row) -> str:
    """The question as the authors write it: it lists its choices itself."""
    return pictured(row, bare(str(row.metadata["question"])))


def official(row: Row, response: str) -> Official:
    """The letters (or the number) of the answer are exactly those of the gold, in any order and case."""
    right = sorted(part.strip().lower() for part in gold(row).split(","))
    named = _named(row, response)
    return Official(sorted(named) == right, ", ".join(named).upper() or None)


def _named(row: Row, response: str) -> list[str]:
    text = response.strip()
    if len(text) == 1:
        return [text.lower()]
    answer = extract(response).answer or ""
    if gold(row).strip().isdecimal():
        return _NUMBER.findall(answer)[-1:]
    letters = _BRACKETED.findall(answer) or _LETTER.findall(answer)
    if not letters:
        options = choices(row)
        letters = [LETTERS[i] for i, option in enumerate(options) if option.lower() == answer.strip(" .").lower()]
    return list(dict.fromkeys(letter.lower() for letter in letters))


def _categories(row: Row) -> dict[str, str]:
    skill = row.metadata.get("skill")
    return {"skill": ", ".join(map(str, skill)) if isinstance(skill, tuple) else str(skill)} if skill else {}


BENCHMARK = Benchmark(
    name="logicvista",
    title="LogicVista",
    citation="arXiv:2407.04973",
    splits=("test",),
    sources=(),
    download="clone github.com/Yijia-Xiao/LogicVista and unpack its images to data/images in {folder}",
    prompt=prompt,
    official=official,
    instruction="\nPlease reason step by step, and put the letters of the right choices within \\boxed{}.",
    deviation="GPT-4 extracts the letters there; rules read them here",
    categories=_categories,
)
