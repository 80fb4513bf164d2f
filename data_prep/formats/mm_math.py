"""MM-MATH: MM_Math.jsonl with the images that `file_name` names; the gold is what the solution puts into boxes."""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile
from data_prep.schema import RowError

_MARKS = {"question", "file_name", "solution", "year", "difficult", "knowledge"}


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    from rewards.response import find_boxes

    solution, name = column(record, "solution"), column(record, "file_name")
    boxes = find_boxes(solution)[0] if isinstance(solution, str) else []
    if not boxes:
        raise RowError("puts no answer into \\boxed{}, and nothing else says the answer", field="solution")
    return {
        "id": Path(str(name)).stem,
        "images": picture(record, image_root, "file_name"),
        "problem": column(record, "question"),
        "answer": ", ".join(content for _, _, content in boxes),
        "solution": solution,
        "metadata": kept(record, "year", "difficult", "knowledge"),
    }


LAYOUT = Layout(
    "mm_math", holds=_MARKS, make=_make, columns={"problem": "question"}, pictures="*.[pj][np]*g",
    split=lambda path, record: "test",
)  # fmt: skip
