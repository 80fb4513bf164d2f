"""Quantities: an expression with its unit, percent sign and written decimals, and when two of them agree."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.answers.equality import Undecided, same_value, symbols, to_number, to_ratio
from rewards.answers.grammar import Node, NotAnExpression, parse_expression
from rewards.answers.units import Unit, split_unit

_PERCENT = re.compile(r"\s*(?:%|\bpercent|\bper cent|\bpercentage|\bpct\.?)$", re.IGNORECASE)
_LITERAL = re.compile(
    r"^[+-]?(?P<mantissa>\d[\d,]*\.\d+|\d[\d,]*|\.\d+)"
    r"(?:[eE](?P<exp>[+-]?\d{1,3})|\s*\*\s*10\s*\^\s*\{?\s*(?P<power>[+-]?\d{1,3})\s*\}?)?$"
)
_MINUTES = re.compile(
    r"^(?P<sign>-?)(?P<whole>\d{1,4})\s*°\s*(?P<minutes>\d{1,2})\s*'(?:\s*(?P<seconds>\d{1,2})\s*(?:\"|''))?$"
)
_TRIGONOMETRIC = re.compile(r"sin|cos|tan|cot|sec|csc")
_MAX_UNIT_CHARS = 160
_MACHINE_DIGITS = 15
_MACHINE_PRECISION = 1e-14


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """`quantum` is one unit in the last written place of a decimal literal, None for anything exact."""

    node: Node
    unit: Unit | None = None
    percent: bool = False
    quantum: Fraction | None = None
    digits: int = 0


def parse_quantity(text: str) -> Quantity:
    """Read one cleaned quantity.

    Raises:
        NotAnExpression, TooLarge: from the grammar.
    """
    if "°" in text and "'" in text:
        text = _in_degrees(text)
    percent = bool(_PERCENT.search(text))
    if percent:
        text = _PERCENT.sub("", text)
    value, unit = (text, None) if percent or len(text) > _MAX_UNIT_CHARS else split_unit(text)
    node = None
    if unit is not None and not _TRIGONOMETRIC.search(value):
        with suppress(NotAnExpression):
            node = parse_expression(value)
    # What looks like a unit behind a variable or a function belongs to the expression.
    if unit is not None and (node is None or symbols(node)):
        value, unit, node = text, None, None
    node = node or parse_expression(value)
    quantum, digits = _written(value.strip())
    return Quantity(node, unit, percent, quantum, digits)


def _in_degrees(text: str) -> str:
    """45° 30' 15" as a sum of degrees; raises NotAnExpression for sixty minutes or more."""
    angle = _MINUTES.match(text)
    if not angle:
        return text
    whole, minutes, seconds = (int(part or 0) for part in angle.group("whole", "minutes", "seconds"))
    if minutes >= 60 or seconds >= 60:
        raise NotAnExpression("sixty minutes make a degree")
    return f"{angle['sign']}({whole}+{minutes}/60+{seconds}/3600)°"


def _written(text: str) -> tuple[Fraction | None, int]:
    """(value of the last decimal place, significant digits) of a decimal literal; (None, 0) for anything else."""
    literal = _LITERAL.match(text)
    if not literal or "." not in literal["mantissa"]:
        return None, 0
    decimals = len(literal["mantissa"].partition(".")[2])
    exponent = int(literal["exp"] or literal["power"] or 0)
    digits = len(literal["mantissa"].replace(".", "").replace(",", "").lstrip("0"))
    return Fraction(10) ** (exponent - decimals), digits


def same_quantity(gold: Quantity, answer: Quantity, precision: int | None = None, unit: Unit | None = None) -> bool:
    """True if the answer is the gold quantity.

    Args:
        precision: round both sides to this many decimals first (MathVista).
        unit: the unit of a gold that is written without one.
    Raises:
        Undecided, TooLarge: see evaluate.same_value.
    """
    return any(_same_number(gold, answer, scale, precision) for scale in _scales(gold, answer, unit))


@dataclass(frozen=True, slots=True)
class _Scale:
    """factor * value + shift brings a value to the gold's terms."""

    factor: Fraction = Fraction(1)
    shift: Fraction = Fraction(0)


def _scales(gold: Quantity, answer: Quantity, unit: Unit | None) -> tuple[_Scale, ...]:
    """How the answer's number may be brought to the gold's terms; empty if units forbid it."""
    if gold.percent or answer.percent:
        if gold.unit or (answer.unit and not answer.unit.is_degree):
            return ()
        if gold.percent == answer.percent:
            return (_Scale(),)
        return (_Scale(), _Scale(Fraction(100) if gold.percent else Fraction(1, 100)))
    gold_unit = gold.unit or unit
    if answer.unit is None:
        optional = gold.unit is None or gold.unit.is_degree or not gold.unit.dimension
        return (_Scale(),) if optional else ()
    if gold_unit is None:
        return (_Scale(),)
    if gold_unit.dimension != answer.unit.dimension:
        return ()
    shift = (answer.unit.zero - gold_unit.zero) / gold_unit.factor
    return (_Scale(answer.unit.factor / gold_unit.factor, shift),)


def _same_number(gold: Quantity, answer: Quantity, scale: _Scale, precision: int | None) -> bool:
    if precision is not None or gold.quantum is not None or answer.quantum is not None:
        left, right = constant_value(gold.node), constant_value(answer.node)
        if left is not None and right is not None:
            quantum = None if answer.quantum is None else answer.quantum * scale.factor
            right = right * scale.factor + scale.shift
            return _same_decimal(left, right, gold, replace(answer, quantum=quantum), precision)
    node = answer.node if scale.factor == 1 else ("mul", ("num", scale.factor), answer.node)
    return same_value(gold.node, ("add", node, ("num", scale.shift)) if scale.shift else node)


def constant_value(node: Node) -> Fraction | None:
    """Value of a real constant, exact if rational, else to double precision; None if it has variables."""
    try:
        ratio = to_ratio(node)
    except ZeroDivisionError:
        raise Undecided("division by zero") from None
    value = ratio.rational() if ratio is not None else None
    if value is not None:
        return value
    if symbols(node):
        return None
    number = to_number(node)
    if number.imag or number.real != number.real or abs(number.real) == float("inf"):
        return None
    return Fraction(number.real)


def _same_decimal(left: Fraction, right: Fraction, gold: Quantity, answer: Quantity, precision: int | None) -> bool:
    if left == right:
        return True
    if precision is not None:
        return any(way(left, precision) == way(right, precision) for way in (_round_half_up, round))
    if gold.quantum is not None and abs(left - right) * 2 <= gold.quantum:
        return answer.quantum is None or answer.quantum <= gold.quantum
    long_enough = max(gold.digits, answer.digits) >= _MACHINE_DIGITS
    return long_enough and abs(left - right) <= max(abs(left), abs(right)) * Fraction(_MACHINE_PRECISION)


def _round_half_up(value: Fraction, places: int) -> Fraction:
    scale = Fraction(10) ** places
    doubled = abs(value) * scale * 2 + 1
    rounded = doubled.numerator // (doubled.denominator * 2) / scale
    return rounded if value >= 0 else -rounded
