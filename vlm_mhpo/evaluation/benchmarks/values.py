"""Numbers in short answers, read by the grammar of our verifiers: no text is ever evaluated as code."""

from __future__ import annotations

import math
import re

from rewards.answers import (
    Node,
    NotAnExpression,
    TooLarge,
    Undecided,
    check_size,
    clean,
    constant_value,
    parse_expression,
)

# Signs that neither latex2sympy nor sympy's parser of LaTeX reads.
_UNREAD_SIGNS = re.compile("[π√−·×÷¼½¾∶]")
_MIXED = re.compile(r"(\d)\s*(?=\\[dt]?frac)")
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|[+-]?\.\d+")


def tree(text: str) -> Node | None:
    """The expression that a short text is, or None."""
    try:
        check_size(text)
        return parse_expression(clean(text))
    except (NotAnExpression, TooLarge, RecursionError):
        return None


def constant(text: str) -> float | None:
    """The real value of an expression without variables, such as `\\frac{1}{2}`, or None."""
    node = tree(text)
    if node is None:
        return None
    try:
        value = constant_value(node)
        return None if value is None else float(value)
    except (Undecided, TooLarge, OverflowError, RecursionError):
        return None


def as_sympy_reads(text: str) -> str | None:
    """A text as the authors' parsers take it: 1\\frac{1}{2} is a product; None where it holds signs that they lack."""
    return None if _UNREAD_SIGNS.search(text) else _MIXED.sub(r"\1\\cdot ", text)


def plain_float(text: str) -> float | None:
    """What Python's float() makes of a text, if that is finite, else None."""
    try:
        value = float(text)
    except (ValueError, OverflowError):
        return None
    return value if math.isfinite(value) else None


def numbers(text: str) -> list[str]:
    """Decimal numbers in a text, in order, without thousands commas."""
    return [number.replace(",", "") for number in _NUMBER.findall(text)]
