"""MathVista: the authors' query, and their normalisation and exact comparison of an extracted answer.

There GPT-4 extracts the answer from a response; here rules do, and a judge if there is one. Copied on purpose: what
names no choice counts as the choice with the smallest edit distance, so that a refusal may be right. Of a judge's
answers only those count that are near a choice.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Sequence

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks.judging import extracted, filled, text_of
from vlm_mhpo.evaluation.benchmarks.shared import (
    LETTERS,
    axes,
    bare,
    choices,
    gold,
    lettered,
    pictured,
    question,
    verdict,
)
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Judged, JudgeRule, JudgeSteps, Official
from vlm_mhpo.evaluation.benchmarks.values import numbers, plain_float

_HINTS = {
    "text": "Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.",
    "integer": "Please answer the question requiring an integer answer and provide the final value, e.g., 1, 2, 3, "
    "at the end.",
    "float1": "Please answer the question requiring a floating-point number with one decimal place and provide the "
    "final value, e.g., 1.2, 1.3, 1.4, at the end.",
    "float2": "Please answer the question requiring a floating-point number with two decimal places and provide the "
    "final value, e.g., 1.23, 1.34, 1.45, at the end.",
    "list": "Please answer the question requiring a Python list as an answer and provide the final list, e.g., "
    "[1, 2, 3], [1.2, 1.3, 1.4], at the end.",
}
_BRACKETED = re.compile(r"\(([a-zA-Z])\)")
_LETTER = re.compile(r"(?:option|choice)?\s*([A-Z])[.:)]*", re.IGNORECASE)
_LIST = re.compile(r"\[([^\[\]]*)\]")
# "The answer is (B)", with markdown or not.
_ANNOUNCED = re.compile(r"\banswer\b[^.\n()]{0,60}\(([A-Za-z])\)", re.IGNORECASE)
_DENIED = re.compile(r"\b(?:is|are) not\b")
_COUNTS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
_WORDS = re.compile(rf"\b({'|'.join(_COUNTS)})\b", re.IGNORECASE)
# Levenshtein costs the product of both lengths; a choice has fewer characters than this by far.
_MAX_COMPARED = 2000


def prompt(row: Row) -> str:
    """The authors' query: hint, question with its unit, choices."""
    options = choices(row)
    unit = f" (Unit: {row.unit})" if row.unit else ""
    parts = [f"Hint: {_HINTS[_hint(row)]}", f"Question: {bare(question(row))}{unit}"]
    return pictured(row, "\n".join(parts + (["Choices:", lettered(options)] if options else [])))


def _hint(row: Row) -> str:
    answer_type = str(row.metadata.get("answer_type", "text"))
    return f"float{row.precision or 2}" if answer_type == "float" else answer_type


def official(row: Row, response: str) -> Official:
    """The authors' normalisation of what our rules extract, compared with the gold as text."""
    extraction = _extraction_of(row, response)
    prediction = normalised(row, extraction)
    return verdict(prediction == gold(row), extraction)


def normalised(row: Row, extraction: str) -> str | None:
    """An extracted answer in the form of the gold, by the authors' rule; None if it has no such form."""
    answer_type = row.metadata.get("answer_type")
    if row.metadata.get("question_type") == "multi_choice":
        return _choice(extraction.strip(), choices(row))
    if answer_type in ("integer", "float"):
        value = plain_float(extraction)
        if value is None:
            return None
        return str(int(value)) if answer_type == "integer" else str(round(value, row.precision))
    return extraction


def _choice(extraction: str, options: Sequence[str]) -> str:
    bracketed = _BRACKETED.search(extraction)
    letter = bracketed[1].upper() if bracketed else extraction
    if letter in list(LETTERS[: len(options)]):
        return options[LETTERS.index(letter)]
    return min(options, key=lambda option: edit_distance(letter[:_MAX_COMPARED], option))


def edit_distance(a: str, b: str) -> int:
    """Levenshtein distance: insertions, deletions and replacements of one character."""
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, start=1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(b, start=1):
            diagonal, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
    return row[-1]


