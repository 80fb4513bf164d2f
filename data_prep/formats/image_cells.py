"""The images that the cells of a table hold or name: bytes, handles, paths, data URLs, base64."""

import base64
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from data_prep.images.opening import resolve_image_path
from data_prep.images.stored import ImageSource, StoredImage, VideoSource
from data_prep.schema import RowError

# Columns of images. Of several the first that is not empty counts, where the others only name files of the same images.
_SHOWN = ("images", "image", "img", "imgs", "picture", "pictures")
IMAGE_COLUMNS = (*_SHOWN, "image_path", "image_paths", "image_file", "image_files", "img_path", "file_name")
# A path is shorter, or has a dot or another character that base64 lacks.
_LEAST_BASE64, _NOT_BASE64 = 100, re.compile(r"[^A-Za-z0-9+/=\s]")
VIDEO_COLUMNS = ("videos", "video")
_VIDEO_END = re.compile(r"(?:.*\.)?(?:mp4|webm|avi|mov|mkv|m4v)", re.IGNORECASE | re.DOTALL)
_IMAGE_END = re.compile(r"(?:.*\.)?(?:png|jpe?g|webp|gif|bmp|tiff?)", re.IGNORECASE | re.DOTALL)


def images_of(record: Mapping[str, Any], image_root: Path | None) -> list[ImageSource]:
    """The images of a record in plain columns."""
    names = [name for name in IMAGE_COLUMNS if record.get(name) not in (None, "", [], ())]
    shown = [name for name in names if name in _SHOWN]
    if len(shown) > 1:
        raise RowError(f"is there beside {shown[1]!r}; keep one of them", field=shown[0])
    return [image_from(image, image_root) for image in _listed(record[names[0]])] if names else []


def image_from(image: Any, image_root: Path | None) -> ImageSource:
    """The image a cell holds or names: bytes, {"bytes", "path"}, or a path below `image_root` (None: refused).

    Raises:
        RowError: for the field "images".
    """
    if isinstance(image, Mapping):
        # {"image": ...} is what verl hands to qwen-vl-utils.
        image = next((image[name] for name in ("bytes", "path", "image") if image.get(name) is not None), None)
    if isinstance(image, StoredImage):
        return image
    if not isinstance(image, str):
        raise RowError(f"holds a {type(image).__name__}, not a path or encoded bytes", field="images")
    if (encoded := _from_base64(image)) is not None:
        return encoded
    if image_root is None:
        raise RowError(
            f"names {image[:200]!r} instead of holding image bytes, and nothing is fetched; "
            "download the images and give their folder as image root",
            field="images",
        )
    return resolve_image_path(image_root, _relative(image_root, image))


def videos_of(record: Mapping[str, Any], image_root: Path | None) -> list[VideoSource]:
    """The videos of a record: `videos` is a list of them, `video` one, each a file or a list of its frames.

    Raises:
        RowError: naming the column.
    """
    names = [name for name in VIDEO_COLUMNS if record.get(name) not in (None, "", [], ())]
    if len(names) > 1:
        raise RowError(f"is there beside {names[1]!r}; keep one of them", field=names[0])
    if not names:
        return []
    cell = record[names[0]]
    several = isinstance(cell, list | tuple) and (names[0] == "videos" or all(map(_is_video_file, cell)))
    return [_video_from(video, image_root, names[0]) for video in (cell if several else [cell])]


def _video_from(video: Any, image_root: Path | None, field: str) -> VideoSource:
    if isinstance(video, Mapping):
        # {"video": ...} is what verl hands to qwen-vl-utils; {"frames": ...} is ours.
        video = next(
            (video[name] for name in ("bytes", "frames", "path", "video") if video.get(name) is not None), None
        )
    if isinstance(video, StoredImage):
        return video
    try:
        if isinstance(video, list | tuple):
            return tuple(image_from(frame, image_root) for frame in video)
        if isinstance(video, str) and image_root is not None:
            return resolve_image_path(image_root, _relative(image_root, video), field)
    except RowError as error:
        raise RowError(error.message, field=field) from error
    if isinstance(video, str):
        raise RowError(f"names {video[:200]!r}, and nothing is fetched; give the folder of the videos as image root",
                       field=field)  # fmt: skip
    raise RowError(f"holds a {type(video).__name__}, not a path, encoded bytes or a list of frames", field=field)


