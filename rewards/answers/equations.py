"""Reads what stands on both sides of =, <, \\ne and \\approx: names, equations, inequalities and chains."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from fractions import Fraction

from rewards.answers.brackets import split_top
from rewards.answers.equality import Undecided, symbols
from rewards.answers.grammar import NotAnExpression, parse_expression
from rewards.answers.names import is_asked, is_name, ratio_names, tuple_names
from rewards.answers.number import Quantity, parse_quantity
from rewards.answers.region import Interval, without_points
from rewards.answers.structures import Chain, Many, Named, Relation, Value
from rewards.answers.units import UNITS, combine

INFINITY = {"\\infty": "inf", "+\\infty": "inf", "-\\infty": "-inf", "infinity": "inf", "-infinity": "-inf",
            "+ \\infty": "inf", "- \\infty": "-inf", "inf": "inf", "-inf": "-inf"}  # fmt: skip
_SIGNS = {"\\le": "<=", "\\ge": ">=", "\\ne": "!="}
_TERMS, _FACTORS = re.compile(r"[+-]"), re.compile(r"\*")
_DEGREES = re.compile(r"°(?!\s*[CFK])")
_FUNCTION_OF_ANGLE = re.compile(r"sin|cos|tan|cot|sec|csc")
_ONE = Quantity(("num", Fraction(1)))

Parse = Callable[[str], Value | Chain]


def related(pieces: list[str], ops: list[str], parse: Parse) -> Value | Chain:
    """The value of pieces with relations between them; `parse` reads a piece that may be a list or a tuple.

    Raises:
        NotAnExpression: a side is missing or not read, or the relations make no one statement.
    """
    signs = [_SIGNS.get(op, op) for op in ops]
    if not all(pieces):
        raise NotAnExpression("a relation lacks a side")
    if all(sign in ("=", "\\approx", "\\in") for sign in signs):
        return _equalities(pieces, signs, parse)
    if len(signs) == 1:
        return _inequality(*pieces, signs[0], parse)
    if len(signs) == 2 and all(sign in ("<", "<=", ">", ">=") for sign in signs) and signs[0][0] == signs[1][0]:
        if signs[0][0] == ">":
            pieces, signs = pieces[::-1], signs[::-1]
        if _is_variable(pieces[1]):
            ends = (INFINITY.get(p) or parse_quantity(p) for p in (pieces[0], pieces[2]))
            return Named(pieces[1], Interval(*ends, "=" in signs[0], "=" in signs[1]))
    raise NotAnExpression("a chain of relations")


def excluded(name: str, points: Sequence[Value | Chain]) -> Named:
    """name without some points."""
    if not points or not all(isinstance(point, Quantity) for point in points):
        raise NotAnExpression("the points to leave out are no numbers")
    try:
        return Named(name, Many("union", without_points(list(points))))
    except Undecided as error:
        raise NotAnExpression(f"the points to leave out cannot be ordered: {error}") from None


def _is_variable(text: str) -> bool:
    """Whether a side of an inequality is a quantity and no size of one: |z| < 2 says more than an interval."""
    return not text.startswith("|") and is_name(text)


def _inequality(left: str, right: str, sign: str, parse: Parse) -> Value:
    if sign[0] == ">":
        left, right, sign = right, left, sign.replace(">", "<")
    closed = "=" in sign
    if sign in ("<", "<="):
        if _is_variable(left) and not _is_variable(right):
            return Named(left, Interval("-inf", parse_quantity(right), False, closed), _relation(left, sign, right))
        if _is_variable(right) and not _is_variable(left):
            return Named(right, Interval(parse_quantity(left), "inf", closed, False), _relation(left, sign, right))
    if sign == "!=" and _is_variable(right) and not _is_variable(left):
        left, right = right, left
    if sign == "!=" and _is_variable(left):
        value = parse(right)
        if isinstance(value, Quantity) and symbols(value.node):
            return Relation(parse_quantity(left), sign, value)
        points = value.items if isinstance(value, Many) and value.kind in ("list", "set") else (value,)
        return Named(left, excluded(left, points).value, _relation(left, sign, right))
    if sign not in ("<", "<=", "!="):
        raise NotAnExpression(f"the relation {sign}")
    return Relation(parse_quantity(left), sign, parse_quantity(right))


def _relation(left: str, sign: str, right: str) -> Relation | None:
    try:
        return Relation(parse_quantity(left), sign, parse_quantity(right))
    except NotAnExpression:
        return None


def _equalities(pieces: list[str], signs: list[str], parse: Parse) -> Value | Chain:
    if set(signs) == {"="} and _is_left(pieces[-1]) and not _is_left(pieces[0]):
        pieces = pieces[::-1]
    if len(pieces) == 2:
        return _equation(*pieces, signs[0], parse)
    if "\\in" in signs:
        raise NotAnExpression("membership in a chain")
    name = pieces[0] if _is_left(pieces[0]) else None
    if name is None:
        return _chain([side(piece) for piece in pieces], signs)
    rest, signs = pieces[1:], signs[1:]
    # S = ab/2 = 12: a formula with letters cannot be checked, what follows it can.
    while len(rest) > 1 and _is_formula(rest[0]) and not _is_formula(rest[-1]):
        rest, signs = rest[1:], signs[1:]
    if len(rest) == 1:
        return _equation(name, rest[0], "=", parse)
    chain = _chain([side(piece) for piece in rest], signs)
    return Chain(_named(name, chain.value, None), chain.links)


def _is_left(text: str) -> bool:
    """Whether a side names what the other side is the value of; 5 cm + 3 cm names nothing."""
    if is_name(text) or tuple_names(text) or ratio_names(text):
        return True
    return is_asked(text) and _is_formula(text)


def _is_formula(text: str) -> bool:
    """Whether a side of a chain holds letters that are no units."""
    try:
        return bool(symbols(side(text).node))
    except NotAnExpression:
        return is_name(text) or is_asked(text)


def _equation(left: str, right: str, sign: str, parse: Parse) -> Value | Chain:
    """left = right, left \\approx right or left \\in right."""
    if not _is_left(left):
        sides = side(left), side(right)
        if sign == "=" and any(symbols(each.node) for each in sides):
            return Relation(sides[0], "=", sides[1])
        return _chain(list(sides), [sign])
    value = parse(right)
    if isinstance(value, Chain):
        raise NotAnExpression("a chain inside an equation")
    return _named(left, value, _relation(left, "=", right) if sign == "=" else None)


def _named(left: str, value: Value, relation: Relation | None) -> Value:
    """A value under its name; the parts of (p, q) and a:b get theirs."""
    parts = tuple_names(left)
    if parts:
        tuples = value.items if isinstance(value, Many) and value.kind == "set" else (value,)
        if tuples and all(isinstance(each, Many) and each.kind == "tuple" for each in tuples):
            named = [Many("named", each.items, names=parts) for each in tuples if len(each.items) == len(parts)]
            if len(named) == len(tuples):
                return named[0] if value is tuples[0] else Many("list", tuple(named))
        return Named(left, value)
    parts = ratio_names(left)
    if parts:
        ratio = _ratio(value, len(parts))
        return Named(left, value, relation) if ratio is None else Many("ratio", ratio, names=parts)
    if is_name(left):
        is_plain = re.search(r"[(\u3040-\u9fff]", left) is None
        return Named(left, value, relation if is_plain else None)
    if relation is None:
        return Named(left, value)
    return Relation(relation.left, "=", relation.right, None if symbols(relation.right.node) else value)


def _ratio(value: Value, num_parts: int) -> tuple[Value, ...] | None:
    """The parts of a ratio; a quotient of two is that quotient to one."""
    if isinstance(value, Quantity):
        return (value, _ONE) if num_parts == 2 and not value.percent and value.unit is None else None
    if not (isinstance(value, Many) and value.kind == "ratio" and len(value.items) == num_parts):
        return None
    if num_parts == 2 and all(isinstance(part, Quantity) and not part.unit for part in value.items):
        return Quantity(("div", value.items[0].node, value.items[1].node)), _ONE
    return value.items


def _chain(sides: list[Quantity], signs: list[str]) -> Chain:
    """a = b = c or a \\approx b: the value is the most exact side before a rounding."""
    rounded = next((place for place, sign in enumerate(signs) if sign == "\\approx"), len(signs))
    stated = sides[: rounded + 1]
    written = [each for each in stated if each.quantum is not None]
    exact = [each for each in stated if each.quantum is None]
    if exact:
        value = next((each for each in reversed(exact) if each.unit), exact[-1])
    else:
        value = min(written, key=lambda each: each.quantum or 0)
    return Chain(value, tuple(zip(sides, sides[1:], signs, strict=False)))


def side(text: str) -> Quantity:
    """A quantity whose terms may each carry their unit: 180° - 120°, 5 cm + 3 cm, 5 cm * 3 cm.

    Raises:
        NotAnExpression: it is no quantity, or adds different dimensions.
    """
    if "°" in text and "'" not in text and not _FUNCTION_OF_ANGLE.search(text):
        plain = _DEGREES.sub("", text)
        if "°" not in plain:
            return Quantity(parse_expression(plain), UNITS["°"])
    terms, signs = split_top(text, _TERMS)
    if not terms[0]:
        return parse_quantity(text)
    try:
        products = [[parse_quantity(factor) for factor in split_top(term, _FACTORS)[0]] for term in terms]
    except NotAnExpression:
        return parse_quantity(text)
    if sum(factor.unit is not None for product in products for factor in product) < 2:
        return parse_quantity(text)
    total = _product(products[0])
    for sign, product in zip(signs, map(_product, products[1:]), strict=True):
        if not (total.unit and product.unit and total.unit.dimension == product.unit.dimension):
            raise NotAnExpression("a sum of different dimensions")
        term = ("mul", ("num", product.unit.factor / total.unit.factor), product.node)
        total = Quantity(("add", total.node, ("neg", term) if sign == "-" else term), total.unit)
    return total


def _product(factors: list[Quantity]) -> Quantity:
    node, unit = factors[0].node, factors[0].unit
    for factor in factors[1:]:
        node = ("mul", node, factor.node)
        unit = combine(unit, factor.unit, 1) if unit and factor.unit else unit or factor.unit
    return Quantity(node, unit)
