"""M3CoT: data/<split>.jsonl with the images that they name, or the hub's tables; the gold is a letter."""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile

_MARKS = {"id", "category", "question", "choices", "context", "answer", "rationale", "domain", "topic"}


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    question, context = column(record, "question"), record.get("context") or ""
    return {
        "id": column(record, "id"),
        "images": picture(record, image_root, "image", "image_path"),
        "problem": f"{context}\n{question}" if context else question,
        "choices": column(record, "choices"),
        "answer": column(record, "answer"),
        "by_letter": True,
        "solution": record.get("rationale") or None,
        "metadata": kept(record, "category", "domain", "topic", "context", question=question),
    }


LAYOUT = Layout("m3cot", holds=_MARKS, make=_make, columns={"problem": "question", "solution": "rationale"})
