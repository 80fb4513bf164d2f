"""Splits a cleaned text outside its brackets and looks into brackets that enclose the whole of it."""

from __future__ import annotations

import re


def split_top(text: str, separator: re.Pattern[str]) -> tuple[list[str], list[str]]:
    """(pieces, separators) outside all brackets; a bracket may close with another kind (half-open intervals)."""
    if not separator.search(text):
        return [text], []
    pieces, found, level, start, position = [], [], 0, 0, 0
    while position < len(text):
        char = text[position]
        match = separator.match(text, position) if level == 0 else None
        if match and not (position and text[position - 1] == "\\"):
            pieces.append(text[start:position].strip())
            found.append(match.group())
            start = position = match.end()
            continue
        level += (char in "([{") - (char in ")]}")
        position += 1
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
