"""LogicVista: logical reasoning over images; the set of letters must be the gold's."""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks.judging import extracted, filled, text_of
from vlm_mhpo.evaluation.benchmarks.shared import LETTERS, bare, choices, gold, pictured
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, JudgeRule, JudgeSteps, Official

_BRACKETED = re.compile(r"\(([A-Z])\)")
_LETTER = re.compile(r"(?<![A-Za-z'])([A-Z])(?![A-Za-z'])")
_CHOSEN = re.compile(r"\(?([A-Za-z]|\d+)\)?\.?(,\s*\(?([A-Za-z]|\d+)\)?)*\.?")
_NUMBER = re.compile(r"(?<![\d.])(\d+)(?![\d.]*\d)")
_SPEAKER = re.compile(r"\bI (?=[a-z])")
_TOGETHER = re.compile(r"[A-I]{2,9}")
_SEVERAL = re.compile(r"\banswers?\b[^.\n]{0,20}?\b([A-I](?:(?:,| and|, and|&) ?[A-I])+)\b")
# Of a response that declares no answer: "answer : d", "option D", "D) some of them".
_ANNOUNCED = re.compile(r"\b(?i:answer|option|choice)(?i:\s+is)?\s*:?\s*\(?\s*([A-Ia-i])\b(?!')")
_LABELLED = re.compile(r"\W*([A-I])\s*[).:]\s*(?=\S)")
_EXTRACTED = "abcde"  # a lone letter beyond these counts as no answer there


def prompt(row: Row) -> str:
    """The question as the authors write it: it lists its choices itself."""
    return pictured(row, bare(str(row.metadata["question"])))


def official(row: Row, response: str) -> Official:
    """The letters (or the number) of the answer are exactly those of the gold, in any order and case."""
    return _compared(row, _named(row, response))


def _compared(row: Row, named: Sequence[str]) -> Official:
    right = sorted(part.strip().lower() for part in gold(row).split(","))
    return Official(sorted(named) == right, ", ".join(named).upper() or None)


def _judge_steps(row: Row, response: str) -> JudgeSteps:
    """The judge says which letters were chosen; they must be exactly the gold's."""
    text = response.strip()
    if len(text) == 1:
        return _compared(row, _named(row, text))
    asked = filled("logicvista", question=bare(str(row.metadata["question"])), response=text)
    chosen = extracted((yield asked)) or ""
    if chosen.lower() == "none":
        return Official(False, None)
    if not _CHOSEN.fullmatch(chosen):
        return None
    return _compared(row, list(dict.fromkeys(re.findall(r"\w+", chosen.lower()))))


def _named(row: Row, response: str) -> list[str]:
    text = response.strip()
    if len(text) == 1 and not text.isnumeric():
        return [text.lower()] if text.lower() in _EXTRACTED else []
    answer = text if len(text) == 1 else extract(response).answer or ""
    if gold(row).strip().isdecimal():
        return _NUMBER.findall(answer)[-1:]
    if _TOGETHER.fullmatch(answer):
        return sorted(set(answer.lower()))
    letters = (
        _BRACKETED.findall(answer)
        or _LETTER.findall(_SPEAKER.sub("", answer))
        or _choice_in(row, answer)
        or _undeclared(row, text)
    )
    return list(dict.fromkeys(letter.lower() for letter in letters))


def _choice_in(row: Row, answer: str) -> list[str]:
    """The letter of the choice whose text the answer is."""
    return [LETTERS[i] for i, option in enumerate(_options(row)) if option == answer.strip(" .,").lower()]


def _options(row: Row) -> list[str]:
    return [option.strip(" .,").lower() for option in choices(row)]


def _undeclared(row: Row, text: str) -> list[str]:
    """Without a declared answer: the letter announced last, the label in front, or that of the one choice quoted."""
    if several := _SEVERAL.findall(text):
        return _LETTER.findall(several[-1])
    if announced := _ANNOUNCED.findall(text):
        return announced[-1:]
    if labelled := _LABELLED.match(text):
        return [labelled[1]]
    quoted = [LETTERS[i] for i, option in enumerate(_options(row)) if len(option) > 1 and option in text.lower()]
    return quoted if len(quoted) == 1 else []


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
    judge=JudgeRule(_judge_steps, (text_of("logicvista"),), "our own prompt for the authors' task, extraction"),
    categories=_categories,
)
