"""DynaMath: dataset/dataset.json and the variants <n>trials/trial<k>/dataset.json, or the hub's table.

The splits are the variants (dataset, trial1, ..., or sample_variant1, ...): one question has the same `question_id` in
all of them, for the average and the worst case.
"""

import re
from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, lettered, picture
from data_prep.formats.table import TableFile, split_of

_FILE_MARKS = {"question", "answer", "image", "answer_type", "subject", "level"}
_HUB_MARKS = {"question", "decoded_image", "ground_truth", "answer_type", "subject"}
# The official rule for numbers is |difference| <= 0.001, and prompts ask for three decimals.
_DECIMALS = 3
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def _holds(record: Record) -> bool:
    return record.keys() >= _HUB_MARKS or (
        record.keys() >= _FILE_MARKS and record.keys().isdisjoint({"id", "options", "choices", "pid"})
    )


def _split(path: Path, record: Record) -> str:
    return path.parent.name if path.name == "dataset.json" else split_of(path)


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    question = column(record, "question")
    answer = column(record, "ground_truth" if "ground_truth" in record else "answer")
    # Of the two hub tables, one numbers its questions in `id`, the other in `question_id` beside a variant in `id`.
    question_id = str(record.get("question_id") or record.get("id") or key)
    variant = str(record["id"]) if record.get("question_id") else file.split
    answer_type = column(record, "answer_type")
    fields = {
        "id": f"{variant}/{question_id}",
        "images": picture(record, image_root, "decoded_image", "image"),
        "answer": answer,
        "metadata": kept(record, "answer_type", "subject", "level", "knowledge_level")
        | kept({}, question_id=question_id, variant=variant, question=question),
    }
    if answer_type == "multiple choice":
        return fields | lettered(question)
    if answer_type != "text" and _NUMBER.fullmatch(str(answer)):
        fields |= {"kind": "number", "precision": _DECIMALS}
    return fields | {"problem": question}


LAYOUT = Layout(
    "dynamath",
    holds=_holds,
    make=_make,
    columns={"problem": "question", "choices": "question"},
    pictures="image",
    folders=("", "data/", "dataset/", "trial*/", "*trials/trial*/", "*/*trials/trial*/"),
    split=_split,
)
