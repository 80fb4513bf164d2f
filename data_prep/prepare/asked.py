"""What a row asks, in a form in which the same question is the same text, for whatever compares rows."""

from __future__ import annotations

import re
import unicodedata

from data_prep.schema import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Row

# Signs that carry meaning in a question; other punctuation, dollar signs and spaces are how it is written.
_NOT_MEANING = re.compile(r"[^\w+\-*/^=<>%°√π]+")


def normalised(row: Row) -> str:
    """All that a row holds before the answer, its choices too, without spelling of spaces, dollars and case."""
    return _normalised(row.conversation, *(row.choices or ()))


def questions_of(row: Row) -> tuple[str, ...]:
    """What may be asked elsewhere as well: all questions in one, the last one with its choices, and each earlier one.

    A system message and the answers of earlier turns are left out: the same question under another persona is the same
    question. A row of one turn has one text.
    """
    earlier = [turn.text for turn in row.earlier_turns if turn.role == "user"]
    last = (row.problem, *(row.choices or ()))
    texts = (_normalised(*earlier, *last), _normalised(*last), *map(_normalised, earlier))
    return tuple(text for text in dict.fromkeys(texts) if text) or ("",)


def _normalised(*texts: str) -> str:
    text = " ".join(texts).replace(IMAGE_PLACEHOLDER, " ").replace(VIDEO_PLACEHOLDER, " ")
    return " ".join(_NOT_MEANING.sub(" ", unicodedata.normalize("NFKC", text).casefold()).split())
