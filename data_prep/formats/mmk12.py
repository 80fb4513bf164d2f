"""MMK12: eval/k12/k12.json (a list) with images/<uuid>.png, or the hub's table.

Answers are as the benchmark writes them: numbers, LaTeX, units, several parts, sentences.
"""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile, split_of

_FILE_MARKS = {"id", "question", "answer", "image_path"}
_HUB_COLUMNS = {"id", "question", "answer", "subject", "image"}


def _holds(record: Record) -> bool:
    # The names are everyday ones, so the table must have them and no others.
    return record.keys() == _HUB_COLUMNS or record.keys() - {"subject"} == _FILE_MARKS


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    return {
        "id": column(record, "id"),
        "images": picture(record, image_root, "image_path" if "image_path" in record else "image"),
        "problem": column(record, "question"),
        "answer": column(record, "answer"),
        "metadata": kept(record, "subject"),
    }


LAYOUT = Layout(
    "mmk12",
    holds=_holds,
    make=_make,
    columns={"problem": "question"},
    folders=("", "data/", "k12/", "eval/k12/"),
    split=lambda path, record: "test" if path.stem == "k12" else split_of(path),
)
