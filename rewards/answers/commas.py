"""Decimals written with a comma, as in most of Europe: a second reading of a text whose first one differs."""

from __future__ import annotations

import re

_DECIMAL = re.compile(r"(?<![\d.,])(?:[1-9]\d{0,2}(?:[. ]\d{3})+|\d+),\d+(?![\d,]|\.\d)")
# 1,5千 is no decimal: languages in these letters write points.
_EAST_ASIAN = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_THOUSANDS = re.compile(r"[1-9]\d{0,2},\d{3}")


def with_decimal_points(text: str) -> str | None:
    """2,74 as 2.74, 1.000,99 as 1000.99 and (1,5; 2,5) as (1.5; 2.5), or None where no comma can be a decimal one.

    A comma before a blank, in brackets, or between digits as 1,234 has it, separates; and one kind stands in a text.
    """
    if "," not in text or (text[0] in "([{\\" and ";" not in text) or _EAST_ASIAN.search(text):
        return None
    numbers = _DECIMAL.findall(text)
    if text.count(",") != len(numbers) or any(_THOUSANDS.fullmatch(number) for number in numbers):
        return None
    return _DECIMAL.sub(lambda number: re.sub("[. ]", "", number.group()).replace(",", "."), text)
