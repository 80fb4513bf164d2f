"""PuzzleVQA and AlgoPuzzleVQA: <part>/data/<category>.json, JSON Lines despite the name, with images/.

The gold is an option's text. The splits are PuzzleVQA and AlgoPuzzleVQA.
"""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile

_MARKS = {"image", "question", "options", "answer"}
_PARTS = ("PuzzleVQA", "AlgoPuzzleVQA")


def _holds(record: Record) -> bool:
    is_puzzle = record.keys() >= {"caption", "explanation", "deduction"}
    return record.keys() >= _MARKS and (is_puzzle or isinstance(record.get("solution"), dict))


def _split(path: Path, record: Record) -> str:
    return _PARTS[0] if "deduction" in record else _PARTS[1]


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    category, part = file.path.stem, _split(file.path, record)
    return {
        "id": f"{part}/{category}/{key}",
        "images": picture(record, image_root, "image"),
        "problem": column(record, "question"),
        "choices": column(record, "options"),
        "answer": column(record, "answer"),
        "metadata": kept(record, "caption", "explanation", "deduction", category=category, part=part),
    }


LAYOUT = Layout(
    "puzzlevqa",
    holds=_holds,
    make=_make,
    columns={"problem": "question", "choices": "options"},
    folders=("", "data/", *(f"{part}/data/" for part in _PARTS)),
    split=_split,
)
