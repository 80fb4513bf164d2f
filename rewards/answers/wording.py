"""What surrounds an answer in words: lead-ins, labels and reasons that are taken off before it is read."""

from __future__ import annotations

import re

_LEAD_IN = re.compile(
    r"^(?:so|thus|hence|therefore|then|ans(?:wer)?|final answer|solution|result|we get|approximately|about|roughly"
    r"|approx\.?|\\therefore|\\approx|=|:|,)(?![A-Za-z(])\s*[,:]?\s*",
    re.IGNORECASE,
)
_STATEMENT = re.compile(r"^[A-Za-z][A-Za-z' ,\\]{0,120}?\s(?:is|are|equals|equal to|be)\b\s*:?\s*", re.IGNORECASE)
_HEDGE = re.compile(
    r"n't\b|\b(?:not|never|either|neither|or|less|more|least|most|than|between|might|may|could|maybe|perhaps|cannot)\b",
    re.IGNORECASE,
)
_INTRO = re.compile(
    r"^(?:so|thus|hence|therefore)?[,:\s]*(?:(?:the|my)\s+)?(?:(?:correct|right|final|best)\s+)?"
    r"(?:answer|option|choice)s?\b(?:\s+(?:option|choice))?(?:\s+(?:is|are|would be|should be|must be))?\s*:?\s*"
    r"(?:(?:the\s+)?(?:option|choice|letter)\s*:?\s+)?"
    r"|^(?:so|thus|hence|therefore)?[,:\s]*(?:it(?:\s+is|'s)|i\s+(?:choose|pick|select))\s+(?:(?:option|choice)\s+)?",
    re.IGNORECASE,
)
_BECAUSE = re.compile(r"[,;]?\s+(?:because|since)\s.*$", re.DOTALL | re.IGNORECASE)


def look_through(text: str) -> str:
    """Take off words that only introduce an answer ("So", "The area is"), never ones that qualify it."""
    for _ in range(4):
        shorter = _LEAD_IN.sub("", text, count=1).strip()
        statement = _STATEMENT.match(shorter)
        if statement and not _HEDGE.search(statement.group()):
            shorter = shorter[statement.end() :].strip()
        if shorter == text or not shorter:
            break
        text = shorter
    return text


def without_intro(text: str) -> str:
    """The text of a choice without "the answer is", "I choose option" and the like in front."""
    return _INTRO.sub("", text, count=1)


def without_reason(text: str) -> str:
    """The text without a "because ..." at its end."""
    return _BECAUSE.sub("", text)
