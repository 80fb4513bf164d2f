"""Reader for DynaMath: dataset/dataset.json and the variants <n>trials/trial<k>/dataset.json, or the hub's table."""

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
from data_prep.formats.table import TableFile, split_of
from data_prep.schema import Row, RowError, make_row

_FILE_MARKS = {"question", "answer", "image", "answer_type", "subject", "level"}
_HUB_MARKS = {"question", "decoded_image", "ground_truth", "answer_type", "subject"}
# The official rule for numbers is |difference| <= 0.001, and prompts ask for three decimals.
_DECIMALS = 3
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def matches(source: Path) -> bool:
    """The repository's folder, a folder of trials, one folder with a dataset.json, that file, or the hub's table."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order. The splits are the variants (dataset, trial1, ..., or sample_variant1, ...): one question
    has the same `question_id` in all of them, for the average and the worst case.
    """
    yield from layout_rows(LAYOUT, source, split, image_root)


def _holds(record: Mapping[str, Any]) -> bool:
    return record.keys() >= _HUB_MARKS or (
        record.keys() >= _FILE_MARKS and record.keys().isdisjoint({"id", "options", "choices", "pid"})
    )


def _split(path: Path, record: Mapping[str, Any]) -> str:
    return path.parent.name if path.name == "dataset.json" else split_of(path)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    question = column(record, "question")
    answer = column(record, "ground_truth" if "ground_truth" in record else "answer")
    # Of the two hub tables, one numbers its questions in `id`, the other in `question_id` beside a variant in `id`.
    question_id = str(record.get("question_id") or record.get("id") or key)
    variant = str(record["id"]) if record.get("question_id") else file.split
    answer_type = column(record, "answer_type")
    fields = {
        "id": f"dynamath/{variant}/{question_id}",
        "images": picture(record, image_root, "decoded_image", "image"),
        "answer": answer,
        "source": file.source,
        "split": file.split,
        "metadata": kept(record, "answer_type", "subject", "level", "knowledge_level")
        | kept({}, question_id=question_id, variant=variant, question=question),
    }
    if answer_type == "multiple choice":
        stem, choices = split_choices(question) if isinstance(question, str) else (question, [])
        if choices:
            return multiple_choice(stem, choices, by_letter=True, **fields)
        return make_row(problem=question, kind="choice", **fields)
    is_number = answer_type != "text" and _NUMBER.fullmatch(str(answer))
    kind, precision = ("number", _DECIMALS) if is_number else ("auto", None)
    return free_form(problem=question, kind=kind, precision=precision, **fields)


LAYOUT = Layout(
    name="dynamath",
    holds=_holds,
    make=_make,
    columns={"problem": "question", "choices": "question"},
    pictures="image",
    folders=("", "data/", "dataset/", "trial*/", "*trials/trial*/", "*/*trials/trial*/"),
    split=_split,
)
