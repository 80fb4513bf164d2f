"""ChartQA: test/test_human.json and test/test_augmented.json (lists) with png/, or the hub's table.

Which half a question belongs to, human or augmented, is in the metadata.
"""

from pathlib import Path

from data_prep.formats.layout import Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile

_FILE_MARKS = {"imgname", "query", "label"}
_HUB_MARKS = {"image", "query", "label", "human_or_machine"}
_HALVES = {"0": "human", "1": "augmented", "machine": "augmented"}


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    label = column(record, "label")
    if "imgname" in record:
        half, named = file.path.stem.rpartition("_")[2], {"image": f"png/{record['imgname']}"}
    else:
        half, named = str(column(record, "human_or_machine")), {}
    half = _HALVES.get(half, half)
    return {
        "id": f"{half}/{key}",
        "images": picture({**record, **named}, image_root, "image"),
        "problem": column(record, "query"),
        "answer": str(label[0] if isinstance(label, list | tuple) and label else label),
        "metadata": kept({}, half=half),
    }


LAYOUT = Layout(
    "chartqa",
    holds=lambda record: record.keys() == _FILE_MARKS or record.keys() == _HUB_MARKS,
    make=_make,
    columns={"problem": "query", "answer": "label"},
    pictures="png",
    folders=("", "data/", "test/", "ChartQA Dataset/test/"),
    split=lambda path, record: path.stem.split("_")[0].split("-")[0],
)
