"""Compares two expression trees: exactly where that is possible, else numerically to machine precision."""

from __future__ import annotations

import cmath
import math
import zlib
from fractions import Fraction

from rewards.answers import exact
from rewards.answers.exact import Ratio
from rewards.answers.grammar import Node
from rewards.workers.limits import MAX_FACTORIAL, TooLarge

_CONSTANTS = {"pi": math.pi, "e": math.e, "i": 1j}
_RELATIVE = 1e-12
_SAMPLES = 6
_FN = {
    "sin": cmath.sin, "cos": cmath.cos, "tan": cmath.tan, "exp": cmath.exp, "ln": cmath.log, "log": cmath.log,
    "sinh": cmath.sinh, "cosh": cmath.cosh, "tanh": cmath.tanh, "arcsin": cmath.asin, "arccos": cmath.acos,
    "arctan": cmath.atan, "asin": cmath.asin, "acos": cmath.acos, "atan": cmath.atan, "lg": cmath.log10,
}  # fmt: skip
_RECIPROCAL = {"cot": cmath.tan, "sec": cmath.cos, "csc": cmath.sin}


class Undecided(ValueError):
    """Neither exact nor numeric comparison gives a safe answer."""


class Undefined(Undecided):
    """The expression has no value: it divides by zero or leaves a function's domain."""


def to_ratio(node: Node) -> Ratio | None:
    """Exact value of a tree, or None where a part has none (functions, roots of sums).

    Raises:
        TooLarge: a value would pass the limits of guard.py.
        ZeroDivisionError: the expression divides by zero.
    """
    kind = node[0]
    if kind == "num":
        return exact.constant(node[1])
    if kind == "sym":
        return exact.atom(node[1])
    if kind in ("fn", "log"):
        return None
    if kind == "pow":
        return _exact_power(node)
    if kind == "root":
        return _exact_root(node)
    parts = [to_ratio(part) for part in node[1:]]
    if any(part is None for part in parts):
        return None
    if kind == "neg":
        return exact.negate(parts[0])
    if kind == "add":
        return exact.add(*parts)
    if kind == "mul":
        return exact.mul(*parts)
    if kind == "div":
        return exact.mul(parts[0], exact.inverse(parts[1]))
    return _exact_integer_function(kind, [part.rational() for part in parts])


def plain_rational(node: Node) -> Fraction | None:
    """The value of a numeral, or of a fraction of two, with or without a sign; None for any other tree."""
    kind = node[0]
    if kind == "num":
        return node[1]
    if kind == "neg":
        value = plain_rational(node[1]) if node[1][0] in ("num", "div") else None
        return None if value is None else -value
    if kind == "div" and node[1][0] == node[2][0] == "num" and node[2][1]:
        return node[1][1] / node[2][1]
    return None


def _exact_power(node: Node) -> Ratio | None:
    base, exponent = to_ratio(node[1]), to_ratio(node[2])
    value = exponent.rational() if exponent is not None else None
    if base is None or value is None:
        return None
    if value.denominator == 1:
        return exact.power(base, value.numerator)
    if value.denominator > 64:
        return None
    rooted = exact.root(base, value.denominator)
    return None if rooted is None else exact.power(rooted, value.numerator)


def _exact_root(node: Node) -> Ratio | None:
    index, radicand = to_ratio(node[1]), to_ratio(node[2])
    order = index.rational() if index is not None else None
    if radicand is None or order is None or order.denominator != 1:
        return None
    return exact.root(radicand, order.numerator)


def _exact_integer_function(kind: str, values: list[Fraction | None]) -> Ratio | None:
    if any(value is None for value in values):
        return None
    if kind == "abs":
        return exact.constant(abs(values[0]))
    if any(value.denominator != 1 or value < 0 for value in values):
        return None
    if any(value > MAX_FACTORIAL for value in values):
        raise TooLarge(f"a factorial or binomial of more than {MAX_FACTORIAL}")
    numbers = [value.numerator for value in values]
    return exact.constant(Fraction(math.factorial(*numbers) if kind == "fact" else math.comb(*numbers)))


def symbols(node: Node) -> frozenset[str]:
    """Names of the free variables (not pi, e, i)."""
    if node[0] == "num":
        return frozenset()
    if node[0] == "sym":
        return frozenset() if node[1] in _CONSTANTS else frozenset((node[1],))
    return frozenset().union(*(symbols(part) for part in node[1:] if isinstance(part, tuple)))


def to_number(node: Node, values: dict[str, complex] | None = None) -> complex:
    """Numeric value of a tree in double precision.

    Raises:
        TooLarge: overflow.
        Undecided: no finite value (a pole, a variable without a value).
    """
    try:
        return complex(_number(node, values or {}))
    except OverflowError:
        raise TooLarge("a value overflows") from None
    except (ZeroDivisionError, ValueError) as error:
        if isinstance(error, (TooLarge, Undecided)):
            raise
        raise Undefined(f"no finite value: {error}") from None


