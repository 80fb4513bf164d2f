"""Sets of real numbers as unions of intervals: intersected, punctured and brought to one form."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cmp_to_key
from itertools import pairwise

from rewards.answers.equality import Undecided, symbols, to_number
from rewards.answers.number import Quantity

_RELATIVE = 1e-12


@dataclass(frozen=True, slots=True, eq=False)
class Interval:
    """From `low` to `high`; an infinite end is the text "-inf" or "inf"."""

    low: Quantity | str
    high: Quantity | str
    low_closed: bool
    high_closed: bool


Region = tuple[Interval, ...]
REALS = Interval("-inf", "inf", False, False)


def compare_ends(a: Quantity | str, b: Quantity | str) -> int:
    """-1, 0 or 1 by size, for ordering only: ends within double precision count as one.

    Raises:
        Undecided: an end is not a real number, or ends have different units.
    """
    if isinstance(a, Quantity) and isinstance(b, Quantity) and (a.unit != b.unit or a.percent != b.percent):
        raise Undecided("ends with different units")
    left, right = _size(a), _size(b)
    if left == right or abs(left - right) <= _RELATIVE * max(abs(left), abs(right)) < math.inf:
        return 0
    return -1 if left < right else 1


def _size(end: Quantity | str) -> float:
    if isinstance(end, str):
        return math.inf if end == "inf" else -math.inf
    value = None if symbols(end.node) else to_number(end.node)
    if value is None or value.imag or not math.isfinite(value.real):
        raise Undecided("an end that is no real number")
    return value.real


def without_points(points: list[Quantity]) -> Region:
    """The reals without some points, which may come in any order; raises Undecided."""
    ordered: list[Quantity] = []
    for point in sorted(points, key=cmp_to_key(compare_ends)):
        if not ordered or compare_ends(ordered[-1], point):
            ordered.append(point)
    ends = ["-inf", *ordered, "inf"]
    return tuple(Interval(low, high, False, False) for low, high in pairwise(ends))


def intersection(a: Region, b: Region) -> Region:
    """What two regions share, in the order of `a`; raises Undecided."""
    shared = []
    for left in a:
        for right in b:
            low = _later(left, right)
            high = _earlier(left, right)
            order = compare_ends(low[0], high[0])
            if order < 0 or (order == 0 and low[1] and high[1]):
                shared.append(Interval(low[0], high[0], low[1], high[1]))
    return tuple(shared)


def _later(a: Interval, b: Interval) -> tuple[Quantity | str, bool]:
    order = compare_ends(a.low, b.low)
    if order == 0:
        return a.low, a.low_closed and b.low_closed
    return (a.low, a.low_closed) if order > 0 else (b.low, b.low_closed)


def _earlier(a: Interval, b: Interval) -> tuple[Quantity | str, bool]:
    order = compare_ends(a.high, b.high)
    if order == 0:
        return a.high, a.high_closed and b.high_closed
    return (a.high, a.high_closed) if order < 0 else (b.high, b.high_closed)


def merged(region: Region) -> Region:
    """The same set as disjoint intervals in order; raises Undecided, also for an interval that holds nothing."""
    if len(region) < 2:
        return region
    for part in region:
        order = compare_ends(part.low, part.high)
        if order > 0 or (order == 0 and not (part.low_closed and part.high_closed)):
            raise Undecided("an interval without a number in it")
    parts = sorted(region, key=cmp_to_key(_by_low))
    done = [parts[0]]
    for part in parts[1:]:
        last = done[-1]
        gap = compare_ends(last.high, part.low)
        if gap < 0 or (gap == 0 and not (last.high_closed or part.low_closed)):
            done.append(part)
            continue
        order = compare_ends(last.high, part.high)
        if order < 0:
            done[-1] = replace(last, high=part.high, high_closed=part.high_closed)
        elif order == 0:
            done[-1] = replace(last, high_closed=last.high_closed or part.high_closed)
    return tuple(done)


def _by_low(a: Interval, b: Interval) -> int:
    return compare_ends(a.low, b.low) or b.low_closed - a.low_closed
