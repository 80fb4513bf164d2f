"""Units of measure as typed values: a dimension and an exact factor; a unit is never deleted from an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from fractions import Fraction

from rewards.answers.unit_names import SECOND_SENSE, TABLE


@dataclass(frozen=True, slots=True)
class Unit:
    """`dimension`: sorted (base, exponent) pairs; `factor`: size in base units; `zero`: its zero in base units.

    `second` is the other unit that the same name may stand for (pounds, ¥).
    """

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction
    zero: Fraction = Fraction(0)
    second: Unit | None = None

    @property
    def is_degree(self) -> bool:
        """Whether this is the degree of arc, whose sign is optional."""
        return self.dimension == (("degree", 1),)

    def as_measured_like(self, other: Unit) -> Unit | None:
        """This unit in the sense in which it measures the same as `other`, or None if it does not."""
        if self.dimension == other.dimension:
            return self
        return self.second if self.second and self.second.dimension == other.dimension else None


# Derived units that meet others as powers of base units.
_EXPANDED = {"volume": (("length", 3),), "area": (("length", 2),), "none": ()}
# Kelvin at the zero of the scale; it counts only where the unit stands alone.
_ICE_POINT, _ZERO_F = Fraction(27315, 100), Fraction(45967, 180)
_ZEROS = dict.fromkeys(("°C", "Celsius", "celsius", "摄氏度"), _ICE_POINT) | dict.fromkeys(
    ("°F", "Fahrenheit", "fahrenheit"), _ZERO_F
)
_SCALE = re.compile(
    r"(?:(?<![A-Za-z])(?:degrees?|deg\.?)|°)\s*(?:(C)(?:elsius|entigrade)?|(F)(?:ahrenheit)?|K(?:elvins?)?)$",
    re.IGNORECASE,
)
_DIMENSIONS = (("sq", 2), ("平方", 2), ("carr", 2), ("cu", 3), ("立方", 3))
_SPEED = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmph": ("km", "h"), "kmh": ("km", "h"), "mps": ("m", "s")}


def _build() -> dict[str, Unit]:
    units = {}
    for line in TABLE.strip().split("\n"):
        base, factor, *names = line.split(" ")
        dimension = _EXPANDED.get(base, ((base, 1),))
        units |= {name: Unit(dimension, Fraction(factor), _ZEROS.get(name, Fraction(0))) for name in names}
    for name, (top, bottom) in _SPEED.items():
        units[name] = combine(units[top], units[bottom], -1)
    for name in [name for name in units if name.endswith("eter") and name[0].isupper()]:
        for prefix, power in (("Quadrat", 2), ("Kubik", 3)):
            units[prefix + name.lower()] = combine(_ONE, units[name], power)
    return units | {name: replace(units[name], second=units[other]) for name, other in SECOND_SENSE.items()}


def combine(a: Unit, b: Unit, exponent: int) -> Unit:
    """a * b**exponent; a temperature with other units is a difference of temperatures."""
    if a == _ONE and exponent == 1:
        return b
    powers = dict(a.dimension)
    for base, power in b.dimension:
        powers[base] = powers.get(base, 0) + power * exponent
    return Unit(tuple(sorted((k, v) for k, v in powers.items() if v)), a.factor * b.factor**exponent)


_ONE = Unit((), Fraction(1))
UNITS = _build()
_ASIAN = "".join(sorted({name[0] for name in UNITS if "\u3040" <= name[0] <= "\u9fff"}))
_LATIN_NAMES, _ASIAN_NAMES = (
    "|".join(re.escape(name) for name in sorted(UNITS, key=len, reverse=True) if (name[0] in _ASIAN) is asian)
    for asian in (False, True)
)
_NAME = rf"(?:(?:{_LATIN_NAMES})(?![^\W\d_])|(?:{_ASIAN_NAMES}))"
_POWER = r"(?:\s*\^\s*\{?\s*-?[1-4]\s*\}?|[23](?![\d.]))?"
_BEFORE = r"(?:(?:square|sq\.?|cubic|cu\.?)\s+|平方|立方)"
_BEHIND = r"(?:\s+(?:squared|cubed|carrée?s?|cubes?))"
_PER = r"/|\b(?:per|pro|par|an?|each|every)\b|每"
_ONE_UNIT = rf"{_BEFORE}?{_NAME}{_POWER}{_BEHIND}?"
_EXPRESSION = rf"{_ONE_UNIT}(?:\s*(?:{_PER}|\*|\s)\s*{_ONE_UNIT})*"
_TAIL = re.compile(rf"(?<![A-Za-z\\_^])(?:-(?=[a-z]{{2}}))?({_EXPRESSION})$")
_RATE = re.compile(rf"\s*((?:{_PER})\s*{_ONE_UNIT})$")
# 每小时60千米 is 60 km/h.
_RATE_FRONT = re.compile(rf"^(每{_ONE_UNIT})\s*(?=-?\d)")
_MEASURED = re.compile(rf"\s*\(\s*({_EXPRESSION})\s*\)$")
_PART = re.compile(
    rf"(?P<op>{_PER}|\*)?\s*(?P<pre>{_BEFORE})?(?P<name>{_NAME})(?P<pow>{_POWER})(?P<post>{_BEHIND})?\s*"
)
_CURRENCY_FRONT = re.compile(r"^(?:US|HK)?\s*([¤£€¥₹])\s*(?=[-\d.])")
# The last name of a text, without its power: a quick look before the expression above is tried.
_LAST_NAME = re.compile(rf"(°?[^\W\d_.]+\.?|[°¢¤£€¥₹'\"])\s*(?:\^\s*\{{?\s*-?[1-4]\s*\}}?|[23])?{_BEHIND}?$")
_NO_DIGIT = re.compile(r"[^-\d]")
_NAME_ENDS = tuple(".°¢¤£€¥₹'\"}1234")
# What only says what a measure is the measure of.
_DIRECTION = re.compile(
    r"\s+(?:long|tall|high|wide|deep|thick|old|of age|in (?:length|height|width|total|all))$|[长宽高深厚]$"
)


def parse_unit(text: str) -> Unit | None:
    """The unit a text names as a whole, or None."""
    found = _TAIL.search(text.strip())
    return _read(found.group(1)) if found and not text[: found.start()].strip() else None


def split_unit(text: str) -> tuple[str, Unit | None]:
    """(value text, unit or None) of a cleaned quantity such as "5 cm^2", "£3", "60°" or "$18 per day"."""
    front = _CURRENCY_FRONT.match(text)
    if front:
        unit, text = UNITS[front.group(1)], text[front.end() :]
        rate = _RATE.search(text) if _ends_with_name(text) else None
        return (text[: rate.start()], combine(unit, _read(rate[1]) or _ONE, 1)) if rate else (text, unit)
    if text.startswith("每") and (each := _RATE_FRONT.match(text)):
        text = text[each.end() :] + each[1]
    if text.endswith(")") and (abbreviated := _MEASURED.search(text)):
        value, unit = split_unit(text[: abbreviated.start()])
        again = _read(abbreviated[1])
        return (value, again) if value[-1:].isdigit() and unit in (None, again) else (text, None)
    scale = _SCALE.search(text)
    if scale:
        text = text[: scale.start()] + ("°C" if scale[1] else "°F" if scale[2] else "K")
    measured = _DIRECTION.sub("", text) if text[-1:].islower() or text[-1:] in "长宽高深厚" else text
    found = _TAIL.search(measured) if _ends_with_name(measured) else None
    if not found or not measured[: found.start()].strip():
        return text, None
    return measured[: found.start()].strip(), _read(found.group(1))


def _ends_with_name(text: str) -> bool:
    if not (text[-1:].isalpha() or text.endswith(_NAME_ENDS)):
        return False
    last = _LAST_NAME.search(text, max(0, len(text) - 60))
    return bool(last) and (last[1] in UNITS or not last[1].isascii() or last[1][:1] in "°¢")


def _read(text: str) -> Unit | None:
    unit, position = _ONE, 0
    while position < len(text):
        part = _PART.match(text, position)
        if not part or part.end() == position:
            return None
        power = int(_NO_DIGIT.sub("", part["pow"]) or 1)
        if words := f"{part['pre'] or ''}{part['post'] or ''}":
            power *= next((factor for word, factor in _DIMENSIONS if word in words), 1)
        sign = -1 if (part["op"] or "*") != "*" else 1
        unit = combine(unit, UNITS[part["name"]], sign * power)
        position = part.end()
    return unit
