"""The registry of readers: a name, how to recognise a path, how to read it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.formats import (
    dialect,
    dynamath,
    formalgeo7k,
    geometry3k,
    hub,
    jsonl,
    logicvista,
    mathverse,
    mathvision,
    mathvista,
    mmk12,
    olympiadbench,
    parquet,
    puzzlevqa,
    tabmwp,
    we_math,
)
from data_prep.formats.dialects import DIALECTS
from data_prep.schema import Row, RowError


@dataclass(frozen=True, slots=True)
class Reader:
    """One layout.

    Attributes:
        matches: whether a path on disk has this layout.
        read: (source, split, *, image_root) to rows; a bad row is yielded as its RowError, and reading goes on.
    """

    matches: Callable[[Path], bool]
    read: Callable[..., Iterator[Row | RowError]]


# In the order of recognition: the layouts with the most marks first.
READERS: dict[str, Reader] = {
    module.__name__.rpartition(".")[2]: Reader(module.matches, module.read)
    for module in (
        geometry3k,
        formalgeo7k,
        mathvista,
        mathverse,
        mathvision,
        dynamath,
        puzzlevqa,
        we_math,
        tabmwp,
        logicvista,
        olympiadbench,
        mmk12,
        parquet,
        jsonl,
        hub,
    )
}
# Only by name: the tables above know these by their columns, row by row.
READERS |= {name: Reader(dialect.matches, partial(dialect.read, dialect=name)) for name in DIALECTS}
