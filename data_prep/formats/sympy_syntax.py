r"""Answers written in sympy's syntax (`27/5`, `5*sqrt(3)`) as LaTeX, by a small grammar: nothing is evaluated.

answer  = sum | "(" sum ("," sum)+ ")"
sum     = ["-"] product (("+" | "-") product)*
product = power (("*" | "/") power)*
power   = atom ["**" power]
atom    = number | "pi" | "I" | function "(" sum ")" | "(" sum ")"
"""

import re
from dataclasses import dataclass
from itertools import accumulate

from data_prep.schema import DataError

# formalgeo7k has golds of several hundred characters.
_MAX_CHARACTERS = 2000
# Brackets inside brackets, and powers; they bound the recursion.
_MAX_DEPTH = 60
_TOKEN = re.compile(r"\s*([0-9]+(?:\.[0-9]+)?|[a-z]+|I|\*\*|[-+*/(),])")
_FUNCTIONS = {name: rf"\{name}" for name in ("sin", "cos", "tan", "cot", "sec", "csc")}
_FUNCTIONS |= {"asin": r"\arcsin", "acos": r"\arccos", "atan": r"\arctan"}


@dataclass(frozen=True, slots=True)
class _Part:
    """LaTeX with what a neighbour must know: `binds` is sum, product, power or atom."""

    latex: str
    binds: str


def to_latex(expression: str) -> str:
    r"""LaTeX of an exact answer in sympy's syntax, spelled as sympy spells it: `5*sqrt(3)` -> `5 \sqrt{3}`.

    Raises:
        DataError: too long or too deep, or not of the grammar above.
    """
    tokens = _tokens(expression)
    latex = _tuple(tokens) if _is_tuple(tokens) else _sum(tokens).latex
    if tokens:
        raise DataError(f"{_short(expression)}: unexpected {tokens[-1]!r}")
    return latex


def _short(expression: str) -> str:
    return repr(expression if len(expression) <= 80 else f"{expression[:80]}...")


def _depths(tokens: list[str]) -> list[int]:
    """How many brackets are open before each token, in the order in which they are taken."""
    opened = (1 if token == "(" else -1 if token == ")" else 0 for token in reversed(tokens))
    return [0, *accumulate(opened)]


def _is_tuple(tokens: list[str]) -> bool:
    return tokens[-1:] == ["("] and (",", 1) in zip(reversed(tokens), _depths(tokens), strict=False)


def _tuple(tokens: list[str]) -> str:
    tokens.pop()
    parts = [_sum(tokens).latex]
    while _take(tokens, ","):
        parts.append(_sum(tokens).latex)
    if not _take(tokens, ")"):
        raise DataError(f"a bracket is left open after {parts[-1]!r}")
    return rf"\left({', '.join(parts)}\right)"


def _tokens(expression: str) -> list[str]:
    """The tokens in reverse order, so that the next one is popped from the end."""
    if len(expression) > _MAX_CHARACTERS:
        raise DataError(f"answer of {len(expression)} characters is longer than {_MAX_CHARACTERS}")
    expression, tokens, at = expression.rstrip(), [], 0
    while at < len(expression):
        match = _TOKEN.match(expression, at)
        if match is None:
            raise DataError(f"{_short(expression)}: {expression[at]!r} is not part of an exact answer")
        tokens.append(match[1])
        at = match.end()
    tokens.reverse()
    if max(max(_depths(tokens)), tokens.count("**")) > _MAX_DEPTH:
        raise DataError(f"{_short(expression)} has more than {_MAX_DEPTH} brackets inside each other, or powers")
    return tokens


def _take(tokens: list[str], *wanted: str) -> str | None:
    return tokens.pop() if tokens and tokens[-1] in wanted else None


def _sum(tokens: list[str]) -> _Part:
    negative = _take(tokens, "-")
    part = _product(tokens)
    if negative:
        # sympy writes -72 but "- \frac{1}{2}".
        gap = "" if re.fullmatch(r"[\d.]+", part.latex) else " "
        part = _Part(f"-{gap}{_wrapped(part, 'sum')}", "sum")
    while sign := _take(tokens, "+", "-"):
        part = _Part(f"{part.latex} {sign} {_wrapped(_product(tokens), 'sum')}", "sum")
    return part


def _product(tokens: list[str]) -> _Part:
    above, below = [_power(tokens)], []
    while sign := _take(tokens, "*", "/"):
        (above if sign == "*" else below).append(_power(tokens))
    if below:
        return _Part(rf"\frac{{{_juxtaposed(above)}}}{{{_juxtaposed(below)}}}", "product")
    return above[0] if len(above) == 1 else _Part(_juxtaposed(above), "product")


def _juxtaposed(parts: list[_Part]) -> str:
    if len(parts) == 1:
        return parts[0].latex
    text = _wrapped(parts[0], "sum")
    for part in parts[1:]:
        factor = _wrapped(part, "sum")
        text += (r" \cdot " if factor[0].isdigit() else " ") + factor
    return text


def _power(tokens: list[str]) -> _Part:
    base = _atom(tokens)
    if not _take(tokens, "**"):
        return base
    return _Part(f"{_wrapped(base, 'sum', 'product', 'power')}^{{{_power(tokens).latex}}}", "power")


def _atom(tokens: list[str]) -> _Part:
    token = tokens.pop() if tokens else ""
    if token[:1].isdigit():
        return _Part(token, "atom")
    if token == "pi":
        return _Part(r"\pi", "atom")
    if token == "I":
        return _Part("i", "atom")
    if token == "(" or (token in ("sqrt", *_FUNCTIONS) and _take(tokens, "(")):
        inner = _sum(tokens)
        if not _take(tokens, ")"):
            raise DataError(f"a bracket is left open after {inner.latex!r}")
        if token == "(":
            return inner
        if token == "sqrt":
            return _Part(rf"\sqrt{{{inner.latex}}}", "atom")
        return _Part(rf"{_FUNCTIONS[token]}{{\left({inner.latex} \right)}}", "power")
    raise DataError(f"expected a number, pi, I, sqrt or a bracket, found {token or 'the end'!r}")


def _wrapped(part: _Part, *looser: str) -> str:
    return rf"\left({part.latex}\right)" if part.binds in looser else part.latex
