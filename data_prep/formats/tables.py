"""The reader of plain tables in JSON Lines, JSON, parquet, CSV and TSV, our own prepared folders among them.

What the rows look like is seen row by row; see `data_prep.formats.table` and `data_prep.formats.dialects`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.formats import jsonl, parquet, separated
from data_prep.formats.table import holds_one, is_table, row_from_record, rows_of, table_files
from data_prep.schema import Row, RowError


@dataclass(frozen=True, slots=True)
class Container:
    """A kind of file that holds tables.

    Attributes:
        suffixes: of a file; in a folder only files with the first count.
        records: (number from 1, columns by name, or why the row is bad) of each row of a file.
        check: of a folder or file, before it is read; may raise DataError.
    """

    suffixes: tuple[str, ...]
    records: Callable[[Path], Iterator[tuple[int, Any]]]
    check: Callable[[Path], None] = lambda source: None

    def matches(self, source: Path) -> bool:
        """Whether `source` is such a file, or a folder that holds some."""
        return is_table(source, self._suffixes(source))

    def read(
        self,
        source: Path,
        split: str | None,
        *,
        image_root: Path | None = None,
        **options: Any,
    ) -> Iterator[Row | RowError]:
        """Rows in file order; image paths are relative to `image_root`, by default the folder of the file.

        Args:
            options: of `row_from_record`.
        """
        self.check(source)
        make = partial(row_from_record, **options)
        for file in table_files(source, split, self._suffixes(source)):
            yield from rows_of(self.records(file.path), file, split, image_root or file.path.parent, make)

    def _suffixes(self, source: Path) -> tuple[str, ...]:
        """Those that count; of a folder that holds none of the first kind also one file of another."""
        if source.is_file() or is_table(source, self.suffixes[:1]):
            return self.suffixes if source.is_file() else self.suffixes[:1]
        others = [suffix for suffix in self.suffixes[1:] if is_table(source, (suffix,))]
        return tuple(others) if len(others) == 1 and holds_one(source, others[0]) else self.suffixes[:1]


PARQUET = Container((".parquet",), parquet.read_records, parquet.check_manifest)
JSONL = Container((".jsonl", ".json", ".jsonl.gz", ".json.gz"), jsonl.read_records)
SEPARATED = Container((".csv", ".tsv"), separated.read_records)
CONTAINERS = (PARQUET, JSONL, SEPARATED)


def matches(source: Path) -> bool:
    """Any table."""
    return any(container.matches(source) for container in CONTAINERS)


def read(source: Path, split: str | None, **options: Any) -> Iterator[Row | RowError]:
    """See `Container.read`."""
    container = next(container for container in CONTAINERS if container.matches(source))
    return container.read(source, split, **options)
