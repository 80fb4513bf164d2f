"""MMMU and MMMU-Pro: the option named last, or the shortest ends of an open response; official prompts and parsing.

Copied on purpose: with nothing bracketed MMMU-Pro also takes the last letter of a word for an option's name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.shared import LETTERS, choices, gold, lettered, pictured, question, verdict
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official
from vlm_mhpo.evaluation.benchmarks.values import plain_float

_DISCIPLINES = {
    "Art and Design": ("Art", "Art_Theory", "Design", "Music"),
    "Business": ("Accounting", "Economics", "Finance", "Manage", "Marketing"),
    "Science": ("Biology", "Chemistry", "Geography", "Math", "Physics"),
    "Health and Medicine": ("Basic_Medical_Science", "Clinical_Medicine", "Diagnostics_and_Laboratory_Medicine",
                            "Pharmacy", "Public_Health"),
    "Humanities and Social Science": ("History", "Literature", "Sociology", "Psychology"),
    "Tech and Engineering": ("Agriculture", "Architecture_and_Engineering", "Computer_Science", "Electronics",
                             "Energy_and_Power", "Materials", "Mechanical_Engineering"),
}  # fmt: skip
_LAST_LINE = (
    "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where LETTER "
    "is one of options. Think step by step before answering."
)
_MARK = "Answer:"
_BRACKETED, _APART = "({})", " {} "
_ENDS = ("could be ", "so ", "is ", "thus ", "therefore ", "final ", "answer ", "result ")
_TRIVIAL = set(":,.!?;'")
_NUMBERS = (
    re.compile(r"-?\b\d{1,3}(?:,\d{3})+\b"),
    re.compile(r"-?\d+(?:\.\d+)?[eE][+-]?\d+"),
    re.compile(r"-?(?:\d+\.\d+|\.\d+|\d+\b)(?![eE][+-]?\d+)(?![,\d])"),
)
_LONG = 5


def prompt(row: Row) -> str:
    """The authors' wording for choices and for open questions."""
    if not choices(row):
        return pictured(row, f"{question(row)}\n\nAnswer the question using a single word or phrase.")
    listed = f"{lettered(choices(row))}\n"
    ends = "Answer with the option's letter from the given choices directly."
    return pictured(row, f"{question(row)}\n\n{listed}\n\n{ends}")


def pro_prompt(row: Row) -> str:
    """The authors' wording for step by step answers."""
    listed = "\n".join(f"{LETTERS[i]}. {option}" for i, option in enumerate(choices(row)))
    ends = f"Answer the preceding multiple choice question. {_LAST_LINE}"
    return pictured(row, f"{question(row)}\n{listed}\n{ends}")


def vision_prompt(row: Row) -> str:
    """The same where the image shows question and options."""
    return pictured(row, f"Write out the multiple-choice question in the image and then solve it. {_LAST_LINE}")


def official(row: Row, response: str) -> Official:
    """The option named last is the gold; an open response holds the gold's text or its number to two decimals."""
    options = choices(row)
    if options:
        named = _named(response, options, (_BRACKETED, _APART))
        return verdict(named == gold(row), named)
    golds = row.metadata.get("answers") or row.golds
    rights = [form for text in golds for form in _forms(str(text))]
    taken = _ends_of(response)
    correct = any(_holds(each, rights) for each in taken)
    return verdict(correct, str(taken[0]) if taken else None)


def pro_official(row: Row, response: str) -> Official:
    """The one letter behind the last "Answer:", else as MMMU."""
    behind = response.rpartition(_MARK)[2] if _MARK in response else ""
    letters = [letter for letter in LETTERS[: len(choices(row))] if letter in behind]
    named = letters[0] if len(letters) == 1 else _named(response, choices(row), (_BRACKETED, "{} ", "{}."))
    return verdict(named == gold(row), named)


