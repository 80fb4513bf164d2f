"""Quantities: an expression with its unit, percent sign and written decimals, and when two of them agree."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.answers.compound import read_compound
from rewards.answers.equality import Undecided, plain_rational, same_value, symbols, to_number, to_ratio
from rewards.answers.grammar import Node, NotAnExpression, number_value, parse_expression
from rewards.answers.nouns import agree, split_noun
from rewards.answers.numerals import split_multiplier
from rewards.answers.units import Unit, split_unit

_PERCENT = re.compile(
    r"\s*(?:%|\b(?:percent|per cent|percentage|pct|prozent|pour cent|pourcent)|パーセント)$", re.IGNORECASE
)
_PERCENT_ENDS = tuple("%tTeEト")
_CHINESE_PERCENT = re.compile(r"^百分之\s*(?=\d)")
_PLAIN = re.compile(r"([+-]?)(\d{1,15}(?:\.\d{1,15})?)", re.ASCII)
_LITERAL = re.compile(
    r"^[+-]?(?P<mantissa>\d[\d,]*\.\d+|\d[\d,]*|\.\d+)"
    r"(?:[eE](?P<exp>[+-]?\d{1,3})|\s*\*\s*10\s*\^\s*\{?\s*(?P<power>[+-]?\d{1,3})\s*\}?)?$"
)
_TRIGONOMETRIC = re.compile(r"sin|cos|tan|cot|sec|csc")
# A unit in a word or in Chinese is no product of variables.
_SPELLED_UNIT = re.compile(r"(?:(?<![^\W\d_])[a-z]{4,}|[\u4e00-\u9fff])$")
_MAX_UNIT_CHARS = 160
_MACHINE_DIGITS = 15
_MACHINE_PRECISION = 1e-14


@dataclass(frozen=True, slots=True, eq=False)
class Quantity:
    """`quantum` is one unit in the last written place of a decimal literal, None for anything exact.

    `noun` is the head of a counted noun; `compound` says that several units are in it (2 h 30 min).
    """

    node: Node
    unit: Unit | None = None
    percent: bool = False
    quantum: Fraction | None = None
    digits: int = 0
    noun: str = ""
    compound: bool = False


def plain_number(text: str) -> Quantity | None:
    """A short decimal numeral as a quantity, None for any other text: most answers need no grammar."""
    found = _PLAIN.fullmatch(text)
    if not found:
        return None
    node = ("num", number_value(found[2]))
    quantum, digits = _written(found[2])
    return Quantity(("neg", node) if found[1] == "-" else node, quantum=quantum, digits=digits)


def parse_quantity(text: str) -> Quantity:
    """Read one cleaned quantity.

    Raises:
        NotAnExpression, TooLarge: from the grammar.
    """
    if plain := plain_number(text):
        return plain
    compound = compound_quantity(text)
    if compound:
        return compound
    percent = (text.endswith(_PERCENT_ENDS) and bool(_PERCENT.search(text))) or text.startswith("百分之")
    if percent:
        text = _CHINESE_PERCENT.sub("", _PERCENT.sub("", text))
    value, unit = (text, None) if percent or len(text) > _MAX_UNIT_CHARS else split_unit(text)
    node, noun, factor = None, "", Fraction(1)
    if unit is not None and not _TRIGONOMETRIC.search(value):
        value, noun, factor, node = _constant(value)
    # What looks like a unit behind a variable or a function belongs to the expression.
    if unit is not None and node is None and not _SPELLED_UNIT.search(text):
        value, unit, factor = text, None, Fraction(1)
    if node is None:
        node, value, noun, factor = _expression(value)
    quantum, digits = _written(value.strip())
    if factor != 1:
        node, quantum = ("mul", node, ("num", factor)), quantum and quantum * factor
    return Quantity(node, unit, percent, quantum, digits, noun)


def compound_quantity(text: str) -> Quantity | None:
    """The text as a quantity of several units (2 h 30 min), if it is one."""
    found = read_compound(text)
    if found is None:
        return None
    value, unit, quantum = found
    return Quantity(("num", value), unit, quantum=quantum, compound=not unit.is_degree)


def _expression(text: str) -> tuple[Node, str, str, Fraction]:
    """(node, value text, noun, factor) of an expression, which may be a count; raises as the grammar does."""
    try:
        return parse_expression(text), text, "", Fraction(1)
    except NotAnExpression:
        if len(text) > _MAX_UNIT_CHARS:
            raise
        value, noun, factor, node = _constant(text)
        if node is None or (not noun and factor == 1 and value == text):
            raise
        return node, value, noun, factor


def _constant(text: str) -> tuple[str, str, Fraction, Node | None]:
    """(value text, noun, factor, node) of a number with what is counted behind it; node None if it is no number."""
    counted = split_noun(text)
    value, noun = counted or (text, "")
    value, factor = split_multiplier(value.strip())
    if plain := plain_number(value):
        return value, noun, factor, plain.node
    with suppress(NotAnExpression):
        node = parse_expression(value)
        if not symbols(node):
            return value, noun, factor, node
    return text, "", Fraction(1), None


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
    """True if the answer is the gold quantity; a unit or a counted noun that only one side names may be missing.

    Args:
        precision: round both sides to this many decimals first (MathVista).
        unit: the unit of a gold that is written without one.
    Raises:
        Undecided, TooLarge: see evaluate.same_value.
    """
    gold, answer = _in_degrees(gold, answer.unit or unit), _in_degrees(answer, gold.unit or unit)
    return any(_same_number(gold, answer, scale, precision) for scale in _scales(gold, answer, unit))


def _in_degrees(angle: Quantity, other: Unit | None) -> Quantity:
    """An angle in radians, or a multiple of pi without a unit, in degrees where the other side is in degrees."""
    if other is None or not other.is_degree or angle.percent:
        return angle
    radians = (("radian", 1),)
    is_angle = _is_multiple_of_pi(angle.node) if angle.unit is None else angle.unit.dimension == radians
    if not is_angle:
        return angle
    return replace(angle, node=("div", ("mul", angle.node, ("num", Fraction(180))), ("sym", "pi")), unit=other)


def _is_multiple_of_pi(node: Node) -> bool:
    """Whether an expression is a constant with pi in it."""
    return not symbols(node) and _holds_pi(node)


def _holds_pi(node: Node) -> bool:
    return node == ("sym", "pi") or any(_holds_pi(part) for part in node[1:] if isinstance(part, tuple))


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
        if gold.percent:
            return (_Scale(), _Scale(Fraction(100)))
        # 35% may answer a question for percents, whose gold is 35; 0.35% is a hundredth of 0.35.
        size = constant_value(gold.node)
        plain = (_Scale(),) if size is not None and abs(size) > 1 else ()
        return (*plain, _Scale(Fraction(1, 100)))
    if not agree(gold.noun, answer.noun) or _counts_and_measures(gold, answer):
        return ()
    gold_unit = gold.unit or unit
    if answer.unit is None or gold_unit is None:
        # Of 2 h 30 min nobody knows which unit a bare number would be in.
        return () if gold.compound or answer.compound else (_Scale(),)
    measured = answer.unit.as_measured_like(gold_unit)
    if measured is None:
        measured, gold_unit = answer.unit, gold_unit.as_measured_like(answer.unit)
    if gold_unit is None:
        return ()
    shift = (measured.zero - gold_unit.zero) / gold_unit.factor
    return (_Scale(measured.factor / gold_unit.factor, shift),)


def _counts_and_measures(gold: Quantity, answer: Quantity) -> bool:
    """Whether one side counts things where the other has a unit of measure (18 eggs, 18 cm)."""
    return any(a.noun and b.unit and not a.unit and b.unit.dimension for a, b in ((gold, answer), (answer, gold)))


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
    if (plain := plain_rational(node)) is not None:
        return plain
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
