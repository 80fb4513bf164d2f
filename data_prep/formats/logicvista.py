"""Reader for LogicVista: data/dataset.json (an object by name) with images/."""

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
    split_choices,
)
from data_prep.formats.table import TableFile
from data_prep.schema import Row, RowError, make_row

_MARKS = {"imagename", "question", "answer", "skill"}
_KEPT = ("skill", "capability", "broad_capability", "specific_capability", "imagesource", "sourcelink", "liscenced")
_LETTERS = re.compile(r"[A-Z](\s*,\s*[A-Z])*")


def matches(source: Path) -> bool:
    """LogicVista's dataset.json, or a folder that holds it, also below data/."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order. The gold is a letter, several ("A, C"), or the number of an option of the image.

    Choices that the question lists behind (A), (B), ... become the row's, unless several are right.
    """
    yield from layout_rows(LAYOUT, source, split, image_root)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    question, answer = column(record, "question"), column(record, "answer")
    fields = {
        "id": f"logicvista/{key}",
        "images": picture({"imagename": f"images/{column(record, 'imagename')}"}, image_root, "imagename"),
        "answer": answer,
        "solution": record.get("reasoning") or None,
        "source": file.source,
        "split": file.split,
        "metadata": kept(record, *_KEPT, question=question),
    }
    if not isinstance(answer, str) or not _LETTERS.fullmatch(answer.strip()):
        return free_form(problem=question, **fields)
    stem, choices = split_choices(question) if isinstance(question, str) else (question, [])
    if choices and "," not in answer:
        return multiple_choice(stem, choices, by_letter=True, **fields)
    return make_row(problem=question, kind="choice", **fields)


LAYOUT = Layout(
    name="logicvista",
    holds=lambda record: record.keys() >= _MARKS,
    make=_make,
    columns={"problem": "question", "choices": "question", "solution": "reasoning"},
    split=lambda path, record: "test",
)
