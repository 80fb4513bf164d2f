"""Judged rows on disk: each rank appends whole chunks to its own file; the main rank checks and merges them."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from pydantic import ValidationError

from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.records.evaluation import Item


def append_chunk(file: Path, items: Iterable[tuple[int, Item]]) -> None:
    """Add judged rows with their places to a rank's file, and wait until they are on the disk."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("ab") as stream:
        stream.writelines(b'{"index":%d,"item":%s}\n' % (place, _item_line(item)) for place, item in items)
        stream.flush()
        os.fsync(stream.fileno())


def _item_line(item: Item) -> bytes:
    """The JSON of a row, without a line end."""
    return item.model_dump_json().encode()


def recover(parts: Path, ids: Sequence[str], chunk_size: int) -> set[int]:
    """The finished chunks in the files under `parts`; a torn last line and rows of unfinished chunks are removed.

    Raises:
        EvaluationError: a row is there twice or under another id, or a line before the last cannot be read.
    """
    by_file = {file: list(_read_part(file, ids)) for file in _part_files(parts)}
    places = _check_once([place for pairs in by_file.values() for place, _ in pairs], ids, parts)
    chunks = range(-(-len(ids) // chunk_size))
    finished = {
        chunk
        for chunk in chunks
        if places.issuperset(range(chunk * chunk_size, min(len(ids), (chunk + 1) * chunk_size)))
    }
    for file, pairs in by_file.items():
        replacement = file.with_suffix(".tmp")
        replacement.unlink(missing_ok=True)
        append_chunk(replacement, ((place, item) for place, item in pairs if place // chunk_size in finished))
        replacement.replace(file)
    return finished


def merge(parts: Path, ids: Sequence[str]) -> list[Item]:
    """All rows in order.

    Raises:
        EvaluationError: a row is missing, or there twice.
    """
    pairs = [pair for file in _part_files(parts) for pair in _read_part(file, ids)]
    found = _check_once([place for place, _ in pairs], ids, parts)
    missing = [ids[place] for place in range(len(ids)) if place not in found]
    if missing:
        raise EvaluationError(
            f"{parts}: {len(missing)} of {len(ids)} rows are missing, the first is {missing[0]}: run the same command "
            "again to judge them"
        )
    return [item for _, item in sorted(pairs, key=lambda pair: pair[0])]


def write_items(file: Path, items: Iterable[Item]) -> None:
    """A JSON Lines file of rows, in place of an old one only when it is whole."""
    file.parent.mkdir(parents=True, exist_ok=True)
    replacement = file.with_suffix(".tmp")
    with replacement.open("wb") as stream:
        stream.writelines(_item_line(item) + b"\n" for item in items)
        stream.flush()
        os.fsync(stream.fileno())
    replacement.replace(file)


def read_items(file: Path, ids: Sequence[str] | None = None) -> list[Item]:
    """The rows of a merged file.

    Args:
        file: results/NAME.jsonl.
        ids: which rows it must hold, in order; None = any, each once.

    Raises:
        EvaluationError: a line cannot be read, or a row is missing, doubled or out of place.
    """
    try:
        items = [Item.model_validate_json(line) for line in file.read_bytes().splitlines()]
    except OSError as error:
        raise EvaluationError(f"{file}: {error.strerror}") from error
    except ValidationError as error:
        raise EvaluationError(f"{file}: a line is no judged row: {error.errors()[0]['msg']}") from error
    found = [item.id for item in items]
    if len(set(found)) < len(found):
        doubled = next(name for index, name in enumerate(found) if name in found[:index])
        raise EvaluationError(f"{file}: row {doubled} is there twice: remove the file and evaluate again")
    if ids is not None and found != list(ids):
        wrong = next((name for name in ids if name not in found), None)
        what = f"row {wrong} is missing" if wrong else "its rows are not those of the data, or in another order"
        raise EvaluationError(f"{file}: {what}: remove the file and evaluate again")
    return items


def remove_parts(parts: Path) -> None:
    """Remove the ranks' files, once their rows are merged."""
    shutil.rmtree(parts)
    with contextlib.suppress(OSError):
        # Not empty: another condition's.
        parts.parent.rmdir()


def _part_files(parts: Path) -> list[Path]:
    """The ranks' files, in the order of their names."""
    return sorted(parts.glob("*.jsonl"))


def _read_part(file: Path, ids: Sequence[str]) -> Iterator[tuple[int, Item]]:
    """(place, row) of each line of a rank's file; a last line without its end is the trace of a kill and left out."""
    lines = file.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            entry = json.loads(line)
            place, item = entry["index"], Item.model_validate(entry["item"])
        except (ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"{file}, line {number}: damaged ({error}): remove it and run again") from error
        if not 0 <= place < len(ids) or item.id != ids[place]:
            raise EvaluationError(f"{file}, line {number}: row {item.id} is not row {place} of the data: remove it")
        yield place, item


def _check_once(places: Sequence[int], ids: Sequence[str], parts: Path) -> set[int]:
    """The places as a set; EvaluationError if one is there twice."""
    found: set[int] = set()
    for place in places:
        if place in found:
            raise EvaluationError(f"{parts}: row {ids[place]} is there twice: remove that folder and evaluate again")
        found.add(place)
    return found
