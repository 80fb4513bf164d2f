"""A second look at what a symbolic engine calls equal: sixty digits in place of its fifteen.

math-verify compares rounded doubles, for which a sum of twenty terms of a series is its limit.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

_DIGITS, _AGREEING = 60, 45
# Values for free symbols: no special points of any function, positive, so that roots and logarithms stay real.
_POINTS = ((7, 5), (13, 11), (19, 23))


def agree_closely(gold: Any, answer: Any) -> bool:
    """Whether two parsed answers that the engine calls equal still agree at high precision.

    Numbers, and functions at fixed points, are evaluated to 60 digits and must share 45. Sets, tuples, matrices and
    relations are compared part by part, sets in any order. What cannot be evaluated stays equal.
    """
    import sympy

    if not (isinstance(gold, sympy.Basic | sympy.MatrixBase) and isinstance(answer, sympy.Basic | sympy.MatrixBase)):
        return True
    if gold == answer:
        return True
    left, right = _parts(gold), _parts(answer)
    if left is not None and right is not None and len(left) == len(right):
        if isinstance(gold, sympy.FiniteSet) or isinstance(answer, sympy.FiniteSet):
            return all(any(agree_closely(a, b) for b in right) for a in left)
        return all(map(agree_closely, left, right))
    if not (isinstance(gold, sympy.Expr) and isinstance(answer, sympy.Expr)):
        return True
    names = sorted(gold.free_symbols | answer.free_symbols, key=str)
    points = [{name: sympy.Rational(a + place, b) for place, name in enumerate(names)} for a, b in _POINTS]
    return all(_close(gold.subs(point), answer.subs(point)) for point in (points if names else [{}]))


def _parts(value: Any) -> list[Any] | None:
    import sympy

    if isinstance(value, sympy.FiniteSet | sympy.Tuple):
        return list(value.args)
    if isinstance(value, sympy.MatrixBase):
        return list(value)
    return None


def _close(gold: Any, answer: Any) -> bool:
    left, right = map(_evaluated, (gold, answer))
    if left is None or right is None or left == right:
        return True
    size = max(abs(left), abs(right))
    return bool(abs(left - right) <= size * 10**-_AGREEING)


def _evaluated(value: Any) -> Any:
    """A number of sixty digits, or None; a decimal literal stands for the fraction it writes."""
    import sympy

    literals: Iterable[Any] = value.atoms(sympy.Float)
    value = value.xreplace({literal: sympy.Rational(str(literal)) for literal in literals}).doit()
    number = value.evalf(_DIGITS)
    return number if number.is_number and number.is_finite and not number.atoms(sympy.Integral, sympy.Sum) else None
