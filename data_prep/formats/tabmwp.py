"""TabMWP: problems_<split>.json (an object by id) with the drawn tables in tables/<id>.png.

The splits are the files (test1k for problems_test1k.json). The table is shown as an image; its text is in the metadata.
"""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile

_MARKS = {"question", "choices", "answer", "unit", "table", "ques_type", "ans_type"}


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    return {
        "id": key,
        "images": picture({"images": f"tables/{key}.png"}, image_root, "images"),
        "problem": column(record, "question"),
        "answer": column(record, "answer"),
        # Free answers not by `ans_type`: fractions and times stand among the decimals and texts, and their form tells
        # them apart.
        "choices": column(record, "choices") if column(record, "ques_type") == "multi_choice" else None,
        "unit": record.get("unit"),
        "solution": record.get("solution") or None,
        "metadata": kept(record, "ques_type", "ans_type", "grade", "table_title", "table"),
    }


LAYOUT = Layout(
    "tabmwp",
    holds=_MARKS,
    make=_make,
    columns={"problem": "question"},
    pictures="tables",
    folders=("", "data/", "tabmwp/", "data/tabmwp/"),
    split=lambda path, record: path.stem.removeprefix("problems_"),
)
