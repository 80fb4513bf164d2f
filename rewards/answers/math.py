"""Decides whether a mathematical answer equals the gold, in-process where our grammar reads both sides."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise
from math import gcd

from rewards.answers import exact
from rewards.answers.equality import Undecided, symbols, to_number, to_ratio
from rewards.answers.grammar import FUNCTIONS, GREEK, Node, NotAnExpression
from rewards.answers.names import COORDINATES, key, may_agree, tuple_order
from rewards.answers.number import Quantity, constant_value, same_quantity
from rewards.answers.region import Interval, merged
from rewards.answers.structures import Chain, Many, Named, Relation, Value, as_region
from rewards.answers.units import Unit
from rewards.answers.values import parse_value

_LATEX_WORD = re.compile(r"\\[A-Za-z]+")
_WORD = re.compile(r"[^\W\d_]{2,}")
_KNOWN_WORDS = FUNCTIONS | {"sqrt", "lim", "max", "min", "mod", "gcd", "lcm", "pmatrix", "bmatrix", "vmatrix"}
_HEDGES = re.compile(r"\?|…|\.\.\.|\d\s*_|\)\s*_")
# What a symbolic engine may still decide; macros, negations, words and dots are left out on purpose.
_ENGINE_NAMES = """frac sqrt binom sum prod int iint oint lim limsup liminf max min gcd lcm det mod bmod pmod lfloor
rfloor lceil rceil pi infty pm mp cup cap in subset subseteq setminus emptyset mathbb mathcal begin end left right le ge
to rightarrow choose over partial nabla prime circ Re Im arg coth sech csch arcsec arccsc arccot hat bar"""
_ENGINE_COMMANDS = FUNCTIONS | GREEK | frozenset(_ENGINE_NAMES.split())


class Comparison:
    """Compares values under one item's `precision` and gold `unit`."""

    def __init__(self, precision: int | None = None, unit: Unit | None = None) -> None:
        self.precision = precision
        self.unit = unit

    def same(self, gold: Value | Chain, answer: Value | Chain) -> bool:
        """True if the answer is the gold value.

        Raises:
            Undecided: a symbolic engine has to look.
            TooLarge: a value passes the limits.
        """
        if isinstance(gold, Chain):
            gold = gold.value
        if isinstance(answer, Chain):
            if not all(self._linked(*link) for link in answer.links):
                return False
            if self._is_rounded_to(gold, *answer.links[-1]):
                return True
            if _is_coarser(gold, *answer.links[-1][1:]):
                return False
            answer = answer.value
        gold, answer = _single(gold), _single(answer)
        if isinstance(gold, Named) or isinstance(answer, Named):
            return self._named(gold, answer)
        if isinstance(gold, Quantity) and isinstance(answer, Quantity):
            return same_quantity(gold, answer, self.precision, self.unit)
        if isinstance(gold, Relation) and isinstance(answer, Relation):
            return _same_relation(gold, answer)
        if isinstance(gold, Relation) and gold.value is not None and not _is_equation(gold):
            return self.same(gold.value, answer)
        if isinstance(answer, Relation) and answer.value is not None:
            return self.same(gold, answer.value)
        if isinstance(gold, Many) and isinstance(answer, Many):
            return self._many(gold, answer)
        if _is_ratio(gold) and isinstance(answer, Quantity):
            return not _is_time(gold) and same_quantity(_quotient(gold.items), answer)
        if isinstance(gold, Quantity) and _is_ratio(answer):
            return not _is_time(answer) and same_quantity(gold, _quotient(answer.items))
        return self._regions(gold, answer)

    def _linked(self, finer: Quantity, coarser: Quantity, sign: str) -> bool:
        if finer.percent != coarser.percent:
            finer, coarser = _without_percent(finer), _without_percent(coarser)
        if sign == "=":
            return same_quantity(finer, coarser) or same_quantity(coarser, finer)
        return same_quantity(coarser, finer) or _is_nearest_integer(coarser, finer)

    def _is_rounded_to(self, gold: Value, exact_side: Quantity, rounded: Quantity, sign: str) -> bool:
        """Whether the last link of a chain is a rounding and the gold is the rounded side: \\sqrt{205} \\approx 14."""
        if sign != "\\approx" or not isinstance(gold, Quantity):
            return False
        if rounded.quantum is None and not _is_nearest_integer(rounded, exact_side):
            return False
        return gold.quantum == rounded.quantum and same_quantity(gold, rounded, self.precision, self.unit)

    def _named(self, gold: Value, answer: Value) -> bool:
        if isinstance(gold, Named) and isinstance(answer, Named):
            if len(gold.name) == len(answer.name) == 1 and gold.name != answer.name:
                relations = gold.relation, answer.relation
                return None not in relations and _same_relation(*relations)
            return may_agree(gold.name, answer.name) and self.same(gold.value, answer.value)
        if isinstance(gold, Named):
            if isinstance(answer, Relation):
                return gold.relation is not None and _same_relation(gold.relation, answer)
            return self.same(gold.value, answer)
        if isinstance(gold, Relation):
            return answer.relation is not None and _same_relation(gold, answer.relation)
        return self.same(gold, answer.value)

    def _many(self, gold: Many, answer: Many) -> bool:
        kinds = {gold.kind, answer.kind}
        if "union" in kinds:
            return self._regions(gold, answer)
        if kinds == {"ratio"}:
            return self._ratios(gold, answer)
        if kinds == {"clock"}:
            return gold.ends == answer.ends and self._ordered(gold, answer)
        if kinds == {"tuple", "matrix"}:
            return self._vectors(gold, answer)
        if kinds & {"ratio", "clock"}:
            return False
        if kinds <= {"list", "set"}:
            if len(gold.items) != len(answer.items):
                return self._unordered(self._distinct(gold), self._distinct(answer))
            return self._unordered(gold.items, answer.items)
        if len(gold.items) != len(answer.items):
            return False
        if "named" in kinds:
            return self._by_name(gold, answer)
        if "set" in kinds or (kinds == {"tuple"} and len(gold.items) == 2 and gold.ends != answer.ends):
            return False
        return self._ordered(gold, answer)

    def _regions(self, gold: Value, answer: Value) -> bool:
        left, right = as_region(gold), as_region(answer)
        if left is None or right is None:
            return False
        left, right = merged(left), merged(right)
        return len(left) == len(right) and all(map(self._interval, left, right))

    def _by_name(self, gold: Many, answer: Many) -> bool:
        """Values under the same names, or values without names in the order of the names."""
        if gold.names and answer.names:
            named = dict(zip(map(key, answer.names), answer.items, strict=True))
            if named.keys() == set(map(key, gold.names)):
                return all(
                    self.same(value, named[key(name)]) for name, value in zip(gold.names, gold.items, strict=True)
                )
            return all(map(may_agree, gold.names, answer.names)) and all(map(self.same, gold.items, answer.items))
        other = answer if gold.names else gold
        if other.kind == "tuple" and other.ends == "()":
            gold, answer = _in_tuple_order(gold), _in_tuple_order(answer)
        elif other.kind != "list":
            return False
        return self._ordered(gold, answer)

    def _distinct(self, many: Many) -> Sequence[Value]:
        """Its items, each once where a repeated one says nothing: in a set and among solutions of several parts."""
        if many.kind == "list" and not all(isinstance(item, Many) for item in many.items):
            return many.items
        once: list[Value] = []
        for item in many.items:
            if not any(self.same(other, item) for other in once):
                once.append(item)
        return once

    def _ratios(self, gold: Many, answer: Many) -> bool:
        if gold.names and answer.names:
            named = dict(zip(map(key, answer.names), answer.items, strict=True))
            if named.keys() != set(map(key, gold.names)):
                return False
            answer = Many("ratio", tuple(named[key(name)] for name in gold.names))
        if len(gold.items) != len(answer.items) or _is_time(gold):
            return self._ordered(gold, answer)
        pairs = zip(pairwise(gold.items), pairwise(answer.items), strict=True)
        return all(same_quantity(_quotient(left), _quotient(right)) for left, right in pairs)

    def _vectors(self, gold: Many, answer: Many) -> bool:
        """A column and a tuple in round brackets are the same vector."""
        column, pair = (gold, answer) if gold.kind == "matrix" else (answer, gold)
        rows = [row.items if isinstance(row, Many) else () for row in column.items]
        if pair.ends != "()" or any(len(row) != 1 for row in rows):
            return False
        column = Many("tuple", tuple(row[0] for row in rows), "()")
        return self._ordered(column, pair) if gold.kind == "matrix" else self._ordered(pair, column)

    def _ordered(self, gold: Many, answer: Many) -> bool:
        return len(gold.items) == len(answer.items) and all(map(self.same, gold.items, answer.items))

    def _unordered(self, gold: Sequence[Value], answer: Sequence[Value]) -> bool:
        left = list(answer)
        for value in gold:
            match = next((index for index, other in enumerate(left) if self.same(value, other)), None)
            if match is None:
                return False
            del left[match]
        return not left

    def _interval(self, gold: Interval, answer: Interval) -> bool:
        closed = (gold.low_closed, gold.high_closed) == (answer.low_closed, answer.high_closed)
        return closed and self._end(gold.low, answer.low) and self._end(gold.high, answer.high)

    def _end(self, gold: Quantity | str, answer: Quantity | str) -> bool:
        if isinstance(gold, str) or isinstance(answer, str):
            return gold == answer
        return same_quantity(gold, answer, self.precision, self.unit)


