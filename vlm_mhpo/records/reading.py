"""JSON records that others wrote, read for a page: damaged lines, texts that UTF-8 or HTML cannot hold, other versions.

A record class is strict where it is written. `tolerant` makes the same class one that a page can still read when the
writer was older or newer.
"""

from __future__ import annotations

import json
import math
import re
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError, create_model

from vlm_mhpo.records.errors import ReportError

R = TypeVar("R", bound=BaseModel)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x0c\x0e-\x1f\x7f]")
# What a record is nothing without.
_REQUIRED = {"id", "name", "model", "official", "correct"}
# What stands for a missing value; any other is None.
_DEFAULTS: dict[Any, Any] = {str: "", int: 0, tuple: (), dict: {}, bool: False}


def clean_text(value: object) -> str:
    """Text of a JSON value: None is empty; lone surrogates become '?' and control characters U+FFFD.

    UTF-8 cannot hold the first, and neither HTML nor a font has a place for the second.
    """
    text = "" if value is None else str(value)
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode("utf-8", "replace").decode("utf-8"))


def _finite(value: object) -> object:
    """None for NaN and infinities, which a page cannot place on an axis; anything else unchanged."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Text = Annotated[str, BeforeValidator(clean_text)]
MaybeText = Annotated[str, BeforeValidator(clean_text)] | None
MaybeNumber = Annotated[float | None, BeforeValidator(_finite)]


class _Tolerance(BaseModel):
    """What a page allows: fields that are not named are kept as they are, and NaN becomes None."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)


@cache
def tolerant(kind: type[R]) -> type[R]:
    """The record class as a page reads it: texts cleaned, NaN None, unknown fields kept aside, missing ones a default.

    The default is empty for texts, tuples and mappings, 0 for counts and None for numbers; only names, ids and
    verdicts must be there. Numbers may so be None whatever the class says.
    """
    fields: dict[str, Any] = {}
    for name, field in kind.model_fields.items():
        required = name in _REQUIRED and field.annotation in (str, bool)
        fields[name] = (_loose(field.annotation), ... if required else _default(field.annotation))
    return create_model(kind.__name__, __base__=(kind, _Tolerance), **fields)


def _loose(annotation: Any) -> Any:
    """A field's type as a page reads it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return tolerant(annotation)
    parts = get_args(annotation)
    match get_origin(annotation) or annotation:
        case kind if kind is str:
            return Text
        case kind if kind is float:
            return MaybeNumber
        case kind if kind is tuple:
            return tuple[_loose(parts[0]), ...]
        case kind if kind is dict:
            return dict[Text, _loose(parts[1])]
        case kind if kind in (Union, UnionType):
            return Union[tuple(_loose(part) for part in parts)]  # noqa: UP007
        case kind if kind is Literal:
            return Any
    return annotation


def _default(annotation: Any) -> Any:
    """What stands for a field that is missing."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        loose = tolerant(annotation)
        return None if any(field.is_required() for field in loose.model_fields.values()) else loose()
    return None if NoneType in get_args(annotation) else _DEFAULTS.get(get_origin(annotation) or annotation)


def json_lines(path: Path, notes: list[str]) -> list[tuple[str, dict]]:
    """(place, object) of each line; a last line without its newline is a run that was cut off and is left out."""
    rows = []
    lines = read_text(path).split("\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                notes.append(f"The last line of {path.name} is cut off and is left out.")
                break
            raise ReportError(f"{where}: not JSON ({error}); repair or remove the line.") from error
        if not isinstance(row, dict):
            raise ReportError(f"{where}: expected a JSON object, found {type(row).__name__}; repair the file.")
        rows.append((where, row))
    return rows


def read_text(path: Path) -> str:
    """A file's text; bytes that are not UTF-8 (a character cut in half) become U+FFFD."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise ReportError(f"{path} cannot be read: {error.strerror}.") from error


def parse(record: type[R], content: str | dict, where: str) -> R:
    """A record from JSON text or from an object; the first thing that is wrong becomes the message."""
    try:
        value = json.loads(content) if isinstance(content, str) else content
        return record.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ReportError(f"{where}: {place}: {first['msg']}; the file is damaged, write it again.") from error
    except ValueError as error:
        raise ReportError(f"{where}: not JSON ({error}); the file is damaged, write it again.") from error
