"""Ways to write one number: repeating decimals, grouped thousands, powers of ten, counting words."""

from __future__ import annotations

import re
from fractions import Fraction

_MACRON = "[\u0304\u0305\u0307]"
# 0.1\overline{6}, 0.\dot{1}\dot{8}, 0.\dot{1}4285\dot{7}, 0.1(6): whole part, decimals before the period, the period.
_OVERLINED = re.compile(r"(?<!\d)(\d+)\.(\d*)\s*\\(?:overline|bar|overbar)\s*(?:\{\s*(\d{1,40})\s*\}|(\d))")
_DOTTED = re.compile(r"(\d+)\.(\d*)\s*\\dot\s*(?:\{\s*(\d)\s*\}|(\d))(?:(\d{0,38})\s*\\dot\s*(?:\{\s*(\d)\s*\}|(\d)))?")
# 0.5(20) inside a calculation is a product, and so it is read there.
_BRACKETED = re.compile(
    r"(?<![\w.])(\d+)\.()\((\d{1,40})\)|(?<=^-)(\d+)\.(\d+)\((\d{1,40})\)(?=$|\s?%$)|^(\d+)\.(\d+)\((\d{1,40})\)(?=$|\s?%$)"
)
_MARKED = re.compile(rf"(?<!\d)(\d+)\.(\d*?)(\d){_MACRON}(?:(\d{{0,38}})(\d){_MACRON})?")
_SPACED = re.compile(r"(?<![\w.,^])(?<!\d )[1-9]\d{0,2}(?: \d{3})+(?!\d| \d|\s*/)")
_DOTS = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:\.\d{3}){2,}(?![\d.])")
_APOSTROPHES = re.compile(r"(?<![\w.,])[1-9]\d{0,2}(?:'\d{3})+(?!['\d])")
_CHINESE_FRACTION = re.compile(r"(?<![\d.])(\d{1,9})\s*分之\s*(\d{1,9})(?![\d.])")
_TIMES_TEN = re.compile(r"(?<=\d)\s*[xX]\s*(?=10\s*(?:\^|\*\*))")
MULTIPLIERS = {
    word: Fraction(factor)
    for factor, words in {
        12: "dozen Dutzend douzaine douzaines",
        100: "hundred Hundert hundert 百",
        1_000: "thousand Tausend tausend mille 千",
        10_000: "万 萬",
        10**6: "million Million Millionen millions",
        10**8: "亿 億",
        10**9: "billion Milliarde Milliarden milliard milliards",
        10**12: "trillion 万亿",
    }.items()
    for word in words.split()
}
_MULTIPLIER = re.compile(r"(?<=[\d)}])\s*(" + "|".join(sorted(MULTIPLIERS, key=len, reverse=True)) + r")(?![^\W\d_])$")


def plain_numerals(text: str) -> str:
    """One text with repeating decimals as fractions, grouped digits as one run, and 3 x 10^8 as 3 * 10^8."""
    if "." in text:
        text = without_periods(text)
        text = _DOTS.sub(lambda match: match.group().replace(".", ""), text)
    if " " in text:
        text = _SPACED.sub(lambda match: match.group().replace(" ", ""), text)
    if "'" in text:
        text = _APOSTROPHES.sub(lambda match: match.group().replace("'", ""), text)
    if "分之" in text:
        text = _CHINESE_FRACTION.sub(r"\\frac{\2}{\1}", text)
    return _TIMES_TEN.sub(" * ", text) if "x" in text or "X" in text else text


def without_periods(text: str) -> str:
    """The text with 0.1666... written with a bar, dots or brackets as (15/90)."""
    if "\\" in text:
        text = _OVERLINED.sub(lambda m: _fraction(m[1], m[2], m[3] or m[4]), text)
        text = _DOTTED.sub(lambda m: _fraction(m[1], m[2], (m[3] or m[4]) + (m[5] or "") + (m[6] or m[7] or "")), text)
    if "(" in text:
        text = _BRACKETED.sub(lambda m: _fraction(*(part for part in m.groups() if part is not None)), text)
    if not text.isascii():
        text = _MARKED.sub(_combining, text)
    return text


def _combining(match: re.Match[str]) -> str:
    """A bar or dot above each digit of a period (all marked), or dots above its first and last one."""
    return _fraction(match[1], match[2], match[3] + (match[4] or "") + (match[5] or ""))


def _fraction(whole: str, decimals: str, period: str) -> str:
    shift, cycle = 10 ** len(decimals), 10 ** len(period) - 1
    top = int(whole + decimals) * cycle + int(period)
    return f"({top}/{shift * cycle})"


def split_multiplier(text: str) -> tuple[str, Fraction]:
    """(rest, factor) of a number with a counting word behind it, as in 5 million or 2.5万; (text, 1) without one."""
    factor = Fraction(1)
    while (found := _MULTIPLIER.search(text)) and (rest := text[: found.start()].strip()):
        text, factor = rest, factor * MULTIPLIERS[found[1]]
        if factor > 10**16:
            break
    return text, factor
