"""Reader for PuzzleVQA and AlgoPuzzleVQA: <part>/data/<category>.json, JSON Lines despite the name, with images/."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats.layout import Layout, column, kept, layout_files, layout_rows, multiple_choice, picture
from data_prep.formats.table import TableFile
from data_prep.schema import Row, RowError

_MARKS = {"image", "question", "options", "answer"}
_PARTS = ("PuzzleVQA", "AlgoPuzzleVQA")


def matches(source: Path) -> bool:
    """The folder of both parts, of one part, its data/, or one category's file."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows by category, in file order; the gold is an option's text. The splits are PuzzleVQA and AlgoPuzzleVQA."""
    yield from layout_rows(LAYOUT, source, split, image_root)


def _holds(record: Mapping[str, Any]) -> bool:
    is_puzzle = record.keys() >= {"caption", "explanation", "deduction"}
    return record.keys() >= _MARKS and (is_puzzle or isinstance(record.get("solution"), dict))


def _split(path: Path, record: Mapping[str, Any]) -> str:
    return _PARTS[0] if "deduction" in record else _PARTS[1]


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    category = file.path.stem
    part = _split(file.path, record)
    return multiple_choice(
        id=f"puzzlevqa/{part}/{category}/{key}",
        images=picture(record, image_root, "image"),
        problem=column(record, "question"),
        choices=column(record, "options"),
        answer=column(record, "answer"),
        by_letter=False,
        source=file.source,
        split=file.split,
        metadata=kept(record, "caption", "explanation", "deduction", category=category, part=part),
    )


LAYOUT = Layout(
    name="puzzlevqa",
    holds=_holds,
    make=_make,
    columns={"problem": "question", "choices": "options"},
    folders=("", "data/", *(f"{part}/data/" for part in _PARTS)),
    split=_split,
)