def _extraction_of(row: Row, response: str) -> str:
    """The answer in a response: the authors' short cuts, then rules in place of their language model."""
    text, options = response.strip(), choices(row)
    if not text or _is_bare(text, options):
        return text
    declared = extract(response).answer or ""
    if options:
        return _choice_in(declared, text, options)
    if row.metadata.get("answer_type") == "list":
        found = _LIST.findall(declared) or _LIST.findall(text)
        return f"[{', '.join(item.strip() for item in found[-1].split(','))}]" if found else declared
    for part in (declared, text):
        found = numbers(part) or _counted(part)
        if found:
            return found[-1]
    return ""


def _is_bare(text: str, options: Sequence[str]) -> bool:
    """Whether a response is its answer and nothing else, so that nothing has to be extracted."""
    return text in options or (not options and plain_float(text) is not None)


def _judge_steps(row: Row, response: str) -> JudgeSteps:
    """The judge extracts, the authors' normalisation compares."""
    text, options = response.strip(), choices(row)
    taken: str | None = text
    if not _is_bare(text, options):
        taken = extracted((yield filled("mathvista", question=bare(prompt(row)), response=text)))
    if taken is None:
        return None
    if taken.lower() == "none":
        return Official(False, None)
    meant = _meant_choice(taken, options) if options else taken
    prediction = None if meant is None else normalised(row, meant)
    return None if prediction is None else verdict(prediction == gold(row), taken)


def _meant_choice(taken: str, options: Sequence[str]) -> str | None:
    """The letter or text of the choice that a judge's answer names, or nearly spells; else None."""
    named = taken if taken in options else _named_choice(taken, options)
    if named:
        return named if named in options or named in list(LETTERS[: len(options)]) else None
    taken = taken[:_MAX_COMPARED]
    near = min(options, key=lambda option: edit_distance(taken, option))
    is_near = 4 * edit_distance(taken, near) <= max(len(taken), len(near)) and numbers(taken) == numbers(near)
    return near if is_near else None


def _choice_in(declared: str, text: str, options: Sequence[str]) -> str:
    """A letter or choice that the answer, else the whole text, names; else what the edit distance has to decide on."""
    announced = [letter.upper() for letter in _ANNOUNCED.findall(text)]
    for named in (_named_choice(declared, options), *announced[-1:], _named_choice(text, options)):
        if named:
            return named
    if {option.lower() for option in options} == {"yes", "no"} and _DENIED.search(text):
        return next(option for option in options if option.lower() == "no")
    values = numbers(declared)
    return values[-1] if values and all(plain_float(option) is not None for option in options) else declared or text


def _named_choice(text: str, options: Sequence[str]) -> str:
    letter = _LETTER.fullmatch(text.strip())
    if letter:
        return letter[1].upper()
    bracketed = {found.upper() for found in _BRACKETED.findall(text)} & set(LETTERS[: len(options)])
    if len(bracketed) == 1:
        return bracketed.pop()
    named = [option for option in options if re.search(rf"(?<!\w){re.escape(option)}(?!\w)", text, re.IGNORECASE)]
    return named[0] if len(named) == 1 else ""


def _counted(text: str) -> list[str]:
    """The one number that a text spells out, such as 3 for "three"."""
    words = {word.lower() for word in _WORDS.findall(text)}
    return [str(_COUNTS.index(words.pop()))] if len(words) == 1 else []


def _by_skill(judged: Sequence[Judged]) -> dict[str, float]:
    """Accuracy of each skill; a problem may need several."""
    answers: dict[str, list[bool]] = defaultdict(list)
    for one in judged:
        for skill in one.row.metadata.get("skills", ()):
            answers[f"skill: {skill}"].append(one.correct)
    return {name: sum(rights) / len(rights) for name, rights in sorted(answers.items())}


BENCHMARK = Benchmark(
    name="mathvista",
    title="MathVista testmini",
    citation="arXiv:2310.02255",
    splits=("testmini",),
    sources=("AI4Math/MathVista@testmini",),
    download="download the data set AI4Math/MathVista, or clone github.com/lupantech/MathVista with its images, "
    "to {folder}",
    prompt=prompt,
    official=official,
    deviation="GPT-4 extracts the answer there; rules extract it here",
    judge=JudgeRule(_judge_steps, (text_of("mathvista"),), "our own prompt for the authors' task, extraction"),
    aggregate=_by_skill,
    categories=axes("task", "context", "grade", "category", "source", "question_type", "answer_type", "language"),
)
