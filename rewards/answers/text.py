"""Text answers: equal as whole strings once case, articles, spacing and a final full stop are set aside."""

from __future__ import annotations

import re

from rewards.answers.notation import clean

_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\S)")
_DEGREE_SIGN = re.compile(r"\s*°\s*")
_BEARING = re.compile(r"^(n|s|north|south)\s?(\d{1,2}(?:\.\d+)?)\s?(?:°|degrees?)?\s?(e|w|east|west)$")
_QUOTES = "\"'`"


def normal_text(text: str) -> str:
    """Comparable form of a text; may be empty."""
    text = clean(text).casefold().strip(_QUOTES).strip()
    text = re.sub(r"[{}]|\\(?=[a-z])", "", text)
    text = re.sub(r"\s+", " ", _ARTICLE.sub("", text) or text).rstrip(".!").strip()
    bearing = _BEARING.match(text)
    if bearing:
        return f"{bearing[1][0]} {bearing[2]}° {bearing[3][0]}"
    return _DEGREE_SIGN.sub("° ", text).strip()


def same_text(gold: str, answer: str) -> bool:
    """True if both texts have the same non-empty comparable form."""
    wanted = normal_text(gold)
    return bool(wanted) and wanted == normal_text(answer)
