"""Compound quantities as one: 2 hours 30 minutes, 5'6", 3元5角; each part is less than one unit of the part before."""

from __future__ import annotations

import re
from fractions import Fraction

from rewards.answers.units import UNITS, Unit

_PART = re.compile(
    r"\s*(?P<joint>,\s*|,?\s*(?:and|und|et)\s+)?(?P<number>\d{1,9}(?:\.\d{1,9})?)\s*(?P<unit>°|''|['\"]|[^\W\d_]+)?\.?"
)
_START = re.compile(r"^-?\d{1,9}(?:\.\d{1,9})?\s*(?:°|'|[^\W\d_]+\.?)\s*(?:,\s*)?(?:(?:and|und|et)\s+)?\d")
_ARC = {"'": 60, '"': 3600, "''": 3600}
_INCHES = {'"', "''"}
# A list of two lengths may have a comma or "and" between them; a duration has both inside.
_JOINED = frozenset(("time", "month", "degree", "usd", "cny", "gbp", "eur"))
_IMPERIAL = frozenset(UNITS[name].factor for name in ("ft", "yd", "mi", "lb"))


def read_compound(text: str) -> tuple[Fraction, Unit, Fraction | None] | None:
    """(value, unit, value of its last written decimal) in the first part's unit, or None if the text is no compound."""
    if not _START.match(text):
        return None
    sign, rest = (-1, text[1:]) if text.startswith("-") else (1, text)
    parts, position = [], 0
    while position < len(rest):
        part = _PART.match(rest, position)
        if not part or len(parts) == 4:
            return None
        parts.append(part)
        position = part.end()
    units = _units(parts)
    if units is None or not _fits(parts, units):
        return None
    sizes = [unit.factor / units[0].factor for unit in units]
    total = sum((Fraction(part["number"]) * size for part, size in zip(parts, sizes, strict=True)), Fraction(0))
    decimals = parts[-1]["number"].partition(".")[2]
    return sign * total, units[0], sizes[-1] / 10 ** len(decimals) if decimals else None


def _units(parts: list[re.Match[str]]) -> list[Unit] | None:
    """The unit of each part; minutes behind degrees are minutes of arc, and 5'6" are feet and inches."""
    names = [part["unit"] or "" for part in parts]
    if len(names) == 2 and names == ["h", ""] and re.fullmatch("[0-5][0-9]", parts[1]["number"]):
        names[1] = "min"
    if names[0] == "'" and names[1] in _INCHES and len(names) == 2:
        return [UNITS["ft"], UNITS["in"]]
    first = UNITS.get(names[0])
    if first is None:
        return None
    units = [first]
    for name in names[1:]:
        unit = UNITS.get(name)
        if first.is_degree:
            parts_of_degree = _ARC.get(name) or _parts_of_degree(unit)
            unit = Unit(first.dimension, first.factor / parts_of_degree) if parts_of_degree else None
        if unit is None:
            return None
        units.append(unit.as_measured_like(first) or unit)
    return units


def _parts_of_degree(unit: Unit | None) -> int | None:
    """60 for minutes, 3600 for seconds."""
    return {60: 60, 1: 3600}.get(unit.factor) if unit and unit.dimension == UNITS["s"].dimension else None


def _fits(parts: list[re.Match[str]], units: list[Unit]) -> bool:
    """Same measure, each part less than one of the unit before it, decimals only in the last."""
    first = units[0]
    if any("." in part["number"] for part in parts[:-1]) or len(first.dimension) != 1:
        return False
    base = first.dimension[0][0]
    for part, unit, before in zip(parts[1:], units[1:], units, strict=False):
        if not _same_measure(unit, before) or Fraction(part["number"]) * unit.factor >= before.factor:
            return False
        joint = (part["joint"] or "").strip()
        if joint and base not in _JOINED and not (joint != "," and before.factor in _IMPERIAL):
            return False
        if joint == "," and base not in ("time", "month"):
            return False
    return True


def _same_measure(unit: Unit, other: Unit) -> bool:
    return unit.dimension == other.dimension and unit.factor < other.factor