def _without_percent(quantity: Quantity) -> Quantity:
    """20% as 20/100."""
    if not quantity.percent:
        return quantity
    quantum = quantity.quantum and quantity.quantum / 100
    return replace(quantity, node=("div", quantity.node, ("num", Fraction(100))), percent=False, quantum=quantum)


def _is_nearest_integer(rounded: Quantity, exact_side: Quantity) -> bool:
    """Whether an integer of two digits or more is what a value is rounded to; 2.6 is not nearly enough 3."""
    if rounded.node[0] != "num" or rounded.node[1].denominator != 1 or abs(rounded.node[1]) < 10:
        return False
    value = constant_value(exact_side.node)
    return value is not None and exact_side.unit in (None, rounded.unit) and abs(value - rounded.node[1]) * 2 <= 1


def _is_coarser(gold: Value, rounded: Quantity, sign: str) -> bool:
    """Whether a chain ends on fewer decimals than the gold has: \\sqrt{50} \\approx 7.1 for 7.07."""
    if sign != "\\approx" or not isinstance(gold, Quantity) or gold.quantum is None:
        return False
    return rounded.node[0] == "num" and (rounded.quantum is None or rounded.quantum > gold.quantum)


def _single(value: Value) -> Value:
    """A list of one value is that value."""
    while isinstance(value, Many) and value.kind in ("list", "set", "union") and len(value.items) == 1:
        value = value.items[0]
    return value


