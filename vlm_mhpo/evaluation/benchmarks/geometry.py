"""Geometry3K with and without its choices, and the GeoQA test of R1-V."""

from __future__ import annotations

from dataclasses import replace

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.shared import BOXED, LETTERS, bare, by_verifier, choices, lettered, pictured
from vlm_mhpo.evaluation.benchmarks.types import ALL, Benchmark, Official

_GEOQA = (
    "{question} Output the thinking process in <think> </think> and final answer (number) in <answer> </answer> tags."
)
_GRADED = "public training frameworks grade this with mathruler or math-verify; our verifier does here"


def _free_form_prompt(row: Row) -> str:
    """The problem without its choices."""
    return pictured(row, row.problem)


def _choice_prompt(row: Row) -> str:
    """The problem with its choices behind letters."""
    return f"{pictured(row, row.problem)}\nChoices:\n{lettered(choices(row))}"


def free_form(row: Row, response: str) -> Official:
    """The value of the right choice; a letter answers nothing."""
    return by_verifier(replace(row, kind="math", choices=None), response)


def choice(row: Row, response: str) -> Official:
    """A letter or the text of a choice."""
    return by_verifier(_with_letter(row), response)


def _with_letter(row: Row) -> Row:
    """The row as a choice question: the gold of the original layout is the text of the right choice."""
    options = choices(row)
    same = [LETTERS[i] for i, option in enumerate(options) if option == row.answer]
    return replace(row, kind="choice", choices=options, answer=same[0] if len(same) == 1 else row.answer)


def _geoqa_prompt(row: Row) -> str:
    """R1-V's wording."""
    return pictured(row, _GEOQA.format(question=bare(row.problem)))


_DOWNLOAD = (
    "download the data set {name}, or the original Geometry3K folders (data/geometry3k/test/<id>/), to {{folder}}"
)

FREE_FORM = Benchmark(
    name="geometry3k",
    title="Geometry3K test, free-form",
    citation="arXiv:2105.04165",
    splits=("test",),
    sources=("hiyouga/geometry3k@test",),
    download=_DOWNLOAD.format(name="hiyouga/geometry3k"),
    prompt=_free_form_prompt,
    official=free_form,
    instruction=BOXED,
    deviation=_GRADED,
)
CHOICE = Benchmark(
    name="geometry3k_choice",
    title="Geometry3K test, choices",
    citation="arXiv:2105.04165",
    splits=("test",),
    sources=("Yang130/geometry3k_4choices_mixed@test",),
    download=_DOWNLOAD.format(name="Yang130/geometry3k_4choices_mixed"),
    prompt=_choice_prompt,
    official=choice,
    instruction="\nPlease reason step by step, and put the letter of the right choice within \\boxed{}.",
    deviation="the authors compare a computed number with the four choices; a letter or a choice's text is read here",
)
GEOQA = Benchmark(
    name="geoqa",
    title="GeoQA test (R1-V)",
    citation="github.com/Deep-Agent/R1-V",
    splits=(ALL,),
    sources=(),
    download="put geoqa_test_prompts.jsonl of github.com/Deep-Agent/R1-V and the images of Geo170K that it names "
    "into {folder}",
    prompt=_geoqa_prompt,
    official=by_verifier,
    deviation="math-verify parses and compares there; our verifier does here",
)
