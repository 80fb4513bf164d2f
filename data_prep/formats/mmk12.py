"""Reader for MMK12: eval/k12/k12.json (a list) with images/<uuid>.png, or the hub's table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats.layout import Layout, column, free_form, kept, layout_files, layout_rows, picture
from data_prep.formats.table import TableFile, split_of
from data_prep.schema import Row, RowError

_FILE_MARKS = {"id", "question", "answer", "image_path"}
_HUB_COLUMNS = {"id", "question", "answer", "subject", "image"}


def matches(source: Path) -> bool:
    """A MMK12 table (.json or .parquet), or a folder that holds one, also below data/ and eval/k12/."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order. Answers are as the benchmark writes them: numbers, LaTeX, units, several parts, sentences."""
    yield from layout_rows(LAYOUT, source, split, image_root)


def _holds(record: Mapping[str, Any]) -> bool:
    # The names are everyday ones, so the table must have them and no others.
    return record.keys() == _HUB_COLUMNS or record.keys() - {"subject"} == _FILE_MARKS


def _split(path: Path, record: Mapping[str, Any]) -> str:
    return "test" if path.stem == "k12" else split_of(path)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    return free_form(
        id=f"mmk12/{column(record, 'id')}",
        images=picture(record, image_root, "image_path" if "image_path" in record else "image"),
        problem=column(record, "question"),
        answer=column(record, "answer"),
        source=file.source,
        split=file.split,
        metadata=kept(record, "subject"),
    )


LAYOUT = Layout(
    name="mmk12",
    holds=_holds,
    make=_make,
    columns={"problem": "question"},
    folders=("", "data/", "k12/", "eval/k12/"),
    split=_split,
)
