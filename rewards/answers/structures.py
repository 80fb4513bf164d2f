"""The values that are more than one quantity: several values, names, relations and chains."""

from __future__ import annotations

from dataclasses import dataclass

from rewards.answers.number import Quantity
from rewards.answers.region import Interval, Region


@dataclass(frozen=True, slots=True, eq=False)
class Many:
    """Several values. kind: "list" (bare, unordered), "set", "tuple", "named", "matrix", "ratio", "clock" or "union".

    ends: the brackets; of a clock time "am", "pm" or "". names: of each value, for "named" and where a ratio has them.
    """

    kind: str
    items: tuple[Value, ...]
    ends: str = ""
    names: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Named:
    """name = value; looked through when the other side has no name."""

    name: str
    value: Value
    relation: Relation | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Relation:
    """left op right, op one of "=", "<", "<=", "!="; ">" is turned round.

    value: what a + b = 7 says if the value of a + b was asked; None where the left side is none that is asked for.
    """

    left: Quantity
    op: str
    right: Quantity
    value: Value | None = None


Value = Quantity | Many | Interval | Named | Relation


@dataclass(frozen=True, slots=True, eq=False)
class Chain:
    """a = b = c or a ≈ b: the value is `value`, and each pair of `links` has to agree."""

    value: Value
    links: tuple[tuple[Quantity, Quantity, str], ...]


def as_region(value: Value) -> Region | None:
    """The value as a union of intervals, if it is written as one."""
    if isinstance(value, Interval):
        return (value,)
    if isinstance(value, Named):
        return as_region(value.value)
    if not isinstance(value, Many):
        return None
    if value.kind == "set" and value.items and all(isinstance(item, Quantity) for item in value.items):
        return tuple(Interval(item, item, True, True) for item in value.items)
    if value.kind == "union":
        parts = [as_region(item) for item in value.items]
        return None if any(part is None for part in parts) else tuple(i for part in parts if part for i in part)
    pair = value.kind == "tuple" and len(value.items) == 2 and len(value.ends) == 2
    if not pair or not all(isinstance(item, Quantity) for item in value.items):
        return None
    return (Interval(*value.items, value.ends[0] == "[", value.ends[1] == "]"),)
