"""Golds as data sets write them: values on lines, numbered parts, remarks, alternatives in brackets, a conclusion."""

from __future__ import annotations

import re

from rewards.answers.brackets import split_top
from rewards.answers.math import read
from rewards.answers.notation import clean

_MAX_PARTS = 24
_MAX_PART_CHARS = 80
_WIDE = str.maketrans("（）；，", "();,")
_REMARK = re.compile(
    r"\s*\((?:[^()]*\b(?:not unique|choose one|any one|acceptable)\b[^()]*|[^()]*不唯一[^()]*)\)\s*\.?\s*$",
    re.IGNORECASE,
)
_ALTERNATIVE = re.compile(
    r"^(?P<first>[^()]+?|.+\))\s*\(\s*(?:or|或者?)\s*(?:fill in\s*|填\s*)?(?P<second>.+)\)\s*\.?\s*$", re.DOTALL
)
_OR = re.compile(r"\bor\b|或")
_PART = re.compile(r"\((\d{1,2})\)")
_IN_DOLLARS = re.compile(r"\$\$[^$]+\$\$|\$[^$]+\$")
_NUMBERS = re.compile(r"[+-]?\d+(?:\.\d+)?(?: +[+-]?\d+(?:\.\d+)?)+")
# 1.3.4. names the statements 1, 3 and 4; two numbers with a stop between them are a decimal.
_ITEMS = re.compile(r"\d(?:\.\s*\d){2,8}\.?")
_CONCLUSION = re.compile(
    r"(?:\b(?:therefore|thus|hence|so)\b|∴|所以|因此|故)[\s,:，]*(?:(?:it is|fill in|填|为)\s*:?\s*)?", re.IGNORECASE
)
# A line that begins or ends with a sign belongs to its neighbour.
_GOES_ON = re.compile(r"^\s*(?:[=<>*/]|[+-]\s|\\(?:le|ge|approx)q?(?![A-Za-z]))|[=<>*/+-]\s*$")
_COMMA = re.compile("[,;]")


def gold_readings(gold: str) -> tuple[str, ...]:
    """The texts of which each alone says what a gold says; a gold that is read as it stands comes first as it is.

    Values in a fixed order (on lines, in numbered parts) become one tuple.
    """
    plain = gold.translate(_WIDE)
    core = _REMARK.sub("", plain) if _REMARK.search(plain) else gold
    if core != gold and len(choices := _OR.split(core)) > 1 and _all_read(choices):
        return tuple(choices)
    both = _ALTERNATIVE.match(core)
    if both and _all_read(both.groups()):
        return both.groups()
    in_order = ordered_parts(core)
    if in_order and in_order[0] in "(\\" and not _NUMBERS.fullmatch(core.strip()):
        return (in_order,)
    if read(clean(core)) is not None:
        # 169 555 671 may be three numbers; no number of a list begins with a zero as 000 does.
        return (core, in_order) if in_order and " 0" not in core else (core,)
    return (_concluded(core) or in_order or core,)


def ordered_parts(text: str) -> str | None:
    """The values of a text on lines, in numbered parts or side by side as "(a, b)"; None if it is not so made.

    Where one of them is a word, they come without the brackets. The numbers of statements (1.3.4.) have no order.
    """
    text = text.translate(_WIDE).strip()
    if _ITEMS.fullmatch(text):
        return "\\{" + ", ".join(re.findall(r"\d", text)) + "\\}"
    if "\\begin" in text or "\\\\" in text:
        return None
    parts = _numbered(text) or _side_by_side(text)
    if not 2 <= len(parts) <= _MAX_PARTS or any(len(part) > _MAX_PART_CHARS or not clean(part) for part in parts):
        return None
    parts = [piece for part in parts for piece in split_top(clean(part), _COMMA)[0] if piece]
    joined = ", ".join(parts)
    return f"({joined})" if _all_read(parts) else joined


def _numbered(text: str) -> list[str]:
    """The parts of (1)... (2)..., which count up from 1."""
    found = list(_PART.finditer(text))
    if not text.startswith("(1)") or [int(mark[1]) for mark in found] != list(range(1, len(found) + 1)):
        return []
    ends = [mark.start() for mark in found[1:]] + [len(text)]
    parts = [text[mark.end() : end].strip(" \n;,.") for mark, end in zip(found, ends, strict=True)]
    return [piece for part in parts for piece in (_side_by_side(part) or [part])]


def _side_by_side(text: str) -> list[str]:
    """Values on lines, in dollars with only blanks between them, or plain numbers between blanks."""
    if "\n" in text:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        return [] if any(line.count("$") % 2 or _GOES_ON.search(line) for line in lines) else lines
    if text.startswith("$") and not _IN_DOLLARS.sub("", text).strip():
        return _IN_DOLLARS.findall(text)
    return text.split() if _NUMBERS.fullmatch(text) else []


def _concluded(text: str) -> str | None:
    """What a worked gold concludes ("... Therefore, the value is 12."), if that is a value."""
    if len(text) < 30:
        return None
    ends = [found.end() for found in _CONCLUSION.finditer(text)]
    rest = text[ends[-1] :].strip() if ends else ""
    return rest if rest and read(clean(rest)) is not None else None


def _all_read(texts: list[str] | tuple[str, ...]) -> bool:
    return all(text.strip() and read(clean(text)) is not None for text in texts)
