"""Reader for OlympiadBench: data/OE_*.json (lists) with images/img_<n>.jpg, or the hub's tables.

The files' columns are those of the authors' README; of the hub's tables (Hothan/OlympiadBench with image_1 to
image_9, lmms-lab/OlympiadBench with a list `images`) the columns are known from public loaders, not from the tables.
Not covered: theorem proofs (TP_*): they have no gold to compare with, and a row of one is refused. `final_answer`
beyond its first entry, which the authors' grader does not read either, is only kept in the metadata.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats.layout import Layout, column, free_form, kept, layout_files, layout_rows
from data_prep.formats.table import TableFile, image_from
from data_prep.schema import IMAGE_PLACEHOLDER, Row, RowError

_MARKS = {"question", "solution", "final_answer", "is_multiple_answer", "answer_type", "subfield"}
_KEPT = ("final_answer", "is_multiple_answer", "answer_type", "error", "subfield", "subject", "language", "difficulty",
         "modality", "question_type")  # fmt: skip
_FILE_TAG = re.compile(r"<(img_\d+)>")
_TABLE_TAG = re.compile(r"<image_(\d+)>")
_MAX_IMAGES = 9


def matches(source: Path) -> bool:
    """A file of open questions (OE_*), or a folder that holds some, also below data/ and the hub's folders."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order; the splits are the files, such as OE_MM_maths_en_COMP. `error` is the allowed difference."""
    yield from layout_rows(LAYOUT, source, split, image_root)


def _holds(record: Mapping[str, Any]) -> bool:
    return record.keys() >= _MARKS and (record["final_answer"] is not None or record["question"] is None)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    answers = record.get("final_answer")
    if not answers or not isinstance(answers, list | tuple):
        raise RowError("is missing: a proof has no answer to compare with", field="answer")
    texts = [text for text in (record.get("context"), column(record, "question")) if text]
    if not all(isinstance(text, str) for text in texts):
        raise RowError("or 'context' is no text", field="problem")
    problem, images = _with_pictures("\n".join(texts), record, image_root)
    unit = record.get("unit")
    return free_form(
        id=f"olympiadbench/{column(record, 'id' if 'id' in record else 'question_id')}",
        images=images,
        problem=problem,
        answer=answers[0],
        unit=unit if unit is None or isinstance(unit, str) else str(unit),
        source=file.source,
        split=file.split,
        metadata=kept(record, *_KEPT),
    )


def _with_pictures(text: str, record: Mapping[str, Any], image_root: Path | None) -> tuple[str, list[bytes | Path]]:
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
    name="olympiadbench",
    holds=_holds,
    make=_make,
    columns={"problem": "question", "answer": "final_answer"},
    folders=("", "data/", "OlympiadBench/OE_*/", "OE_*/"),
)
