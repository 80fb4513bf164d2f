"""Units of measure as typed values: a dimension and an exact factor; a unit is never deleted from an answer."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class Unit:
    """`dimension`: sorted (base, exponent) pairs; `factor`: size in base units; `zero`: its zero in base units."""

    dimension: tuple[tuple[str, int], ...]
    factor: Fraction
    zero: Fraction = Fraction(0)

    @property
    def is_degree(self) -> bool:
        """Whether this is the degree of arc, whose sign is optional."""
        return self.dimension == (("degree", 1),)


_TABLE = """
length 1 m meter meters metre metres
length 1/1000 mm millimeter millimeters millimetre millimetres
length 1/100 cm centimeter centimeters centimetre centimetres
length 1/10 dm decimeter decimeters decimetre decimetres
length 1000 km kilometer kilometers kilometre kilometres
length 127/5000 inch inches in in.
length 381/1250 ft foot feet
length 1143/1250 yd yard yards
length 201168/125 mi mile miles
volume 1/1000 L l liter liters litre litres
volume 1/1000000 mL ml milliliter milliliters millilitre millilitres
mass 1 kg kilogram kilograms kilogramme kilogrammes
mass 1/1000 g gram grams gramme grammes
mass 1/1000000 mg milligram milligrams
mass 1000 tonne tonnes
mass 45359237/100000000 lb lbs pound-mass
time 1 s sec secs second seconds
time 1/1000 ms millisecond milliseconds
time 60 min mins minute minutes
time 3600 h hr hrs hour hours
time 86400 day days
time 604800 week weeks
year 1 yr year years
month 1 month months
degree 1 ° deg degree degrees
radian 1 rad radian radians
temperature 1 °C Celsius celsius
temperature 5/9 °F Fahrenheit fahrenheit
temperature 1 K Kelvin kelvin kelvins
usd 1 dollar dollars USD ¤
usd 1/100 cent cents ¢
eur 1 euro euros € EUR
gbp 1 £ GBP
yen 1 ¥ yen yuan RMB
rupee 1 ₹ rupee rupees
force 1 N newton newtons
energy 1 J joule joules
energy 1000 kJ kilojoule kilojoules
power 1 W watt watts
power 1000 kW kilowatt kilowatts
voltage 1 V volt volts
current 1 A ampere amperes amp amps
resistance 1 Ω ohm ohms
pressure 1 Pa pascal pascals
pressure 1000 kPa
frequency 1 Hz hertz
amount 1 mol mole moles
none 1 unit units
"""
# Derived units that meet others as powers of base units.
_EXPANDED = {"volume": (("length", 3),), "none": ()}
# Kelvin at the zero of the scale; it counts only where the unit stands alone.
_ICE_POINT, _ZERO_F = Fraction(27315, 100), Fraction(45967, 180)
_ZEROS = dict.fromkeys(("°C", "Celsius", "celsius"), _ICE_POINT) | dict.fromkeys(
    ("°F", "Fahrenheit", "fahrenheit"), _ZERO_F
)
_SCALE = re.compile(
    r"(?:(?<![A-Za-z])(?:degrees?|deg\.?)|°)\s*(?:(C)(?:elsius|entigrade)?|(F)(?:ahrenheit)?|K(?:elvins?)?)$",
    re.IGNORECASE,
)
_SPEED = {"mph": ("mi", "h"), "kph": ("km", "h"), "kmph": ("km", "h"), "kmh": ("km", "h"), "mps": ("m", "s")}


def _build() -> dict[str, Unit]:
    units = {}
    for line in _TABLE.split("\n"):
        if line:
            base, factor, *names = line.split(" ")
            dimension = _EXPANDED.get(base, ((base, 1),))
            units |= {name: Unit(dimension, Fraction(factor), _ZEROS.get(name, Fraction(0))) for name in names}
    for name, (top, bottom) in _SPEED.items():
        units[name] = combine(units[top], units[bottom], -1)
    return units


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
_NAME = "(?:" + "|".join(re.escape(name) for name in sorted(UNITS, key=len, reverse=True)) + ")(?![A-Za-z])"
_POWER = r"(?:\s*\^\s*\{?\s*-?[1-4]\s*\}?|[23](?![\d.]))?"
_ONE_UNIT = rf"(?:(?:square|sq\.?|cubic|cu\.?)\s+)?{_NAME}{_POWER}(?:\s+(?:squared|cubed))?"
_EXPRESSION = rf"{_ONE_UNIT}(?:\s*(?:/|\bper\b|\*|\s)\s*{_ONE_UNIT})*"
_TAIL = re.compile(rf"(?<![A-Za-z\\_^])(?:-(?=[a-z]{{2}}))?({_EXPRESSION})$")
_PART = re.compile(
    rf"(?P<op>/|\bper\b|\*)?\s*(?P<pre>(?:square|sq\.?|cubic|cu\.?)\s+)?(?P<name>{_NAME})(?P<pow>{_POWER})"
    r"(?P<post>\s+(?:squared|cubed))?\s*"
)
_CURRENCY_FRONT = re.compile(r"^(?:US|HK)?\s*([¤£€¥₹])\s*(?=[-\d.])")


def parse_unit(text: str) -> Unit | None:
    """The unit a text names as a whole, or None."""
    found = _TAIL.search(text.strip())
    return _read(found.group(1)) if found and not text[: found.start()].strip() else None


def split_unit(text: str) -> tuple[str, Unit | None]:
    """(value text, unit or None) of a cleaned quantity such as "5 cm^2", "£3" or "60°"."""
    front = _CURRENCY_FRONT.match(text)
    if front:
        return text[front.end() :], UNITS[front.group(1)]
    scale = _SCALE.search(text)
    if scale:
        text = text[: scale.start()] + ("°C" if scale[1] else "°F" if scale[2] else "K")
    found = _TAIL.search(text)
    if not found or not text[: found.start()].strip():
        return text, None
    return text[: found.start()].strip(), _read(found.group(1))


def _read(text: str) -> Unit | None:
    unit, position = _ONE, 0
    while position < len(text):
        part = _PART.match(text, position)
        if not part or part.end() == position:
            return None
        power = int(re.sub(r"[^-\d]", "", part["pow"]) or 1)
        words = f"{part['pre'] or ''}{part['post'] or ''}"
        power *= 2 if "sq" in words else 3 if "cu" in words else 1
        sign = -1 if part["op"] in ("/", "per") else 1
        unit = combine(unit, UNITS[part["name"]], sign * power)
        position = part.end()
    return unit
