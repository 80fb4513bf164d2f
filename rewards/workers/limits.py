"""Static limits on untrusted answers: what is refused unread, and what a worker may only try briefly."""

from __future__ import annotations

import re

MAX_ANSWER_CHARS = 2000
MAX_WORKER_CHARS = 800
MAX_DEPTH = 40
MAX_TOKENS = 800
MAX_BITS = 20_000
MAX_TERMS = 300
MAX_FACTORIAL = 400
MAX_POWER = 20_000

_BRACKET = re.compile(r"[(){}\[\]]")
_DIGIT_RUN = re.compile(r"\d{40}")
_EXPLOSIVE = re.compile(
    r"\^\s*\{?\s*\(?-?\d{4}|\*\*\s*\(?-?\d{4}|\)\s*\^\s*\{?\s*\d{2}|\^[^+\-=,]{0,40}\^|\*\*[^+\-=,]{0,40}\*\*"
    r"|!\s*!|!\s*\)\s*!|\\binom|\\(?:sum|prod|int|lim|bigcup|bigcap)(?![A-Za-z])|\d[eE]\+?\d{3}|\d{5}\s*!"
)
# Sums and products of over 9999 terms, and whole-number functions of seven digits or of towers.
_HUGE_RANGE = re.compile(r"\\(?:sum|prod).{0,80}\^\s*\{?\s*(?:\d{5}|\d+\s*\^)")
_HUGE_WHOLE = re.compile(r"\\(?:choose|gcd|lcm|[bp]?mod)(?![A-Za-z])")
_HUGE_NUMBER = re.compile(r"\d{7}|\d\s*\^\s*\{?\s*\d+\s*\^")
# A tower inside a sum, product, integral or limit; e^{x^2} is none.
_LOOP = re.compile(r"\\(?:sum|prod|int|lim)(?![A-Za-z])")
_TOWER = re.compile(r"(?:(?<![A-Za-z])[A-Za-df-z]|\d|\))\s*\^\s*\{?\s*[^{}+\-=,^]{0,10}\^")


class TooLarge(ValueError):
    """The text or a value in it is larger than we are willing to evaluate."""


def nesting(text: str) -> int:
    """Deepest nesting of brackets and braces, whatever their kind."""
    depth = deepest = 0
    for bracket in _BRACKET.findall(text):
        if bracket in ")}]":
            depth -= 1
        else:
            depth += 1
            if depth > deepest:
                deepest = depth
    return deepest


def check_size(text: str) -> None:
    """Refuse answers that are too long or too deep to be honest.

    Raises:
        TooLarge: says which limit was passed.
    """
    if len(text) > MAX_ANSWER_CHARS:
        raise TooLarge(f"the answer has {len(text)} characters, the limit is {MAX_ANSWER_CHARS}")
    if nesting(text) > MAX_DEPTH:
        raise TooLarge(f"the answer is nested more than {MAX_DEPTH} deep")


def worker_time_share(text: str) -> float:
    """Share of the time limit a worker gets for this text: 1, or less if it may explode.

    Raises:
        TooLarge: the text is longer than anything a worker is given, or names a loop that would not end.
    """
    if len(text) > MAX_WORKER_CHARS:
        raise TooLarge(f"the answer has {len(text)} characters, too long for symbolic comparison")
    huge = _HUGE_RANGE.search(text) or (_HUGE_WHOLE.search(text) and _HUGE_NUMBER.search(text))
    if huge or (_LOOP.search(text) and _TOWER.search(text)):
        raise TooLarge("a sum, product or whole-number function over too large a range")
    return 0.5 if _EXPLOSIVE.search(text) or _DIGIT_RUN.search(text) or nesting(text) > 12 else 1.0