def _named(response: str, options: Sequence[str], forms: Sequence[str]) -> str | None:
    """The letter whose form stands last in the response; of a longer one without letters that of a quoted option."""
    for char in ",.!?;:'":
        response = response.strip(char)
    text, letters = f" {response} ", LETTERS[: len(options)]
    for form in forms:
        if found := [letter for letter in letters if form.format(letter) in text]:
            shown = _BRACKETED if form == _BRACKETED else _APART
            return max(found, key=lambda letter: text.rfind(shown.format(letter)))
    places = {letter: text.lower().rfind(option.lower()) for letter, option in zip(letters, options, strict=True)}
    quoted = [letter for letter in letters if places[letter] >= 0] if len(text.split()) > _LONG else []
    return max(quoted, key=places.get) if quoted else None


def _ends_of(response: str) -> list[str | float]:
    """What stands behind the words that announce an answer, line by line, and the numbers in it."""
    lines = response.strip().strip(".").lower().split("\n")
    ends = []
    for number, line in enumerate(lines):
        marks = (*_ENDS, "=") if number == len(lines) - 1 else _ENDS
        shortest = ""
        for tail in (line.split(mark)[-1].strip() for mark in marks if mark in line):
            shortest = tail if not shortest or len(tail) < len(shortest) else shortest
        if shortest and shortest not in _TRIVIAL:
            ends.append(shortest)
    ends = ends or ["\n".join(lines)]
    found = [number for end in ends for pattern in _NUMBERS for number in pattern.findall(end)]
    return [form for text in (*ends, *found) for form in _forms(text)]


def _forms(text: str) -> list[str | float]:
    """A number to two decimals; a text in small letters, a lone one with a space on a side."""
    text = text.strip()
    value = plain_float(text.replace(",", ""))
    if value is not None:
        return [round(value, 2)]
    text = text.lower()
    return [f" {text}", f"{text} "] if len(text) == 1 else [text]


def _holds(taken: str | float, rights: Sequence[str | float]) -> bool:
    if isinstance(taken, float):
        return taken in rights
    return any(isinstance(right, str) and right in taken for right in rights)


def _categories(row: Row) -> dict[str, str]:
    """Subject and discipline; the subject stands in the id, as in validation_Art_Theory_7."""
    subject = str(row.metadata.get("subject") or "_".join(row.id.rpartition("/")[2].split("_")[1:-1]))
    discipline = next((name for name, subjects in _DISCIPLINES.items() if subject in subjects), None)
    named = {"subject": subject, "discipline": discipline, "difficulty": row.metadata.get("topic_difficulty")}
    return {axis: str(value) for axis, value in named.items() if value}


_RANDOM = (
    "where a response names no option the authors' script draws one at random, and it counts as wrong here; an image "
    "that a question names twice is shown once"
)
_benchmark = partial(Benchmark, prompt=prompt, official=official, deviation=_RANDOM, categories=_categories)

MMMU = _benchmark(
    name="mmmu", title="MMMU", citation="arXiv:2311.16502", splits=("validation", "dev"),
    sources=tuple(f"MMMU/MMMU:{subject}@validation" for subjects in _DISCIPLINES.values() for subject in subjects),
    download="download the data set lmms-lab/MMMU (MMMU/MMMU with its subjects in one table) to {folder}",
)  # fmt: skip
PRO = _benchmark(
    name="mmmu_pro", title="MMMU-Pro (standard, 10 options)", citation="arXiv:2409.02813", splits=("test",),
    sources=("MMMU/MMMU_Pro:standard (10 options)@test",), prompt=pro_prompt, official=pro_official,
    download="put the tables of standard (10 options) of the data set MMMU/MMMU_Pro into {folder}",
)  # fmt: skip
PRO_VISION = replace(
    PRO, name="mmmu_pro_vision", title="MMMU-Pro (vision)", sources=("MMMU/MMMU_Pro:vision@test",),
    prompt=vision_prompt, download="put the tables of vision of the data set MMMU/MMMU_Pro into {folder}",
)  # fmt: skip
