r"""LaTeX environments around values: aligned lines as one text, cases as a system of equations or as pieces."""

from __future__ import annotations

import re

_BEGIN = re.compile(r"\\begin\s*\{([A-Za-z]+\*?)\}\s*(?:\{[lcr|@ ]*\})?")
_NAMES = """aligned align align* alignedat gathered gather gather* split equation equation* array cases dcases"""
_LINES = frozenset(_NAMES.split())
_RELATION = re.compile(r"^(?:=|<|>|\\(?:le|ge|ne|approx)(?![A-Za-z]))")
_CONDITION = re.compile(r"^(?:if|when|for|where|当|若)(?![A-Za-z])\s*", re.IGNORECASE)
_NUMBER_OF_LINE = re.compile(r"\\(?:tag\s*\{[^{}]*\}|notag|nonumber|hline)")


def lines_of(text: str) -> list[list[str]] | None:
    """The cells of each line of an environment that is the whole text, or None if it is none, or a matrix.

    A line that begins with a relation goes on with the line before it.
    """
    text = text.removeprefix("\\{").strip()
    begin = _BEGIN.match(text)
    if not begin or begin[1] not in _LINES:
        return None
    end = f"\\end{{{begin[1]}}}"
    body = text[begin.end() :].rstrip(" .")
    if not body.endswith(end) or "\\begin" in body:
        return None
    body = _NUMBER_OF_LINE.sub("", body.removesuffix(end))
    lines: list[list[str]] = []
    for row in re.split(r"\\\\(?:\[[^\[\]]*\])?", body):
        cells = [cell.strip(" ,;.") for cell in row.split("&")]
        whole = "".join(cells)
        if not whole:
            continue
        if lines and _RELATION.match(whole):
            lines[-1].append(whole)
        else:
            lines.append([cell for cell in cells if cell])
    return lines or None


def is_one_value(text: str) -> bool:
    """Whether the environment is there for the layout alone: a matrix is a value of its own."""
    return "array" not in text or text.startswith("\\{") or text.count("\\\\") == 0


def pieces_of(lines: list[list[str]]) -> list[tuple[str, str]] | None:
    """(value, condition) of each line of a piecewise function, or None if the lines are no such thing."""
    if len(lines) < 2 or any(len(line) != 2 or "=" in line[0] for line in lines):
        return None
    return [(value, _CONDITION.sub("", condition)) for value, condition in lines]


def as_text(lines: list[list[str]]) -> str:
    """The lines as one text: relations that go on are a chain, several lines are a list."""
    return ", ".join(" ".join(line) for line in lines)
