"""The registry of readers: a name, how to recognise a path, how to read it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from data_prep.formats import (
    chartqa,
    charxiv,
    dynamath,
    formalgeo7k,
    geometry3k,
    hallusionbench,
    hub,
    logicvista,
    m3cot,
    mathverse,
    mathvision,
    mathvista,
    mm_math,
    mmk12,
    olympiadbench,
    puzzlevqa,
    saved,
    tables,
    tabmwp,
    we_math,
    webdataset,
)
from data_prep.formats.dialects import DIALECTS
from data_prep.schema import Row, RowError


@dataclass(frozen=True, slots=True)
class Reader:
    """One layout.

    Attributes:
        matches: whether a path on disk has this layout.
        can_be: whether a path that is said to have this layout may have it; None: as `matches`.
        read: (source, split, *, image_root) to rows; a bad row is yielded as its RowError, and reading goes on.
    """

    matches: Callable[[Path], bool]
    read: Callable[..., Iterator[Row | RowError]]
    can_be: Callable[[Path], bool] | None = None


_LAYOUTS = (mathvista, mathverse, mathvision, dynamath, puzzlevqa, we_math, tabmwp, logicvista, olympiadbench, mmk12,
            charxiv, hallusionbench, mm_math, m3cot, chartqa)  # fmt: skip

# In the order of recognition: the layouts with the most marks first.
READERS: dict[str, Reader] = {
    "geometry3k": Reader(geometry3k.matches, geometry3k.read),
    "formalgeo7k": Reader(formalgeo7k.matches, formalgeo7k.read),
    **{module.LAYOUT.name: Reader(module.LAYOUT.matches, module.LAYOUT.read) for module in _LAYOUTS},
    "saved": Reader(saved.matches, saved.read),
    "parquet": Reader(tables.PARQUET.matches, tables.PARQUET.read),
    "webdataset": Reader(webdataset.matches, webdataset.read, webdataset.can_be),
    "jsonl": Reader(tables.JSONL.matches, tables.JSONL.read),
    "separated": Reader(tables.SEPARATED.matches, tables.SEPARATED.read),
    "hub": Reader(hub.matches, hub.read),
    # Only by name: the tables above know these by their columns, row by row.
    **{name: Reader(tables.matches, partial(tables.read, dialect=name)) for name in DIALECTS},
}

# Readers of plain tables, whose columns a user may name.
TABLES = frozenset({"saved", "parquet", "webdataset", "jsonl", "separated", "hub", *DIALECTS})
