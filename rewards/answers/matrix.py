"""Matrices in LaTeX or nested brackets, and determinants as the number that they stand for."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.answers.brackets import bracketed, split_top
from rewards.answers.grammar import Node, NotAnExpression, parse_expression
from rewards.answers.number import Quantity, parse_quantity
from rewards.workers.limits import TooLarge

MAX_ENTRIES = 64
MAX_ORDER = 4
_COMMA, _SEMICOLON = re.compile(","), re.compile(";")
_ENVIRONMENT = re.compile(
    r"^(?P<before>[^&]*?)(?P<open>[(\[|]?)\s*\\begin\s*\{(?P<name>[pbvBV]?matrix|smallmatrix|array)\}"
    r"(?:\s*\{[lcr| ]*\})?(?P<body>.*)\\end\s*\{(?P=name)\}\s*(?P<close>[)\]|]?)$",
    re.DOTALL,
)
_DETERMINANT = re.compile(r"^(?:\\det|det)(?![A-Za-z])\s*")

Rows = tuple[tuple[Quantity, ...], ...]


def read_matrix(text: str) -> Rows | Quantity | None:
    """Rows of a matrix, or the value of a determinant; None if the text is neither.

    Raises:
        NotAnExpression: it looks like a matrix but has ragged rows, unreadable entries or an unknown factor.
        TooLarge: too many entries.
    """
    named = _DETERMINANT.match(text)
    core = text[named.end() :] if named else text
    inner = bracketed(core) if named else None
    while inner is not None and "\\begin" in inner and core[0] == "(":
        core, inner = inner.strip(), bracketed(inner.strip())
    found = _ENVIRONMENT.match(core)
    if found is None:
        rows = _nested(core)
        if named and rows is None:
            raise NotAnExpression("a determinant of something that is no matrix")
        return _determinant(rows) if named and rows else rows
    fences, before = found["open"] + found["close"], found["before"].strip()
    bars = fences == "||" or found["name"] == "vmatrix"
    if fences not in ("", "()", "[]", "||") or found["name"] == "Vmatrix" or (fences and found["name"] == "vmatrix"):
        raise NotAnExpression("brackets that do not belong to a matrix")
    lines = [line for line in found["body"].replace("\\hline", " ").split("\\\\") if line.strip()]
    rows = _rows([line.split("&") for line in lines])
    value = _determinant(rows) if named or bars else rows
    if not before:
        return value
    factor = _factor(before)
    if isinstance(value, Quantity):
        return Quantity(("mul", factor, value.node))
    return tuple(tuple(Quantity(("mul", factor, entry.node)) for entry in row) for row in value)


def _factor(text: str) -> Node:
    """The number in front of a matrix."""
    text = text.rstrip("* ")
    return parse_expression(text + "1" if text in ("-", "+") else text)


def _nested(text: str) -> Rows | None:
    """[[a, b], [c, d]] or [a, b; c, d]; a single row or a single value is no matrix."""
    inner = bracketed(text) if text[:1] == "[" and text[-1:] == "]" else None
    if inner is None:
        return None
    if ";" in inner and "," in inner:
        lines = split_top(inner, _SEMICOLON)[0]
        return _rows([split_top(line, _COMMA)[0] for line in lines]) if len(lines) > 1 else None
    rows = split_top(inner, _COMMA)[0]
    contents = [bracketed(row) if row[:1] + row[-1:] == "[]" else None for row in rows]
    if len(rows) < 2 or any(content is None for content in contents):
        return None
    return _rows([split_top(content, _COMMA)[0] for content in contents if content is not None])


def _rows(cells: list[list[str]]) -> Rows:
    if not cells or len({len(row) for row in cells}) != 1:
        raise NotAnExpression("a matrix with rows of different lengths")
    if len(cells) * len(cells[0]) > MAX_ENTRIES:
        raise TooLarge(f"a matrix of more than {MAX_ENTRIES} entries")
    return tuple(tuple(parse_quantity(cell.strip()) for cell in row) for row in cells)


def _determinant(rows: Rows) -> Quantity:
    if len(rows) != len(rows[0]) or any(entry.unit or entry.percent for row in rows for entry in row):
        raise NotAnExpression("a determinant needs as many rows as columns, and plain numbers")
    if len(rows) > MAX_ORDER:
        raise TooLarge(f"a determinant of more than {MAX_ORDER} rows")
    return Quantity(_expanded([[entry.node for entry in row] for row in rows]))


def _expanded(rows: list[list[Node]]) -> Node:
    """Expansion along the first row, unevaluated."""
    if len(rows) == 1:
        return rows[0][0]
    total: Node = ("num", Fraction(0))
    for column, entry in enumerate(rows[0]):
        minor = _expanded([row[:column] + row[column + 1 :] for row in rows[1:]])
        term = ("mul", entry, minor)
        total = ("add", total, ("neg", term) if column % 2 else term)
    return total
