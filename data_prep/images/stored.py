"""Images that lie inside tables: a row holds a small handle, and the bytes are read at the moment they are needed.

A parquet file can be read by row group only. One of at most `MAX_GROUP_BYTES` is read as it is; a column with larger
ones (some writers put a whole file into one group) is copied once to an uncompressed Arrow file, which is mapped into
memory: see `data_prep.caching` for where it lies.
"""

from __future__ import annotations

import hashlib
import os
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from threading import Lock
from typing import Any, Protocol

from data_prep import caching

MAX_GROUP_BYTES = 2**24
# Of the row groups that were read last; at least one is kept, which may have MAX_GROUP_BYTES.
KEPT_BYTES = 2**24
_ROWS_AT_ONCE = 16

Keys = tuple[str | int, ...]
"""The way to a value inside a row: its column, then places in lists and names of fields."""


class Table(Protocol):
    """What can give a value of a row again."""

    def value(self, row: int, keys: Keys) -> Any:
        """The value of row `row`, from 0, at `keys`."""

    def __str__(self) -> str:
        """The file or name, for messages."""


@dataclass(frozen=True, slots=True)
class StoredImage:
    """The handle of an encoded image inside a table; small, hashable, and valid in any process that sees the table.

    Two are equal when their bytes are.

    Attributes:
        table: where it lies.
        row: from 0.
        keys: see `Keys`.
        digest: BLAKE2b of its bytes when the row was read; what is read later must have the same.
    """

    table: Table = field(compare=False)
    row: int = field(compare=False)
    keys: Keys = field(compare=False)
    digest: bytes

    def __str__(self) -> str:
        return f"{self.table}, row {self.row + 1}, {self.keys[0]}"

    def read_bytes(self) -> bytes:
        """The encoded bytes.

        Raises:
            OSError: the table cannot be read any more, or holds something else there than when its rows were read.
        """
        try:
            data = self.table.value(self.row, self.keys)
        # A table that was replaced may lack the row, the column or the structure.
        except (LookupError, TypeError, ValueError, NotImplementedError) as error:
            raise OSError(f"{_CHANGED} ({type(error).__name__}: {error})") from error
        if not isinstance(data, bytes) or _digest(data) != self.digest:
            raise OSError(_CHANGED)
        return data


ImageSource = bytes | Path | StoredImage
"""What a row holds for an image: its encoded bytes, its file, or its place in a table."""
VideoSource = ImageSource | tuple[ImageSource, ...]
"""What a row holds for a video: the same of its file, or those of its frames, in order."""

_CHANGED = "the table has changed since its rows were read; start again"


@dataclass(frozen=True, slots=True)
class ParquetTable:
    """A parquet file as a `Table`."""

    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def value(self, row: int, keys: Keys) -> Any:
        """See `Table`; what was read of the file counts only while its size and time are the same."""
        state = os.stat(self.path)
        file = _File(self.path, state.st_size, state.st_mtime_ns)
        starts, sizes = _groups(file, str(keys[0]))
        group = bisect_right(starts, row) - 1
        if max(sizes) > MAX_GROUP_BYTES:
            value = _copied_column(file, str(keys[0]))[row]
        else:
            value = _groups_kept.column(file, str(keys[0]), group)[row - starts[group]]
        for key in keys[1:]:
            value = value[key]
        return value.as_py()


def with_handles(record: Any, table: Table, row: int) -> Any:
    """The record with a `StoredImage` in the place of bytes, at any depth."""
    return _handled(record, table, row, ())


def release_memory() -> None:
    """Give back what pyarrow freed and kept for itself: the largest page of a parquet file may hold 1024 images."""
    import pyarrow

    pyarrow.default_memory_pool().release_unused()


def _handled(value: Any, table: Table, row: int, keys: Keys) -> Any:
    if isinstance(value, bytes):
        return StoredImage(table, row, _shared(keys), _digest(value))
    if isinstance(value, dict):
        return {name: _handled(part, table, row, (*keys, name)) for name, part in value.items()}
    if isinstance(value, list):
        return [_handled(part, table, row, (*keys, place)) for place, part in enumerate(value)]
    return value


@lru_cache(maxsize=1024)
def _shared(keys: Keys) -> Keys:
    """One tuple for all rows: a million rows would hold a million equal ones."""
    return keys


def _digest(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=16).digest()


@dataclass(frozen=True, slots=True)
class _File:
    """A state of a file, so that nothing that was read of another state is used."""

    path: Path
    size: int
    mtime_ns: int


@lru_cache(maxsize=64)
def _footer(file: _File) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_metadata(file.path)


@lru_cache(maxsize=256)
def _groups(file: _File, column: str) -> tuple[list[int], list[int]]:
    """The first row of each row group, and the bytes that its share of a column unpacks to."""
    footer = _footer(file)
    groups = [footer.row_group(index) for index in range(footer.num_row_groups)]
    starts = list(accumulate((group.num_rows for group in groups), initial=0))[:-1]
    leaves = [
        index for index in range(footer.num_columns) if f"{footer.schema.column(index).path}.".startswith(f"{column}.")
    ]
    return starts, [sum(group.column(index).total_uncompressed_size for index in leaves) for group in groups]


class _GroupsKept:
    """The row groups that were read last: of a small table all, so that rows in any order unpack each group once."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._columns: OrderedDict[tuple[_File, str, int], Any] = OrderedDict()
        # Prompts are also prepared in a thread.
        self._lock = Lock()

    def column(self, file: _File, column: str, group: int) -> Any:
        """The column of one row group."""
        place = (file, column, group)
        with self._lock:
            if place not in self._columns:
                self._columns[place] = _group_column(*place)
            self._columns.move_to_end(place)
            while len(self._columns) > 1 and sum(held.nbytes for held in self._columns.values()) > self._max_bytes:
                self._columns.popitem(last=False)
            return self._columns[place]


_groups_kept = _GroupsKept(KEPT_BYTES)


def _group_column(file: _File, column: str, group: int) -> Any:
    """The column of one row group, read."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path, metadata=_footer(file), memory_map=True) as table:
        found = table.read_row_group(group, columns=[column], use_threads=False).column(0)
    release_memory()
    return found


@lru_cache(maxsize=64)
def _copied_column(file: _File, column: str) -> Any:
    """The column of the whole file, mapped from its Arrow copy, which is made where there is none."""
    import pyarrow.ipc

    identity = hashlib.sha256(repr((str(file.path.resolve()), file.size, file.mtime_ns, column)).encode()).hexdigest()
    name = f"{identity[:32]}.arrow"
    near = file.path.resolve().parent
    try:
        path = next(caching.kept(name, near), None) or caching.keep(
            name, near, lambda target: _copy(file, column, target), once=True
        )
    except OSError as error:
        raise OSError(f"its row groups are too large to read rows from and it cannot be copied: {error}") from error
    # Nothing is read here but where each batch lies.
    return pyarrow.ipc.open_file(pyarrow.memory_map(str(path))).read_all().column(0)


def _copy(file: _File, column: str, target: Path) -> None:
    import pyarrow.ipc
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(file.path, memory_map=True) as table:
        batches = table.iter_batches(_ROWS_AT_ONCE, columns=[column], use_threads=False)
        first = next(batches)
        with pyarrow.ipc.new_file(str(target), first.schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
    release_memory()
