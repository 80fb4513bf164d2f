"""LogicVista: data/dataset.json (an object by name) with images/.

The gold is a letter, several ("A, C"), or the number of an option of the image. Choices that the question lists behind
(A), (B), ... become the row's, unless several are right.
"""

import re
from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, lettered, picture
from data_prep.formats.table import TableFile

_MARKS = {"imagename", "question", "answer", "skill"}
_KEPT = ("skill", "capability", "broad_capability", "specific_capability", "imagesource", "sourcelink", "liscenced")
NO_ANSWER = "none is given"
_LETTERS = re.compile(r"[A-Z](\s*,\s*[A-Z])*")


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    question, answer = column(record, "question"), column(record, "answer")
    # One row of the release has neither. It stays, as for its authors, and no response can be right.
    answer = answer if answer != "" else NO_ANSWER
    fields = {
        "id": key,
        "images": picture({"imagename": f"images/{column(record, 'imagename')}"}, image_root, "imagename"),
        "problem": question,
        "answer": answer,
        "solution": record.get("reasoning") or None,
        "metadata": kept(record, *_KEPT, question=question),
    }
    if not isinstance(answer, str) or not _LETTERS.fullmatch(answer.strip()):
        return fields
    return fields | ({"kind": "choice"} if "," in answer else lettered(question))


LAYOUT = Layout(
    "logicvista",
    holds=_MARKS,
    make=_make,
    columns={"problem": "question", "choices": "question", "solution": "reasoning"},
    split=lambda path, record: "test",
)
