"""CharXiv's reasoning questions: data/reasoning_<split>.json (an object by name) with images/<figure>.jpg, or the hub.

The answer is a text (categories 1 and 2) or a number (3 and 4). The hub's test split has no answers.
"""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile, split_of

_FILE_MARKS = {"figure_id", "query", "answer", "inst_category"}
_HUB_MARKS = {"reasoning_q", "reasoning_a", "reasoning_a_type", "image"}
_SPLITS = {"reasoning_val": "validation", "reasoning_test": "test", "val": "validation"}
_TEXTS = (1, 2)


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    is_hub = "reasoning_q" in record
    question = column(record, "reasoning_q" if is_hub else "query")
    category = column(record, "reasoning_a_type" if is_hub else "inst_category")
    named = {} if is_hub else {"image": f"images/{column(record, 'figure_id')}.jpg"}
    return {
        "id": Path(str(record.get("figure_path", key) if is_hub else record["figure_id"])).stem,
        "images": picture({**record, **named}, image_root, "image"),
        "problem": question,
        "answer": column(record, "reasoning_a" if is_hub else "answer"),
        "kind": "text" if category in _TEXTS else "auto",
        "metadata": kept(record, "category", "num_subplots", "qa_source")
        | kept({}, inst_category=category, qa_source=record.get("reasoning_q_source", record.get("qa_source"))),
    }


LAYOUT = Layout(
    "charxiv",
    holds=lambda record: record.keys() >= _FILE_MARKS or record.keys() >= _HUB_MARKS,
    make=_make,
    columns={},
    split=lambda path, record: _SPLITS.get(split_of(path), split_of(path)),
)
