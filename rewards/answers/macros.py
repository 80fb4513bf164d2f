r"""LaTeX macros that carry an argument without changing its value: colours, siunitx numbers and units, empty groups."""

from __future__ import annotations

import re

_COLOURED = re.compile(r"\\(?:textcolor|colorbox)\s*(?:\[[^\[\]]*\])?\s*\{[^{}]*\}\s*(?=\{)")
_COLOUR = re.compile(r"\\color\s*(?:\[[^\[\]]*\])?\s*\{[^{}]*\}")
_ARGUMENT = r"\s*(?:\[[^\[\]]*\])?\s*\{([^{}]*)\}"
_NUMBER = re.compile(rf"\\(?:num|number){_ARGUMENT}")
# The unit may hold one level of braces: \unit{cm^{2}}.
_UNIT_ARGUMENT = r"\s*(?:\[[^\[\]]*\])?\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
_QUANTITY = re.compile(rf"\\(?:SI|qty|quantity){_ARGUMENT}{_UNIT_ARGUMENT}")
_UNIT = re.compile(rf"\\(?:si|unit){_UNIT_ARGUMENT}")
_ANGLE = re.compile(rf"\\ang{_ARGUMENT}")
_EMPTY = re.compile(r"(?<![A-Za-z}\]^_])\{\}|(?<=\d)\s*\{\}")
_DEGREE_WORD = re.compile(r"\\?textdegree(?![A-Za-z])")
_BARE_FONT = re.compile(r"\\(?:mathrm|mathbf|mathit|mathsf|boldsymbol|bm)\s*(?=\\[A-Za-z]|[A-Za-z\d])")
_HAT_NAME = re.compile(r"\\(?:hat|widehat)\s*(?:\{\s*([a-z])\s*\}|([a-z]))(?=\s*=)")
_PREFIXES = {"milli": "m", "centi": "c", "deci": "d", "kilo": "k"}
_UNITS = {
    "metre": "m", "meter": "m", "gram": "g", "litre": "L", "liter": "L", "second": "s", "minute": "min", "hour": "h",
    "day": "days", "degree": "°", "newton": "N", "joule": "J", "watt": "W", "volt": "V", "ampere": "A",
    "ohm": "Ω", "pascal": "Pa", "hertz": "Hz", "kelvin": "K", "mole": "mol", "celsius": "°C", "percent": "%",
    "radian": "rad", "degreeCelsius": "°C", "kilogram": "kg",
}  # fmt: skip
_UNIT_MACRO = re.compile(r"\\([A-Za-z]+)")
_POWERS = {"squared": "^2 ", "cubed": "^3 "}


_ANY = re.compile(r"\\(?:(?:text)?color|num|SI|qty|quantity|si|unit|ang|math|bold|bm|hat|widehat)")


def expand_macros(text: str) -> str:
    """The text with each such macro replaced by what it typesets."""
    if not (_ANY.search(text) or "{}" in text or "textdegree" in text):
        return text
    if "color" in text:
        text = _COLOUR.sub("", _COLOURED.sub("", text))
    text = _NUMBER.sub(lambda match: match[1], text)
    text = _QUANTITY.sub(lambda match: f"{match[1]} {_unit_names(match[2])}", text)
    text = _UNIT.sub(lambda match: f" {_unit_names(match[1])}", text)
    text = _ANGLE.sub(lambda match: _angle(match[1]), text)
    text = _DEGREE_WORD.sub("°", _EMPTY.sub("", text))
    return _HAT_NAME.sub(lambda match: match[1] or match[2], _BARE_FONT.sub("", text))


def _unit_names(text: str) -> str:
    r"""\centi\metre\squared as cm^2; a unit written in letters as it is."""
    if "\\" not in text:
        return text
    return _UNIT_MACRO.sub(_unit_part, text.replace("\\per", "/").replace("\\square", "sq ").replace("\\cubic", "cu "))


def _unit_part(match: re.Match[str]) -> str:
    name = match[1]
    if name in _POWERS:
        return _POWERS[name]
    return _PREFIXES.get(name) or _UNITS.get(name) or match.group()


def _angle(text: str) -> str:
    """Degrees, or degrees; minutes; seconds."""
    marks = ("°", "'", '"')
    parts = [part.strip() for part in text.split(";")][:3]
    return "".join(part + mark for part, mark in zip(parts, marks, strict=False) if part)