def _number(node: Node, values: dict[str, complex]) -> complex:
    kind = node[0]
    if kind == "num":
        return float(node[1])
    if kind == "sym":
        name = node[1]
        if name not in _CONSTANTS and name not in values:
            raise Undecided(f"the variable {name} has no value")
        return _CONSTANTS.get(name, values.get(name, 0.0))
    if kind == "fn":
        inner = _number(node[2], values)
        if node[1] in _RECIPROCAL:
            return 1 / _RECIPROCAL[node[1]](inner)
        if node[1] not in _FN:
            raise Undecided(f"the function {node[1]} is not known")
        return _FN[node[1]](inner)
    a, *rest = (_number(part, values) for part in node[1:])
    if kind == "neg":
        return -a
    if kind == "add":
        return a + rest[0]
    if kind == "mul":
        return a * rest[0]
    if kind == "div":
        return a / rest[0]
    if kind == "pow":
        return complex(a) ** rest[0]
    if kind == "root":
        return _real_root(rest[0], a)
    if kind == "log":
        return cmath.log(rest[0]) / cmath.log(a)
    if kind == "abs":
        return abs(a)
    whole = _exact_integer_function(kind, [Fraction(v.real).limit_denominator(1) for v in map(complex, (a, *rest))])
    if whole is None or any(abs(v - round(complex(v).real)) > 0 for v in (a, *rest)):
        raise Undecided("a factorial of a non-integer")
    return float(whole.rational() or 0)


def _real_root(radicand: complex, index: complex) -> complex:
    order = complex(index).real
    value = complex(radicand)
    if value.imag == 0 and value.real < 0 and order % 2 == 1:
        return -((-value.real) ** (1 / order))
    return cmath.sqrt(value) if order == 2 else value ** (1 / order)


def is_defined(node: Node) -> bool:
    """Whether an expression has a value as far as we can tell; raises TooLarge if that is out of bounds."""
    try:
        if to_ratio(node) is None and not symbols(node):
            to_number(node)
    except (Undefined, ZeroDivisionError):
        return False
    except Undecided:
        pass
    return True


def same_value(gold: Node, answer: Node) -> bool:
    """True if gold equals answer, as numbers or as functions of their variables.

    Raises:
        Undecided: a symbolic engine has to look.
        TooLarge: a value passes the limits.
    """
    plain = plain_rational(gold), plain_rational(answer)
    if None not in plain:
        return plain[0] == plain[1]
    try:
        right = to_ratio(answer)
    except ZeroDivisionError:
        return False
    try:
        left = to_ratio(gold)
    except ZeroDivisionError:
        raise Undecided("the gold divides by zero") from None
    if left is not None and right is not None:
        if exact.equal(left, right):
            return True
        if not _has_imaginary(gold) and not _has_imaginary(answer):
            return False
    names = sorted(symbols(gold) | symbols(answer))
    if not names:
        try:
            return _close(to_number(gold), to_number(answer))
        except Undefined:
            to_number(gold)
            return False
    return all(_agree(gold, answer, point) for point in _points(names))


def _agree(gold: Node, answer: Node, point: dict[str, complex]) -> bool:
    left, right = to_number(gold, point), to_number(answer, point)
    # Roots and logarithms of negative numbers have several branches; only real values tell there.
    if min(value.real for value in point.values()) < 0 and (left.imag or right.imag):
        return True
    return _close(left, right)


def _has_imaginary(node: Node) -> bool:
    return node == ("sym", "i") or any(_has_imaginary(part) for part in node[1:] if isinstance(part, tuple))


def _points(names: list[str]) -> list[dict[str, complex]]:
    """Fixed sample points, different for every name: half of them positive, so that x and |x| differ in the others."""
    points = []
    for index in range(_SAMPLES):
        values = [0.3 + (zlib.crc32(f"{name}/{index}".encode()) % 100_003) / 60_000 for name in names]
        signs = [-1 if index % 2 and (place + index // 2) % 2 == 0 else 1 for place in range(len(names))]
        points.append({name: complex(s * v) for name, s, v in zip(names, signs, values, strict=True)})
    return points


def _close(a: complex, b: complex) -> bool:
    if not (cmath.isfinite(a) and cmath.isfinite(b)):
        raise Undecided("a value is not finite")
    size = max(abs(a), abs(b))
    if size < 1e-9 and a != b:
        raise Undecided("both values vanish numerically")
    if min(abs(a), abs(b)) < 1e-12 < size and a != b and size < 1e-6:
        raise Undecided("one value vanishes numerically")
    return abs(a - b) <= _RELATIVE * size
