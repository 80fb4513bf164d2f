"""MathVista: data/testmini.json (an object by pid) with images/, or the hub's table.

The gold of a choice question is the text of the choice. The test split has no answers.
"""

from collections.abc import Mapping
from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile, whole

_MARKS = {"pid", "question", "answer", "choices", "precision", "question_type", "answer_type"}
# integer and float answers are numbers; the two lists are compared as lists, and text is one of the choices.
_KINDS = {"integer": "number", "float": "number"}
_OF_METADATA = ("source", "category", "task", "context", "grade", "language", "skills")


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    metadata = record.get("metadata")
    fields = {
        "id": column(record, "pid"),
        "images": picture(record, image_root, "decoded_image", "image"),
        "problem": column(record, "question"),
        "answer": column(record, "answer"),
        "precision": whole(record.get("precision")),
        "unit": record.get("unit"),
        "metadata": kept(metadata if isinstance(metadata, Mapping) else {}, *_OF_METADATA)
        | kept(record, "pid", "question_type", "answer_type", "query"),
    }
    if column(record, "question_type") == "multi_choice":
        return fields | {"choices": column(record, "choices")}
    return fields | {"kind": _KINDS.get(record.get("answer_type"), "auto")}


LAYOUT = Layout("mathvista", holds=_MARKS, make=_make, columns={"problem": "question"})
