"""HallusionBench: HallusionBench.json (a list) with the folders VD and VS of images, or the hub's tables.

The gold is 1 for yes and 0 for no. Rows of `visual_input` 0 have no image; columns that tie figures and questions
together stay in the metadata.
"""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile
from data_prep.schema import RowError

_PLACE = ("category", "subcategory", "set_id", "figure_id", "question_id")
_GOLDS = {"0": "no", "1": "yes"}


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    gold = _GOLDS.get(str(column(record, "gt_answer")))
    if gold is None:
        raise RowError("is neither 0 nor 1", field="gt_answer")
    name = str(record.get("filename") or "").removeprefix("./").removeprefix("hallusion_bench/")
    is_seen = str(column(record, "visual_input")) != "0"
    place = {part: str(column(record, part)) for part in _PLACE}
    return {
        "id": "/".join(place.values()),
        "images": picture({**record, "filename": name}, image_root, "image", "filename") if is_seen else [],
        "problem": column(record, "question"),
        "answer": gold,
        "kind": "text",
        "metadata": kept(record, "gt_answer_details", "sample_note")
        | place
        | {"visual_input": str(record["visual_input"])},
    }


LAYOUT = Layout(
    "hallusionbench",
    holds={*_PLACE, "visual_input", "question", "gt_answer"},
    make=_make,
    columns={"problem": "question", "answer": "gt_answer"},
    pictures="V[DS]",
)