def _is_video_file(value: Any) -> bool:
    return isinstance(value, Mapping | StoredImage) or (isinstance(value, str) and is_video_name(value))


def is_video_name(name: str) -> bool:
    """Whether a file name, or the end of one without its dot, is that of a video."""
    return _VIDEO_END.fullmatch(name) is not None


def is_image_name(name: str) -> bool:
    """Whether a file name, or the end of one without its dot, is that of an image that is opened."""
    return _IMAGE_END.fullmatch(name) is not None


def _from_base64(text: str) -> bytes | None:
    """The bytes of a `data:image/...;base64,` URL or of a bare base64 text of an image; None for any other text.

    Raises:
        RowError: a data URL that is no base64 of an image.
    """
    header, comma, body = text.partition(",") if text.startswith("data:") else ("", "", text)
    if not header and (len(text) < _LEAST_BASE64 or _NOT_BASE64.search(text[:_LEAST_BASE64])):
        return None
    try:
        data = base64.b64decode("".join(body.split()), validate=True)
    except ValueError as error:
        if header:
            raise RowError(f"is a data URL whose base64 is broken: {error}", field="images") from error
        return None
    if header and not (header.startswith("data:image/") and header.endswith(";base64") and comma):
        raise RowError(f"is a data URL of {header[5:60]!r}, not of an image as base64", field="images")
    return data


def _relative(root: Path, reference: str) -> str:
    """A `reference` relative to `root` where it is an absolute path or file:// URL below it; else as it is."""
    absolute = Path(reference.removeprefix("file://"))
    for base in (root.absolute(), root.resolve()):
        if absolute.is_absolute() and absolute.is_relative_to(base):
            return str(absolute.relative_to(base))
    return reference


def refuse_unread_images(record: Mapping[str, Any], read: Collection[str], image_root: Path | None) -> None:
    """RowError for a column that holds images or names files of images or videos, and is not among those read."""
    for name, value in record.items():
        if name not in read and any(_is_file(each, image_root, is_video_name) for each in _listed(value)):
            raise RowError(
                f"names a video, and no column of that name is read: say data.columns={{videos: {name}}} if the "
                f"question shows it, or data.ignore_columns=[{name}] if not",
                field=name,
            )
        if name not in read and any(_is_image(each, image_root) for each in _listed(value)):
            raise RowError(
                f"holds an image, and no column of that name is read: say data.columns={{images: {name}}} if the "
                f"question shows it, or data.ignore_columns=[{name}] if not (prepare and audit: --columns "
                f"images={name}, --ignore-columns {name})",
                field=name,
            )


def _listed(value: Any) -> Any:
    return value if isinstance(value, list | tuple) else (value,)


def _is_image(value: Any, image_root: Path | None) -> bool:
    """Whether a cell holds an encoded image, or names a file of one that is there."""
    if isinstance(value, Mapping):
        return any(_is_image(value.get(name), image_root) for name in ("bytes", "path"))
    if isinstance(value, StoredImage):
        return True
    return _is_file(value, image_root, is_image_name)


def _is_file(value: Any, image_root: Path | None, is_name: Callable[[str], bool]) -> bool:
    """Whether a cell names a file that is there, of a kind that is told by its name."""
    if not isinstance(value, str) or image_root is None or "." not in value or not is_name(value):
        return False
    try:
        return resolve_image_path(image_root, _relative(image_root, value)).is_file()
    except RowError:
        return False
