"""What the files of a webdataset sample say: the columns of its json, its texts, its images.

A sample is a record of `__key__` and its files by what follows the first dot of their names (`jpg`, `json`, `0.png`,
`answer.txt`), as `datasets` gives it and as `formats.webdataset` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

from data_prep.formats.image_cells import VIDEO_COLUMNS, is_image_name, is_video_name
from data_prep.schema import RowError

KEY, PLACE = "__key__", "__url__"
TEXTS = ("txt", "cls")
# Images that Pillow does not open as it comes, or that are drawings.
_UNREAD_IMAGE = re.compile(
    r"(?:.*\.)?(?:hei[cf]s?|avifs?|jp[2xfm]|j2[kc]|jpc|jxl|jxr|svgz?|tga|ppm|pgm|pbm|pnm|pfm|hdr|exr|psd|ico|icns|"
    r"eps|dds|pcx|apng|jfif|emf|wmf|raw|dng|cr2|nef|qoi)",
    re.IGNORECASE,
)
# A `txt` beside one of these is no question.
_ASKED = frozenset({"problem", "question", "Problem", "Question", "prompt", "query", "messages", "message",
                    "conversations"})  # fmt: skip
_ANSWERS = frozenset({"answer", "Answer", "ground_truth", "gt", "target"})
_ANSWERED = _ANSWERS | {"solution", "Solution"}
_CHATS = frozenset({"messages", "message", "conversations", "prompt"})


def is_unread_image(suffix: str) -> bool:
    """Whether a file of a sample is an image of a kind that is not opened, by its name."""
    return _UNREAD_IMAGE.fullmatch(suffix) is not None


def sample_columns(
    sample: Mapping[str, Any], image_columns: tuple[str, ...], id_columns: tuple[str, ...]
) -> dict[str, Any]:
    """The columns of a sample: those of its json, its named texts (`answer.txt`), `images`.

    A bare `txt` is the question and `cls` the answer where nothing else is. Where columns of the json name images of
    the sample, they say which of them are shown and in what order, and others stay columns of their own names, which
    the reader then refuses; where they name other files, those are where the images came from, and all are shown in
    the order of their names. Messages that name images say so in the same way.

    Args:
        image_columns: names under which a column shows or names images.
        id_columns: names under which a sample has an id of its own; else it is the key.
    Raises:
        RowError: the json is no object, a named text says something else, or an image is of a kind that is not opened.
    """
    files = {name: value for name, value in sample.items() if name not in (KEY, PLACE) and value is not None}
    inner = files.pop("json", {})
    if not isinstance(inner, Mapping):
        raise RowError("is no object with columns", field="json")
    columns = {name: value for name, value in inner.items() if value is not None}
    images = {name: files.pop(name) for name in sorted(files, key=_natural) if is_image_name(name)}
    columns |= _videos(columns, {name: files.pop(name) for name in sorted(files, key=_natural) if is_video_name(name)},
                       PurePosixPath(str(sample[KEY])).name)  # fmt: skip
    for name, value in files.items():
        _add_file(columns, name, value)
    if not _ASKED & columns.keys() and "txt" in columns:
        columns["problem"] = columns.pop("txt")
    if not _ANSWERED & columns.keys() and "cls" in columns:
        columns["answer"] = columns.pop("cls")
    if not any(name in columns for name in id_columns):
        columns["id"] = str(sample[KEY])
    return _with_images(columns, images, image_columns, PurePosixPath(str(sample[KEY])).name)


def _videos(columns: dict[str, Any], videos: dict[str, Any], key: str) -> dict[str, Any]:
    """The videos of a sample as a column: those that its json names, in that order, or all; others stay by name."""
    if not videos:
        return {}
    cells = [columns.pop(name) for name in VIDEO_COLUMNS if name in columns]
    listed = [each for cell in cells for each in (cell if isinstance(cell, list) else [cell]) if isinstance(each, str)]
    names = [_own_name(name, key) for name in listed]
    if not names or not set(names) <= videos.keys():
        return {"videos": list(videos.values())}
    others = {name: video for name, video in videos.items() if name not in names}
    return others | {"videos": [videos[name] for name in names]}


def _add_file(columns: dict[str, Any], name: str, value: Any) -> None:
    """Add a file to the columns, under its own name or that of a text without its ending."""
    if is_unread_image(name):
        raise RowError("is an image of a kind that is not opened: store it as PNG, JPEG or WebP, or leave it out with "
                       f"data.ignore_columns=[{name}]", field=name)  # fmt: skip
    column, _, kind = name.rpartition(".")
    column = column if column and kind in ("json", *TEXTS) else name
    others = (_ANSWERS if column in _ANSWERS else {column}) & columns.keys()
    for other in sorted(others):
        if columns[other] != value and str(columns[other]).strip() != str(value).strip():
            said = f"says {str(value)[:60]!r}, and {other!r} of the sample {str(columns[other])[:60]!r}: keep one"
            raise RowError(said, field=name)
    columns.setdefault(column, value)


def _with_images(
    columns: dict[str, Any], images: dict[str, Any], image_columns: tuple[str, ...], key: str
) -> dict[str, Any]:
    """The columns with the images that those of them or their messages name, else with all."""
    if not images:
        return columns
    cells = [columns.pop(name) for name in image_columns if name in columns]
    named = [each for cell in cells for each in (cell if isinstance(cell, list | tuple) else [cell])]
    names = [_own_name(each, key) for each in named if isinstance(each, str)]
    parts = [] if names else list(_image_parts(columns))
    spoken = [_own_name(_named_by(part), key) for part in parts if _named_by(part)]
    if spoken and set(spoken) <= images.keys() and len(spoken) == len(parts):
        shown = iter([images[name] for name in spoken])
        others = {name: image for name, image in images.items() if name not in spoken}
        return {name: _with_parts(value, lambda: next(shown)) if name in _CHATS else value
                for name, value in columns.items()} | others  # fmt: skip
    if spoken and len(parts) == len(images):
        columns = {name: _with_parts(value, lambda: None) if name in _CHATS else value
                   for name, value in columns.items()}  # fmt: skip
    if not names or not set(names) <= images.keys():
        return columns | {"images": list(images.values())}
    others = {name: image for name, image in images.items() if name not in names}
    return columns | others | {"images": [images[name] for name in names]}


def _own_name(name: str, key: str) -> str:
    """What follows the key in the name of a file, as files of a sample are called."""
    return PurePosixPath(name).name.removeprefix(f"{key}.").lower()


def _is_image_part(part: Any) -> bool:
    return isinstance(part, Mapping) and part.get("type") in ("image", "image_url")


def _named_by(part: Mapping[str, Any]) -> str | None:
    image = part.get(part["type"])
    image = image.get("url") if isinstance(image, Mapping) else image
    return image if isinstance(image, str) and is_image_name(image) else None


def _image_parts(columns: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """The images inside the messages of a sample, in order."""
    for name in columns.keys() & _CHATS:
        for message in columns[name] if isinstance(columns[name], list) else ():
            content = message.get("content") if isinstance(message, Mapping) else None
            yield from filter(_is_image_part, content if isinstance(content, list) else ())


def _with_parts(messages: Any, image: Callable[[], Any]) -> Any:
    """Messages whose image parts hold what `image` gives, one after the other."""

    def filled(message: Any) -> Any:
        if not isinstance(message, Mapping) or not isinstance(message.get("content"), list):
            return message
        parts = [{"type": "image", "image": image()} if _is_image_part(part) else part for part in message["content"]]
        return {**message, "content": parts}

    return [filled(message) for message in messages] if isinstance(messages, list) else messages


def asks_and_answers(columns: Mapping[str, Any]) -> bool:
    """Whether columns hold one question in words and an answer, and not those of a whole table."""
    asked = [columns[name] for name in _ASKED & columns.keys()]
    is_one = any(isinstance(value, str) or (isinstance(value, list) and _is_messages(value)) for value in asked)
    answered = any(not isinstance(columns[name], list | Mapping) for name in _ANSWERED & columns.keys())
    return is_one and (answered or bool(_CHATS & columns.keys()))


def _is_messages(value: list[Any]) -> bool:
    return bool(value) and all(isinstance(each, Mapping) and each.keys() & {"role", "from"} for each in value)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sorts 2.png before 10.png."""
    return [(int(digits or 0), text) for digits, text in re.findall(r"(\d*)(\D*)", name)]
