"""Untrusted image bytes to RGB images: what the header declares is checked before anything is decoded.

Not covered: colour profiles (ignored) and animations (refused); of a phone's photograph with further images behind it
(MPO) the first is read. Nothing here ever reads a URL.
"""

import io
import os
import re
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

from data_prep.images.stored import ImageSource, StoredImage
from data_prep.schema import DataError, RowError

# An honest JPEG has a few dozen segments before its frame header; a hostile one has millions.
_MAX_JPEG_SEGMENTS = 4096
# An honest progressive JPEG has about ten scans; each one is a pass over the whole image.
_MAX_JPEG_SCANS = 64
# The pixels of an honest PNG come in chunks of 8 KiB or more.
_MAX_PNG_CHUNKS = 10_000
_JPEG_SCAN = 0xDA
_JPEG_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
# O_NONBLOCK: opening a FIFO must not wait for its writer.
_FILE_FLAGS = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
_JPEG_BARE_MARKERS = frozenset({0x01, *range(0xD0, 0xD9)})
# What Pillow calls a JPEG with further images behind it (depth, a gain map, the other eye), as phones write them.
_PHOTOGRAPH = "MPO"


class ImageError(DataError):
    """An image that cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class ImageLimits:
    """What an image may cost.

    Attributes:
        max_bytes: encoded size, bytes.
        max_pixels: width x height.
        max_side: longer side, pixels.
        max_aspect: longer side / shorter side.
    """

    max_bytes: int = 20 * 2**20
    max_pixels: int = 16_700_000
    max_side: int = 8192
    max_aspect: float = 200


def open_image(source: ImageSource, limits: ImageLimits = ImageLimits()) -> Image.Image:
    """Decode one PNG, JPEG or WEBP image to RGB, upright, on white.

    EXIF orientation is applied, transparency is composed onto white, 16-bit grey is scaled to 8 bits and CMYK
    converted. The image holds no open file.

    Raises:
        ImageError: missing, unreadable, another format, animated, over a limit, truncated or broken.
    """
    name = _name(source)
    data = read_image(source, limits)
    image_format, width, height = _read_header(data, name)
    _check_size(name, width, height, limits)
    try:
        with Image.open(io.BytesIO(data), formats=(image_format,)) as image:
            is_photograph = image_format == "JPEG" and image.format == _PHOTOGRAPH
            if not is_photograph and (image.format != image_format or getattr(image, "n_frames", 1) != 1):
                raise ImageError(f"{name}: holds several frames; give one still image")
            # A file may declare its size twice; this is the one Pillow would decode.
            _check_size(name, *image.size, limits)
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except ImageError:
        raise
    # Pillow's decoders raise a dozen types on hostile bytes (OSError, SyntaxError, struct.error, zlib.error,
    # MemoryError, ...), and a bad image must stay one bad row.
    except Exception as error:
        raise ImageError(f"{name}: truncated or broken {image_format} ({type(error).__name__}: {error})") from error


def read_image(source: ImageSource, limits: ImageLimits = ImageLimits()) -> bytes:
    """The encoded bytes of a row's image, not looked into: the one way to them.

    A path must be resolved, as those of `resolve_image_path` are.

    Raises:
        ImageError: missing, behind a link, unreadable, not a regular file, over `limits.max_bytes`, or of a table that
            has changed since its rows were read.
    """
    data = source if isinstance(source, bytes) else _read_stored(source, limits.max_bytes)
    if len(data) > limits.max_bytes:
        raise ImageError(f"{_name(source)}: larger than {limits.max_bytes:,} bytes; shrink it or raise max_bytes")
    return data


def open_regular_file(path: Path) -> BinaryIO:
    """A file open for reading; OSError where it is no regular file, or where a link lies on the way to it.

    A path must be resolved, as those of `resolve_image_path` are.
    """
    file = os.fdopen(_open_without_links(path), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise OSError("not a regular file")
    return file


def resolve_image_path(root: Path, reference: str, field: str = "images") -> Path:
    """The file below `root` that a row's `reference` names in a column of images or videos.

    Raises:
        RowError: the reference is a URL, absolute, leaves `root` (`..` or a link) or names no regular file.
    """

    def refuse(reason: str) -> RowError:
        return RowError(f"{reference[:200]!r} {reason}; {field} are relative paths below {root}", field=field)

    if not reference.strip() or "\0" in reference:
        raise refuse("is not a file name")
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", reference) or "://" in reference:
        raise refuse("is a URL or names a drive, and nothing is fetched")
    if reference.startswith(("/", "\\", "~")):
        raise refuse("is an absolute path")
    if ".." in re.split(r"[/\\]", reference):
        raise refuse("climbs out of its folder with '..'")
    try:
        path = (root / reference).resolve()
        inside, is_file = path.is_relative_to(root.resolve()), path.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # name too long, unencodable, a loop of links
        raise refuse(f"cannot be looked up ({error})") from error
    if not inside:
        raise refuse("leads out of the image folder through a link")
    if not is_file:
        raise refuse("does not exist or is not a regular file")
    return path


def _name(source: ImageSource) -> str:
    return f"image of {len(source):,} bytes" if isinstance(source, bytes) else f"image {source}"


def _read_stored(source: Path | StoredImage, max_bytes: int) -> bytes:
    try:
        return source.read_bytes() if isinstance(source, StoredImage) else _read_regular_file(source, max_bytes)
    except (OSError, ValueError) as error:  # ValueError: a name with NUL or half a surrogate pair
        raise ImageError(f"{_name(source)}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def _read_regular_file(path: Path, max_bytes: int) -> bytes:
    with open_regular_file(path) as file:
        return file.read(max_bytes + 1)


def _open_without_links(path: Path) -> int:
    """Descriptor of the file at `path`, folder by folder: a link anywhere on the way is an OSError.

    `resolve_image_path` gave a path without links, so one that is there now was put in after the check.
    """
    if os.open not in os.supports_dir_fd:  # Windows
        return os.open(path, _FILE_FLAGS)
    root, *parts = path.absolute().parts
    # O_PATH asks for the right to pass a folder, not to list it.
    flags = os.O_DIRECTORY | os.O_NOFOLLOW | getattr(os, "O_PATH", os.O_RDONLY)
    folder = os.open(root, flags)
    try:
        for part in parts[:-1]:
            outer, folder = folder, os.open(part, flags, dir_fd=folder)
            os.close(outer)
        return os.open(parts[-1] if parts else ".", _FILE_FLAGS, dir_fd=folder)
    finally:
        os.close(folder)


def _check_size(name: str, width: int, height: int, limits: ImageLimits) -> None:
    if min(width, height) < 1:
        raise ImageError(f"{name}: declares {width} x {height} pixels")
    if width * height > limits.max_pixels or max(width, height) > limits.max_side:
        raise ImageError(
            f"{name}: {width} x {height} pixels is over the limit of {limits.max_pixels:,} pixels "
            f"and {limits.max_side:,} a side; resize it"
        )
    if max(width, height) > limits.max_aspect * min(width, height):
        raise ImageError(f"{name}: {width} x {height} pixels is thinner than 1 : {limits.max_aspect:g}; pad or crop it")


def _read_header(data: bytes, name: str) -> tuple[str, int, int]:
    """(format, width, height) as declared, read without Pillow: its WEBP reader allocates the canvas on opening."""
    try:
        if data.startswith(b"\x89PNG\r\n\x1a\n"):
            return "PNG", *_png_size(data)
        if data.startswith(b"\xff\xd8\xff"):
            return "JPEG", *_jpeg_size(data)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return "WEBP", *_webp_size(data)
    except (struct.error, ValueError) as error:
        raise ImageError(f"{name}: truncated or broken header ({error})") from error
    raise ImageError(f"{name}: not a PNG, JPEG or WEBP image (starts with {data[:8]!r}); convert it first")


def _png_size(data: bytes) -> tuple[int, int]:
    """Width and height; Pillow reads every chunk up to IEND in Python, so a million of them is refused."""
    at = 8
    for _ in range(_MAX_PNG_CHUNKS):
        if at >= len(data) or data[at + 4 : at + 8] == b"IEND":
            return struct.unpack_from(">II", data, 16)
        at += 12 + int.from_bytes(data[at : at + 4], "big")
    raise ValueError(f"more than {_MAX_PNG_CHUNKS} chunks")


def _jpeg_size(data: bytes) -> tuple[int, int]:
    if data.count(b"\xff\xda") > _MAX_JPEG_SCANS:
        raise ValueError(f"more than {_MAX_JPEG_SCANS} scans")
    size = None
    at = 2
    for _ in range(_MAX_JPEG_SEGMENTS):
        prefix, marker = struct.unpack_from("BB", data, at)
        if prefix != 0xFF or marker == _JPEG_SCAN:
            break
        if marker in _JPEG_FRAME_HEADERS and size is None:
            size = struct.unpack_from(">HH", data, at + 5)
        if marker == 0xFF:
            at += 1
        elif marker in _JPEG_BARE_MARKERS:
            at += 2
        else:
            at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    else:
        if size is not None:
            raise ValueError(f"more than {_MAX_JPEG_SEGMENTS} segments")
    if size is None:
        raise ValueError("no JPEG frame header")
    height, width = size
    return width, height


def _webp_size(data: bytes) -> tuple[int, int]:
    chunk = data[12:16]
    if chunk == b"VP8X":
        low_width, high_width, low_height, high_height = struct.unpack_from("<HBHB", data, 24)
        return 1 + low_width + (high_width << 16), 1 + low_height + (high_height << 16)
    if chunk == b"VP8L":
        bits = struct.unpack_from("<I", data, 21)[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if chunk == b"VP8 ":
        width, height = struct.unpack_from("<HH", data, 26)
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(f"unknown WEBP chunk {chunk!r}")


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow clips 16-bit grey at 255 instead of scaling it; 65535 / 257 = 255.
        return image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L").convert("RGB")
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        white.alpha_composite(image.convert("RGBA"))
        return white.convert("RGB")
    return image.convert("RGB")
