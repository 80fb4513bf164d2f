"""Reader for MATH-Vision: data/test.jsonl and testmini.jsonl with images/<id>.jpg, or the hub's table."""

import re
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
from data_prep.formats.table import TableFile
from data_prep.schema import IMAGE_PLACEHOLDER, Row, RowError

_MARKS = {"id", "question", "options", "answer", "level", "subject", "image"}
_TAG = re.compile(r"<image\d+>")


def matches(source: Path) -> bool:
    """A MATH-Vision table (.jsonl or .parquet), or a folder that holds one, also below data/."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order; testmini is a part of test, so read one of them.

    There is one composite image a row: it stands where the first `<image1>` tag stood, and further tags stay as
    the names of its parts.
    """
    yield from layout_rows(LAYOUT, source, split, image_root)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    question = column(record, "question")
    solution = record.get("solution")
    fields = {
        "id": f"mathvision/{column(record, 'id')}",
        "images": picture(record, image_root, "decoded_image", "image"),
        "problem": _TAG.sub(IMAGE_PLACEHOLDER, question, count=1) if isinstance(question, str) else question,
        "answer": column(record, "answer"),
        "solution": None if solution is None or solution == "" else solution,
        "source": file.source,
        "split": file.split,
        "metadata": kept(record, "id", "level", "subject"),
    }
    # An answer without options may be a letter of the image, so its form decides how it is compared.
    if not record.get("options"):
        return free_form(**fields)
    return multiple_choice(choices=record["options"], by_letter=True, **fields)


LAYOUT = Layout(
    name="mathvision",
    holds=lambda record: record.keys() >= _MARKS,
    make=_make,
    columns={"problem": "question", "choices": "options"},
)
