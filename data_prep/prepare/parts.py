"""Finished pieces of a `prepare` run, kept beside its output so that an interrupted run goes on where it stopped.

A piece is a parquet file of kept rows and a JSON record, written last, that says of which rows under which settings
it was made. It is used again only if both still fit, so nothing depends on where the last run stopped.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from data_prep.formats.parquet import SCHEMA_KEY, SCHEMA_VERSION
from data_prep.schema import Row

ROWS_A_PART = 256
_GROUP_BYTES = 2**22


@dataclass(frozen=True, slots=True)
class Refusal:
    """A row that was left out: its id (or place), why, and for a dropped row the filter's name."""

    id: str
    reason: str
    filter: str | None = None


@dataclass(frozen=True, slots=True)
class Part:
    """What became of some consecutive rows of the source.

    Attributes:
        path: parquet file of the rows that were kept.
        num_rows: of the rows that were kept.
        refused, dropped: rows that are unusable; rows that a filter does not want.
        images: for each kept row the hashes that decide its side (see `data_prep.prepare.heldout`).
        letters: (id, gold) of each kept row whose gold is compared letter by letter.
    """

    path: Path
    num_rows: int
    refused: tuple[Refusal, ...]
    dropped: tuple[Refusal, ...]
    pictures: tuple[tuple[str, ...], ...]
    letters: tuple[tuple[str, str], ...]


def digest(rows: Sequence[Row | Refusal], settings: str) -> str:
    """Of rows with their images as bytes, and of what is done to them: the identity of a part."""
    seen = hashlib.sha256(settings.encode())
    for row in rows:
        # A text of a whole video would be four times as long as the video.
        for part in _pieces(row):
            seen.update(part if isinstance(part, bytes) else repr(part).encode("utf-8", "backslashreplace"))
    return seen.hexdigest()


def _pieces(row: Row | Refusal) -> Iterator[Row | Refusal | bytes]:
    if isinstance(row, Refusal):
        yield row
        return
    yield replace(row, videos=())
    for video in row.videos:
        yield from (video,) if isinstance(video, bytes) else video


def load_part(path: Path, identity: str) -> Part | None:
    """The part at `path`, or None if there is none of this identity or it is damaged."""
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        if record["identity"] != identity or record["sha256"] != sha256_of(path):
            return None
        refused, dropped = (tuple(Refusal(**entry) for entry in record[name]) for name in ("refused", "dropped"))
        pictures, letters = (tuple(map(tuple, record[name])) for name in ("pictures", "letters"))
        return Part(path, record["num_rows"], refused, dropped, pictures, letters)
    except (OSError, ValueError, KeyError, TypeError):  # absent, half-written or another version's: made again
        return None


def save_part(part: Part, rows: Sequence[Row], identity: str) -> None:
    """Write the rows, then the record that vouches for them."""
    part.path.parent.mkdir(parents=True, exist_ok=True)
    with RowWriter(part.path) as writer:
        writer.write([record_of(row) for row in rows])
    record = asdict(part) | {"path": part.path.name, "identity": identity, "sha256": sha256_of(part.path)}
    partial = part.path.with_suffix(".partial")
    write_text(partial, json.dumps(record))
    os.replace(partial, part.path.with_suffix(".json"))


def records_of(part: Part) -> Iterator[dict[str, Any]]:
    """The part's rows as they are stored."""
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(part.path) as table:
        for batch in table.iter_batches():
            yield from batch.to_pylist()


def _video_cell(video: bytes | tuple[bytes, ...]) -> dict[str, Any]:
    if isinstance(video, bytes):
        return {"bytes": video, "frames": None}
    return {"bytes": None, "frames": [{"bytes": frame, "path": None} for frame in video]}


def record_of(row: Row) -> dict[str, Any]:
    """The columns of a row with its images as bytes."""
    columns = {name: getattr(row, name) for name in _schema().names}
    columns["images"] = [{"bytes": image, "path": None} for image in row.images]
    columns["videos"] = [_video_cell(video) for video in row.videos]
    columns["earlier_turns"] = [{"role": turn.role, "content": turn.text} for turn in row.earlier_turns]
    columns["metadata"] = json.dumps(dict(row.metadata), ensure_ascii=False)
    return columns


class RowWriter:
    """One open parquet file of our schema."""

    def __init__(self, path: Path):
        import pyarrow.parquet

        self.path, self.num_rows = path, 0
        self._table = pyarrow.parquet.ParquetWriter(path, _schema())

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._table.close()
        sync(self.path)

    def write(self, records: Sequence[dict[str, Any]]) -> None:
        """Add one group of rows."""
        import pyarrow

        if records:
            table = pyarrow.Table.from_pylist(list(records), schema=_schema())
            # Small row groups, so that single rows are read without unpacking many others.
            rows_a_group = max(1, len(records) * _GROUP_BYTES // max(1, table.nbytes))
            self._table.write_table(table, row_group_size=rows_a_group)
        self.num_rows += len(records)


def _schema() -> Any:
    import pyarrow as pa

    text = pa.string()
    names = ("id", "problem", "answer", "kind", "unit", "source", "split", "solution", "metadata")
    columns = dict.fromkeys(names, text)
    # The struct that `datasets` uses for images, so that other tools can read the file.
    columns["images"] = pa.list_(pa.struct({"bytes": pa.binary(), "path": text}))
    image = pa.struct({"bytes": pa.binary(), "path": text})
    columns["videos"] = pa.list_(pa.struct({"bytes": pa.binary(), "frames": pa.list_(image)}))
    columns["earlier_turns"] = pa.list_(pa.struct({"role": text, "content": text}))
    columns |= {"choices": pa.list_(text), "equivalent_answers": pa.list_(text), "precision": pa.int64()}
    return pa.schema(columns.items(), metadata={SCHEMA_KEY: str(SCHEMA_VERSION).encode()})


def sha256_of(path: Path) -> str:
    """Checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write and flush to the disk."""
    path.write_text(text, encoding="utf-8")
    sync(path)


def sync(path: Path) -> None:
    """Flush a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
