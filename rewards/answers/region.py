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
            low, low_closed = _tighter((left.low, left.low_closed), (right.low, right.low_closed), 1)
            high, high_closed = _tighter((left.high, left.high_closed), (right.high, right.high_closed), -1)
            order = compare_ends(low, high)
            if order < 0 or (order == 0 and low_closed and high_closed):
                shared.append(Interval(low, high, low_closed, high_closed))
    return tuple(shared)


def _tighter(a: tuple[Quantity | str, bool], b: tuple[Quantity | str, bool], sign: int) -> tuple[Quantity | str, bool]:
    """Of two ends (value, is closed) the larger one (`sign` 1) or the smaller one (-1)."""
    order = sign * compare_ends(a[0], b[0])
    if order == 0:
        return a[0], a[1] and b[1]
    return a if order > 0 else b


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
