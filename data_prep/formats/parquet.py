"""The records of parquet files: our own prepared ones, and any other."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.formats.coarse import mends
from data_prep.images.stored import ParquetTable, release_memory, with_handles
from data_prep.schema import DataError, RowError

SCHEMA_KEY = b"vlm_mhpo.schema_version"
SCHEMA_VERSION = 4  # 1 had no column `metadata`, 2 neither `earlier_turns` nor `equivalent_answers`, 3 no `videos`
_ROWS_AT_ONCE = 16


def read_records(path: Path) -> Iterator[tuple[int, Any]]:
    """(row number from 1, columns by name) of each row; images are handles.

    Raises:
        DataError: the file cannot be read, or its schema is newer than ours.
    """
    import pyarrow
    import pyarrow.parquet

    number, source = 0, ParquetTable(path)
    try:
        # Mapped, or all of a column of a row group is fetched before its first row.
        with pyarrow.parquet.ParquetFile(path, memory_map=True) as table:
            version = int((table.schema_arrow.metadata or {}).get(SCHEMA_KEY, 0))  # 0: not written by us
            if version > SCHEMA_VERSION:
                raise DataError(f"{path} has schema version {version}, newer than {SCHEMA_VERSION}; update vlm_mhpo")
            coarse = mends(table.schema_arrow)
            for batch in table.iter_batches(_ROWS_AT_ONCE):
                for record in batch.to_pylist():
                    record |= {name: mend(record[name]) for name, mend in coarse.items()}
                    record = with_handles(record, source, number)
                    number += 1
                    yield number, _with_metadata(record) if version >= 2 else record
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read as parquet (after {number} rows): {error}") from error
    finally:
        release_memory()


def _with_metadata(record: dict[str, Any]) -> dict[str, Any] | RowError:
    """Our tables keep a row's metadata as JSON: one column cannot hold values of several types."""
    try:
        return record | {"metadata": json.loads(record.get("metadata") or "{}")}
    except (ValueError, TypeError, RecursionError) as error:
        return RowError(f"is not JSON: {error}", field="metadata")


def check_manifest(source: Path) -> None:
    """A prepared folder must hold every file its manifest lists, at the size listed."""
    manifest = source / "manifest.json"
    if not manifest.is_file():
        return
    try:
        files = {source / name: entry["bytes"] for name, entry in json.loads(manifest.read_text())["files"].items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{manifest} is not a manifest of prepared rows: {error!r}") from error
    for path, num_bytes in files.items():
        if not path.is_file() or path.stat().st_size != num_bytes:
            raise DataError(f"{path} is missing or not of the {num_bytes} bytes its manifest lists; prepare it again")
