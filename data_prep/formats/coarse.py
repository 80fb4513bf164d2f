"""Numbers in columns of few bits: as many digits as such a column is sure to hold, not those of a float64."""

from collections.abc import Callable, Mapping
from typing import Any

# Decimal digits that survive the way to such a number and back, nearly always.
_DIGITS = {"float16": 3, "float32": 7}

Mend = Callable[[Any], Any]


def sure_digits(value: float, kind: str) -> float:
    """A float of `kind` (float16, float32) as the decimal it stands for: 0.1 of 0.10000000149011612, 0.3333333 of 1/3.

    A fraction of more digits than the kind is sure of is rounded to those: a verifier takes what rounds to the gold
    (1/3), and never what merely has the noise of its last bits.
    """
    import numpy as np

    number = getattr(np, kind)(value)
    if not np.isfinite(number) or number == np.trunc(number):
        return float(str(number))
    return min(float(str(number)), float(f"{number:.{_DIGITS[kind]}g}"), key=lambda number: len(repr(number)))


def mends(schema: Any) -> Mapping[str, Mend]:
    """What to apply to the columns of a pyarrow schema that hold such numbers, at any depth."""
    return {field.name: mend for field in schema if (mend := _mend_of(field.type)) is not None}


def _mend_of(kind: Any) -> Mend | None:
    import pyarrow.types as types

    if types.is_float16(kind) or types.is_float32(kind):
        name = "float16" if types.is_float16(kind) else "float32"
        return lambda value: None if value is None else sure_digits(value, name)
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        mend = _mend_of(kind.value_type)
        return mend and (lambda values: None if values is None else [mend(value) for value in values])
    if types.is_struct(kind):
        parts = mends(list(kind))
        if parts:
            return lambda value: value and value | {name: mend(value[name]) for name, mend in parts.items()}
    return None
