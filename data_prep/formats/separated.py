"""The records of CSV and TSV files; a cell of a TSV may hold a whole image as base64, as VLMEvalKit has it."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.schema import DataError, RowError

# Characters: an image of 96 MiB as base64. The module has one limit for all readers, so it is set once.
csv.field_size_limit(2**27)


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number from 1, columns by name) of each row; an empty cell is None, a row of another width a `RowError`.

    Raises:
        DataError: the file cannot be read, or has no header.
    """
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.DictReader(file, delimiter="\t" if path.suffix == ".tsv" else ",", restkey="")
            if not rows.fieldnames:
                raise DataError(f"{path} has no header line with the names of its columns")
            for number, row in enumerate(rows, start=1):
                if "" in row or None in row.values():
                    yield number, RowError(f"has another number of cells than the {len(rows.fieldnames)} of the header")
                else:
                    yield number, {name: value or None for name, value in row.items()}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read as a table: {getattr(error, 'strerror', None) or error}") from error
