"""What benchmarks share: parts of a row, questions with their images and choices, and our verifier as a judge."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from data_prep import IMAGE_PLACEHOLDER, Row
from rewards import verify
from vlm_mhpo.evaluation.benchmarks.types import Official

_MAX_SHOWN = 200
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BOXED = "\nPlease reason step by step, and put your final answer within \\boxed{}."
JUDGE_REPLACED = "a language model extracts and judges the answer there; our rule-based verifier does both here"


def question(row: Row) -> str:
    """The question as the benchmark writes it, without our own list of choices; it may hold the placeholders."""
    return str(row.metadata.get("stem", row.problem))


def choices(row: Row) -> tuple[str, ...]:
    """The benchmark's own choices, also where the reader wrote them into the problem; () for a free-form question."""
    listed = row.metadata.get("choices", row.choices)
    return tuple(map(str, listed)) if isinstance(listed, tuple) else ()


def gold(row: Row) -> str:
    """The benchmark's own gold: a letter or a choice's text, as its authors write it."""
    return str(row.metadata.get("answer", row.answer))


def lettered(options: Sequence[str]) -> str:
    """Choices one a line, each behind its letter in brackets."""
    return "\n".join(f"({LETTERS[i]}) {option}" for i, option in enumerate(options))


def pictured(row: Row, text: str) -> str:
    """`text` with the row's placeholders: those it has, else all in front."""
    return text if IMAGE_PLACEHOLDER in text else IMAGE_PLACEHOLDER * len(row.images) + text


def bare(text: str) -> str:
    """A text without placeholders, and nothing else taken off: the authors keep every line end."""
    return text.replace(IMAGE_PLACEHOLDER, "")


def by_verifier(row: Row, response: str) -> Official:
    """The verdict of our own verifier, where the authors ask a language model."""
    score = verify(
        response, row.gold, kind=row.kind, choices=row.choices if row.kind == "choice" else None,
        precision=row.precision, unit=row.unit,
    )  # fmt: skip
    return Official(score.correct, score.extracted)


def verdict(correct: bool, extracted: str | None) -> Official:
    """A verdict with what was taken from the response, or its start where that was most of the response."""
    return Official(correct, extracted[:_MAX_SHOWN] if extracted else None)


def axes(*names: str, **renamed: str) -> Callable[[Row], dict[str, str]]:
    """Categories from metadata columns; `axis=column` where an axis has another name."""
    columns = {name: name for name in names} | renamed

    def categories(row: Row) -> dict[str, str]:
        return {axis: str(row.metadata[name]) for axis, name in columns.items() if row.metadata.get(name) is not None}

    return categories
