"""OlympiadBench: data/OE_*.json (lists) with images/img_<n>.jpg, or the hub's tables.

The splits are the files, such as OE_MM_maths_en_COMP. `error` is the allowed difference.
The files' columns are those of the authors' README; of the hub's tables (Hothan/OlympiadBench with image_1 to
image_9, lmms-lab/OlympiadBench with a list `images`) the columns are known from public loaders, not from the tables.
Not covered: theorem proofs (TP_*): they have no gold to compare with, and a row of one is refused. Of several entries
of `final_answer` our verifier wants all; the authors' grader reads the first one, from the metadata.
"""

import re
from pathlib import Path

from data_prep.formats.image_cells import image_from
from data_prep.formats.layout import Fields, Layout, Record, column, kept
from data_prep.formats.table import TableFile
from data_prep.images.stored import ImageSource
from data_prep.schema import IMAGE_PLACEHOLDER, RowError

_MARKS = {"question", "solution", "final_answer", "is_multiple_answer", "answer_type", "subfield"}
_KEPT = ("final_answer", "is_multiple_answer", "answer_type", "error", "subfield", "subject", "language", "difficulty",
         "modality", "question_type")  # fmt: skip
_FILE_TAG = re.compile(r"<(img_\d+)>")
_TABLE_TAG = re.compile(r"<image_(\d+)>")
_MAX_IMAGES = 9


def _holds(record: Record) -> bool:
    return record.keys() >= _MARKS and (record["final_answer"] is not None or record["question"] is None)


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    answers = record.get("final_answer")
    if not answers or not isinstance(answers, list | tuple):
        raise RowError("is missing: a proof has no answer to compare with", field="answer")
    texts = [text for text in (record.get("context"), column(record, "question")) if text]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("or 'context' is no text", field="problem")
    problem, images = _with_pictures("\n".join(texts), record, image_root)
    unit = record.get("unit")
    return {
        "id": column(record, "id" if "id" in record else "question_id"),
        "images": images,
        "problem": problem,
        "answer": answers[0] if len(answers) == 1 else "; ".join(map(str, answers)),
        "unit": unit if unit is None or isinstance(unit, str) else str(unit),
        "metadata": kept(record, *_KEPT),
    }


def _with_pictures(text: str, record: Record, image_root: Path | None) -> tuple[str, list[ImageSource]]:
    """The text with a placeholder for each tag, and the images in that order; untagged images go in front."""
    if names := _FILE_TAG.findall(text):
        images = [image_from(f"images/{name}.jpg", image_root) for name in names]
        return _FILE_TAG.sub(IMAGE_PLACEHOLDER, text), images
    several = record.get("images")
    cells = list(several) if several else [record.get(f"image_{i + 1}") for i in range(_MAX_IMAGES)]
    numbers = [int(number) for number in _TABLE_TAG.findall(text)]
    if not numbers:
        return text, [image_from(cell, image_root) for cell in cells if cell is not None]
    if missing := [number for number in numbers if not 0 < number <= len(cells) or cells[number - 1] is None]:
        raise RowError(f"names <image_{missing[0]}>, and there is no such image", field="problem")
    images = [image_from(cells[number - 1], image_root) for number in numbers]
    return _TABLE_TAG.sub(IMAGE_PLACEHOLDER, text), images


LAYOUT = Layout(
    "olympiadbench",
    holds=_holds,
    make=_make,
    columns={"problem": "question", "answer": "final_answer"},
    folders=("", "data/", "OlympiadBench/OE_*/", "OE_*/"),
)
