"""MATH-Vision: data/test.jsonl and testmini.jsonl with images/<id>.jpg, or the hub's table.

testmini is a part of test, so read one of them. There is one composite image per row: it stands where the first
`<image1>` tag stood, and further tags stay as the names of its parts.
"""

import re
from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile
from data_prep.schema import IMAGE_PLACEHOLDER

_MARKS = {"id", "question", "options", "answer", "level", "subject", "image"}
_TAG = re.compile(r"<image\d+>")


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    question, solution = column(record, "question"), record.get("solution")
    return {
        "id": column(record, "id"),
        "images": picture(record, image_root, "decoded_image", "image"),
        "problem": _TAG.sub(IMAGE_PLACEHOLDER, question, count=1) if isinstance(question, str) else question,
        "answer": column(record, "answer"),
        # An answer without options may be a letter of the image, so its form decides how it is compared.
        "choices": record.get("options") or None,
        "by_letter": True,
        "solution": None if solution == "" else solution,
        "metadata": kept(record, "id", "level", "subject"),
    }


LAYOUT = Layout("mathvision", holds=_MARKS, make=_make, columns={"problem": "question", "choices": "options"})
