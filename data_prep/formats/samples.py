"""What the files of a webdataset sample say: the columns of its json, its texts, its images.

A sample is a record of `__key__` and its files by what follows the first dot of their names (`jpg`, `json`, `0.png`,
`answer.txt`), as `datasets` gives it and as `formats.webdataset` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from data_prep.schema import RowError

KEY, PLACE = "__key__", "__url__"
TEXTS = ("txt", "cls")
_IMAGE = re.compile(r"(?:.*\.)?(?:png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE)
_VIDEO = re.compile(r"(?:.*\.)?(?:mp4|webm|avi|mov|mkv)", re.IGNORECASE)
# A `txt` beside one of these is no question.
_ASKED = frozenset({"problem", "question", "Problem", "Question", "prompt", "query", "messages", "message",
                    "conversations"})  # fmt: skip
_ANSWERED = frozenset({"answer", "Answer", "ground_truth", "gt", "target", "solution", "Solution"})


def is_image(suffix: str) -> bool:
    """Whether a file of a sample is an image, by its name."""
    return _IMAGE.fullmatch(suffix) is not None


def is_video(suffix: str) -> bool:
    """Whether a file of a sample is a video, by its name."""
    return _VIDEO.fullmatch(suffix) is not None


def sample_columns(sample: Mapping[str, Any], image_columns: tuple[str, ...]) -> dict[str, Any]:
    """The columns of a sample: those of its json, its named texts (`answer.txt`), `images`.

    A bare `txt` is the question and `cls` the answer where nothing else is. Where columns of the json name images of
    the sample, they say which of them are shown and in what order, and others stay columns of their own names, which
    the reader then refuses; where they name other files, those are where the images came from, and all are shown in
    the order of their names.

    Args:
        image_columns: names under which a column shows or names images.
    Raises:
        RowError: the json is no object.
    """
    files = {name: value for name, value in sample.items() if name not in (KEY, PLACE) and value is not None}
    inner = files.pop("json", {})
    if not isinstance(inner, Mapping):
        raise RowError("is no object with columns", field="json")
    columns = {name: value for name, value in inner.items() if value is not None}
    images = {name: files.pop(name) for name in sorted(files, key=_natural) if is_image(name)}
    for name, value in files.items():
        column, _, kind = name.rpartition(".")
        columns.setdefault(
            column if column and kind in ("json", *TEXTS) else "video" if is_video(name) else name, value
        )
    if not _ASKED & columns.keys() and "txt" in columns:
        columns["problem"] = columns.pop("txt")
    if not _ANSWERED & columns.keys() and "cls" in columns:
        columns["answer"] = columns.pop("cls")
    columns.setdefault("id", str(sample[KEY]))
    return _with_images(columns, images, image_columns, PurePosixPath(str(sample[KEY])).name)


def _with_images(
    columns: dict[str, Any], images: dict[str, Any], image_columns: tuple[str, ...], key: str
) -> dict[str, Any]:
    if not images:
        return columns
    cells = [columns.pop(name) for name in image_columns if name in columns]
    named = [each for cell in cells for each in (cell if isinstance(cell, list | tuple) else [cell])]
    names = [PurePosixPath(each).name.removeprefix(f"{key}.").lower() for each in named if isinstance(each, str)]
    if not names or not set(names) <= images.keys():
        return columns | {"images": list(images.values())}
    others = {name: image for name, image in images.items() if name not in names}
    return columns | others | {"images": [images[name] for name in names]}


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d*)(\D*)", name)]
