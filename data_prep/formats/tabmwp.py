"""Reader for TabMWP: problems_<split>.json (an object by id) with the drawn tables in tables/<id>.png."""

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
from data_prep.schema import Row, RowError

_MARKS = {"question", "choices", "answer", "unit", "table", "ques_type", "ans_type"}


def matches(source: Path) -> bool:
    """A TabMWP file, or a folder that holds some, also below data/tabmwp/."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order; the splits are the files (test1k for problems_test1k.json). The table is shown as an image,
    and its text is in the metadata.
    """
    yield from layout_rows(LAYOUT, source, split, image_root)


def _split(path: Path, record: Mapping[str, Any]) -> str:
    return path.stem.removeprefix("problems_")


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    fields = {
        "id": f"tabmwp/{key}",
        "images": picture({"images": f"tables/{key}.png"}, image_root, "images"),
        "problem": column(record, "question"),
        "answer": column(record, "answer"),
        "unit": record.get("unit"),
        "solution": record.get("solution") or None,
        "source": file.source,
        "split": file.split,
        "metadata": kept(record, "ques_type", "ans_type", "grade", "table_title", "table"),
    }
    if column(record, "ques_type") == "multi_choice":
        return multiple_choice(choices=column(record, "choices"), by_letter=False, **fields)
    # Not by `ans_type`: fractions and times stand among the decimals and texts, and their form tells them apart.
    return free_form(**fields)


LAYOUT = Layout(
    name="tabmwp",
    holds=lambda record: record.keys() >= _MARKS,
    make=_make,
    columns={"problem": "question"},
    pictures="tables",
    folders=("", "data/", "tabmwp/", "data/tabmwp/"),
    split=_split,
)
