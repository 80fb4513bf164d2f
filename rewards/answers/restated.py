"""One value written twice: 48 (forty-eight), 11/4 (or 2.75), 0.2，即 20%, BC \\approx 8.66, exactly 5\\sqrt{3}."""

from __future__ import annotations

import re

_SAME = r"(?:or|i\.?e\.?|that is|namely|exactly|=|\\approx|即|也就是|或者?|约|soit|d\.?h\.?|c'est-à-dire)"
_IN_BRACKETS = re.compile(
    rf"^(?P<first>[^()]*[^()\s])\s+\(\s*(?:{_SAME}(?![A-Za-z])\s*,?)?\s*(?P<second>[^()]+)\)$", re.I
)
_MARKED = re.compile(
    rf"^(?P<first>[^()]*[^()\s])\s*\(\s*{_SAME}(?![A-Za-z])\s*,?\s*(?P<second>[^()]*(?:\([^()]*\)[^()]*)?)\)$", re.I
)
_BEHIND = re.compile(
    r"^(?P<first>[^,;]*[^,;\s])\s*[,;]\s*(?:i\.?e\.?|that is|namely|or exactly|exactly|即|也就是|soit|d\.?h\.?)"
    r"(?![A-Za-z])\s*,?\s*(?P<second>[^,;]+)$",
    re.I,
)
# What a bracket says about the rounding, and nothing about the value.
_ROUNDING = re.compile(
    r"\s*\(\s*(?:(?:rounded |correct |accurate )?to (?:the nearest|\w+) [A-Za-z.]+(?: [a-z]+){0,2}"
    r"|rounded|approx(?:imately)?\.?|(?:结果)?(?:保留|精确到)[^()]{1,12}|四舍五入)\s*\)$",
    re.I,
)


def without_rounding(text: str) -> str:
    """The text without a remark in brackets at its end on how it was rounded."""
    return _ROUNDING.sub("", text) if text.endswith(")") else text


def two_readings(text: str) -> tuple[str, str] | None:
    """The two texts of a value that may be written twice, or None."""
    found = (_MARKED.match(text) or _IN_BRACKETS.match(text)) if text.endswith(")") else _BEHIND.match(text)
    # "7 (since 3+4=7)" gives a reason.
    return (found["first"], found["second"]) if found and "=" not in found["second"] else None


def is_marked(text: str) -> bool:
    """Whether a word says that the second reading restates the first one."""
    return bool(_MARKED.match(text) or _BEHIND.match(text))
