"""Splits a cleaned text outside its brackets and looks into brackets that enclose the whole of it."""

from __future__ import annotations

import re


def split_top(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """(pieces, separators) outside all brackets; a bracket may close with another kind (half-open intervals)."""
    pieces, found, level, start, position = [], [], 0, 0, 0
    for match in separator.finditer(text):
        for char in text[position : match.start()]:
            level += (char in "([{") - (char in ")]}")
        position = match.start()
        if level == 0 and not text.endswith("\\", 0, position):
            pieces.append(text[start:position].strip())
            found.append(match.group())
            start = position = match.end()
    if not found:
        return [text], []
    pieces.append(text[start:].strip())
    return pieces, found


def bracketed(text: str) -> str | None:
    """Content of a text that is one bracket from end to end, else None."""
    if text.startswith("\\{") and text.endswith("\\}"):
        return text[2:-2].rstrip("\\")
    if len(text) < 3 or text[0] not in "([" or text[-1] not in ")]":
        return None
    level = 0
    for position, char in enumerate(text):
        level += (char in "([{") - (char in ")]}")
        if level == 0 and position < len(text) - 1:
            return None
    return text[1:-1]


def without_brackets(text: str, separator: re.Pattern[str]) -> str:
    """Take off pairs of ( ) or [ ] that enclose one value; a text with a separator at its top keeps its own pair."""
    while text[:1] + text[-1:] in ("()", "[]"):
        inner = bracketed(text)
        if inner is None or not inner.strip() or len(split_top(inner, separator)[0]) > 1:
            break
        text = inner.strip()
    return text
