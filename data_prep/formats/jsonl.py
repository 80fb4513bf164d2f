"""The records of JSON Lines files and of JSON files with one list, plain or gzipped."""

import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.schema import DataError, RowError


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(line or row number from 1, decoded value) of each record; a line that is no JSON gives a `RowError`.

    Raises:
        DataError: the file cannot be read, or a .json file is not a list of objects.
    """
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            if (
                path.name.removesuffix(".gz").endswith(".json")
                and file.read(64).lstrip(b"\xef\xbb\xbf \t\r\n")[:1] == b"["
            ):
                file.seek(0)
                yield from enumerate(_decode(file.read(), path), start=1)
                return
            file.seek(0)
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield number, _decode_line(line)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error


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


def read_fields(path: Path, *names: str) -> tuple[Any, ...]:
    """These fields of a file that is one JSON object.

    Raises:
        RowError: the file cannot be read, or lacks one of them.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return tuple(record[name] for name in names)
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise RowError(f"cannot be read: {error}") from error
    except KeyError as error:
        raise RowError("is missing", field=str(error.args[0])) from error
