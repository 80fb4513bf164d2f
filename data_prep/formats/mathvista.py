"""Reader for MathVista: data/testmini.json (an object by pid) with images/, or the hub's table."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats.layout import (
    Layout,
    column,
    free_form,
    kept,
    layout_files,
    layout_rows,
    multiple_choice,
    picture,
)
from data_prep.formats.table import TableFile, whole
from data_prep.schema import Row, RowError

_MARKS = {"pid", "question", "answer", "choices", "precision", "question_type", "answer_type"}
# integer and float answers are numbers; the two lists are compared as lists, and text is one of the choices.
_KINDS = {"integer": "number", "float": "number"}


def matches(source: Path) -> bool:
    """A MathVista table (.json or .parquet), or a folder that holds one, also below data/."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order; the gold of a choice question is the text of the choice. The test split has no answers."""
    yield from layout_rows(LAYOUT, source, split, image_root)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    metadata = record.get("metadata")
    fields = {
        "id": f"mathvista/{column(record, 'pid')}",
        "images": picture(record, image_root, "decoded_image", "image"),
        "problem": column(record, "question"),
        "answer": column(record, "answer"),
        "precision": whole(record.get("precision")),
        "unit": record.get("unit"),
        "source": file.source,
        "split": file.split,
        "metadata": kept(metadata if isinstance(metadata, Mapping) else {}, *_OF_METADATA)
        | kept(record, "pid", "question_type", "answer_type", "query"),
    }
    if column(record, "question_type") == "multi_choice":
        return multiple_choice(choices=column(record, "choices"), by_letter=False, **fields)
    return free_form(kind=_KINDS.get(record.get("answer_type"), "auto"), **fields)


_OF_METADATA = ("source", "category", "task", "context", "grade", "language", "skills")
LAYOUT = Layout(
    name="mathvista",
    holds=lambda record: record.keys() >= _MARKS,
    make=_make,
    columns={"problem": "question"},
)
