"""Readers for tables whose every row is in one dialect of `data_prep.formats.dialects`, whatever file holds them."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from data_prep.formats import jsonl, parquet
from data_prep.formats.table import row_from_record, rows_of, table_files
from data_prep.schema import Row, RowError


def matches(source: Path) -> bool:
    """Any table; what its rows look like is seen row by row."""
    return parquet.matches(source) or jsonl.matches(source)


def read(source: Path, split: str | None, *, image_root: Path | None = None, dialect: str) -> Iterator[Row | RowError]:
    """Rows in file order; one that lacks a column of `dialect` is an error."""
    container, suffixes = (parquet, (".parquet",)) if parquet.matches(source) else (jsonl, (".jsonl", ".json"))
    make = partial(row_from_record, dialect=dialect)
    for file in table_files(source, split, suffixes if source.is_file() else suffixes[:1]):
        yield from rows_of(container.read_records(file.path), file, split, image_root or file.path.parent, make)