def _in_tuple_order(many: Many) -> Many:
    """Named values as the tuple that lists them."""
    if not many.names:
        return many
    return Many("tuple", tuple(many.items[place] for place in tuple_order(many.names)), "()")


def _is_equation(relation: Relation) -> bool:
    """Whether a gold such as a + b = 7 is an equation, which no bare value answers, and not a sum that was asked for.

    An equation is in coordinates, has factors, or has zero on one side.
    """
    if to_number(relation.right.node) == 0 or symbols(relation.left.node) <= COORDINATES:
        return True
    return _has_numbers(relation.left.node)


def _has_numbers(node: Node) -> bool:
    return node[0] == "num" or any(_has_numbers(part) for part in node[1:] if isinstance(part, tuple))


def _is_ratio(value: Value) -> bool:
    """Whether this is a ratio of two quantities."""
    is_pair = isinstance(value, Many) and value.kind == "ratio" and len(value.items) == 2
    return is_pair and all(isinstance(item, Quantity) for item in value.items)


def _quotient(parts: Sequence[Value]) -> Quantity:
    top, bottom = parts
    if not (isinstance(top, Quantity) and isinstance(bottom, Quantity)):
        raise Undecided("a ratio of something that is no quantity")
    if top.unit != bottom.unit or top.percent != bottom.percent:
        raise Undecided("a ratio of different units")
    return Quantity(("div", top.node, bottom.node))


def _is_time(ratio: Value) -> bool:
    """Whether 4:30 is a time of day: a ratio would be in lowest terms."""
    if not _is_ratio(ratio):
        return False
    numbers = [item.node[1] for item in ratio.items if item.node[0] == "num" and item.node[1].denominator == 1]
    if len(numbers) < 2:
        return False
    hour, minute = (number.numerator for number in numbers)
    return hour <= 24 and 10 <= minute < 60 and gcd(hour, minute) > 1


def _same_relation(gold: Relation, answer: Relation) -> bool:
    """Equal up to sides and a non-zero factor (a positive one for inequalities)."""
    if gold.op != answer.op:
        return False
    sides = []
    for relation in (gold, answer):
        try:
            left, right = to_ratio(relation.left.node), to_ratio(relation.right.node)
        except ZeroDivisionError:
            raise Undecided("division by zero") from None
        if left is None or right is None:
            raise Undecided("a relation between functions")
        sides.append(exact.add(left, exact.negate(right)))
    factor = exact.proportional(sides[0].num, sides[1].num)
    if factor is None:
        return False
    # The denominators count too where an inequality's direction may turn on them.
    if gold.op in ("=", "!="):
        return True
    denominators = exact.proportional(sides[0].den, sides[1].den)
    return denominators is not None and factor / denominators > 0


@lru_cache(maxsize=1024)
def read(text: str) -> Value | Chain | None:
    """The value of a cleaned text, or None if our grammar does not read it; raises TooLarge."""
    try:
        return parse_value(text)
    except NotAnExpression:
        return None


def suits_the_engine(gold: Value | Chain | None) -> bool:
    """Whether a symbolic engine compares this gold by our rules: it knows no units, percents, times or ratios."""
    if isinstance(gold, Chain | Named):
        return suits_the_engine(gold.value)
    if isinstance(gold, Quantity):
        return gold.unit is None and not gold.percent
    if isinstance(gold, Many):
        return gold.kind not in ("clock", "ratio") and all(map(suits_the_engine, gold.items))
    return True


def worth_a_worker(text: str, plain: bool = False) -> bool:
    """Whether a text is pure notation that a symbolic engine may still read.

    Prose is refused here, and so is text without a LaTeX command unless our grammar reads it (`plain`): engines read
    single numbers out of both.
    """
    if _HEDGES.search(text):
        return False
    if any(command[1:] not in _ENGINE_COMMANDS for command in _LATEX_WORD.findall(text)):
        return False
    without = _LATEX_WORD.sub(" ", text)
    words = [word for word in _WORD.findall(without) if word not in _KNOWN_WORDS]
    if "\\int" in text:
        words = [word for word in words if not (len(word) == 2 and word[0] == "d")]
    return not words and (plain or "\\" in text)
