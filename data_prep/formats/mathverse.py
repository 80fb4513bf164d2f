"""MathVerse: testmini.json and testmini_text_only.json with images_version_*/, or the hub's table.

Choices that the question lists become the row's; where they stand in the image only the letter is known, and those of
`question_for_eval` are kept as `choices_in_image`. The question as the benchmark writes it stays in the metadata.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, lettered, picture
from data_prep.formats.table import TableFile
from data_prep.schema import RowError

_MARKS = {"sample_index", "problem_index", "problem_version", "question", "answer", "question_type"}
_KEPT = ("sample_index", "problem_index", "problem_version", "question_type", "query_wo", "query_cot")
# The gold of a choice question: a letter, with brackets in 4 rows, several in 2; the text of a choice in 4.
_LETTERS = re.compile(r"\s*\(?([A-Z])\)?\s*((?:\n[A-Z])*)")
_IN_THE_PICTURE = "Answer the question that is shown in the image."  # "Vision Only" rows have a blank question


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    question, metadata = record.get("question"), record.get("metadata")
    fields = {
        "id": f"{file.split}/{column(record, 'sample_index')}",
        "images": picture(record, image_root, "image") if record.get("image") not in (None, "") else [],
        "answer": column(record, "answer"),
        "metadata": kept(metadata if isinstance(metadata, Mapping) else {}, "source", "subject", "subfield")
        | kept(record, *_KEPT, "question_for_eval", question=question),
    }
    if not isinstance(question, str) or not (question.strip() or fields["images"]):
        raise RowError("is no text, or blank without an image that shows it", field="question")
    if column(record, "question_type") != "multi-choice":
        return fields | {"problem": question.strip() or _IN_THE_PICTURE}
    letters = _LETTERS.fullmatch(str(fields["answer"]))
    if letters and letters[2]:  # several letters are right, and a choice row has one
        return fields | {"problem": question.strip(), "kind": "choice", "answer": ", ".join(letters[0].split())}
    if letters:
        fields["answer"] = letters[1]
    asked = lettered(question) | ({} if letters else {"by_letter": False})
    if "choices" not in asked and (shown := lettered(record.get("question_for_eval")).get("choices")):
        fields["metadata"]["choices_in_image"] = tuple(shown)
    return fields | asked | {"problem": asked["problem"].strip() or _IN_THE_PICTURE}


LAYOUT = Layout(
    "mathverse",
    holds=_MARKS,
    make=_make,
    columns={"problem": "question", "choices": "question"},
    pictures="images_version_*",
)
