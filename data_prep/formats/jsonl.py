"""Reader for JSON Lines and JSON tables with the columns problem, answer and images (see `data_prep.formats.table`)."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.formats.table import is_table, rows_of, table_files
from data_prep.schema import DataError, Row, RowError


def matches(source: Path) -> bool:
    """A .jsonl or .json file, or a folder of .jsonl files."""
    return is_table(source, (".jsonl", ".json") if source.is_file() else (".jsonl",))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order; image paths are relative to `image_root`, by default the folder of the file."""
    for file in table_files(source, split, (".jsonl", ".json") if source.is_file() else (".jsonl",)):
        yield from rows_of(read_records(file.path), file, split, image_root or file.path.parent)


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, decoded value) of each record; a line that is no JSON gives a `RowError`.

    Raises:
        DataError: the file cannot be read, or a .json file is not a list of objects.
    """
    try:
        with path.open("rb") as file:
            if path.suffix == ".json" and file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"[":
                file.seek(0)
                yield from enumerate(_decode(file.read(), path), start=1)
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _decode_line(line)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error


def _decode(text: bytes, path: Path) -> list[Any]:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON list of rows: {error}") from error


def _decode_line(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return RowError(f"is not JSON: {error}")
