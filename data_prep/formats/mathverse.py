"""Reader for MathVerse: testmini.json and testmini_text_only.json with images_version_*/, or the hub's table."""

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

_MARKS = {"sample_index", "problem_index", "problem_version", "question", "answer", "question_type"}
_KEPT = ("sample_index", "problem_index", "problem_version", "question_type", "query_wo", "query_cot")
_IN_THE_PICTURE = "Answer the question that is shown in the image."  # "Vision Only" rows have a blank question


def matches(source: Path) -> bool:
    """A MathVerse table (.json or .parquet), or a folder that holds one, also below data/."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order; the splits are the files (testmini, testmini_text_only).

    Choices that the question lists become the row's; where they stand in the image only the letter is known. The
    question as the benchmark writes it stays in the metadata.
    """
    yield from layout_rows(LAYOUT, source, split, image_root)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    question = record.get("question")
    metadata = record.get("metadata")
    fields = {
        "id": f"mathverse/{file.split}/{column(record, 'sample_index')}",
        "images": picture(record, image_root, "image") if record.get("image") not in (None, "") else [],
        "answer": column(record, "answer"),
        "source": file.source,
        "split": file.split,
        "metadata": kept(metadata if isinstance(metadata, Mapping) else {}, "source", "subject", "subfield")
        | kept(record, *_KEPT, "question_for_eval", question=question),
    }
    if not isinstance(question, str) or not (question.strip() or fields["images"]):
        raise RowError("is no text, or blank without an image that shows it", field="question")
    if column(record, "question_type") != "multi-choice":
        return free_form(problem=question.strip() or _IN_THE_PICTURE, **fields)
    stem, choices = split_choices(question)
    if choices:
        return multiple_choice(stem, choices, by_letter=True, **fields)
    return make_row(problem=question.strip() or _IN_THE_PICTURE, kind="choice", **fields)


LAYOUT = Layout(
    name="mathverse",
    holds=lambda record: record.keys() >= _MARKS,
    make=_make,
    columns={"problem": "question", "choices": "question"},
    pictures="images_version_*",
)
