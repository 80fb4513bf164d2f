"""Pictures of a run folder as small images: decoded, shrunk and written anew, never copied byte for byte."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from data_prep import DataError, open_image, resolve_image_path

MAX_SIDE = 512  # pixels of the longer side on the page


def open_picture(folder: Path, relative: str, max_side: int = MAX_SIDE) -> Image.Image | None:
    """A image of the run folder as RGB, its longer side at most `max_side` pixels.

    None when it cannot be shown: it lies outside the folder, is missing, over a limit, or not an image.
    """
    try:
        picture = open_image(resolve_image_path(folder, relative))
    except DataError:
        return None
    picture.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    return picture


def data_uri(picture: Image.Image) -> str:
    """A image as a data: URI, in the smaller of PNG (exact) and JPEG."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=85)
    kind, data = ("png", png) if png.tell() <= jpeg.tell() else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


def webp_uri(picture: Image.Image) -> str:
    """A image as a data: URI in lossy WebP: quick to write and small, for pages of hundreds of them."""
    data = io.BytesIO()
    picture.save(data, "WEBP", quality=75)
    return f"data:image/webp;base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


class PictureBudget:
    """Hands out data URIs of a run's images until `max_bytes` of them are used; each file counts once."""

    def __init__(
        self,
        folder: Path,
        max_bytes: int,
        encode: Callable[[Image.Image], str] = data_uri,
        max_side: int = MAX_SIDE,
    ) -> None:
        self._folder, self._encode, self._max_side = folder, encode, max_side
        self._bytes_left = max_bytes
        self._uris: dict[str, str | None] = {}

    def uri(self, relative: str) -> str | None:
        """The data URI of an image, or None when it cannot be shown or the budget is used up."""
        if relative not in self._uris:
            picture = open_picture(self._folder, relative, self._max_side)
            uri = None if picture is None else self._encode(picture)
            if uri is not None and len(uri) > self._bytes_left:
                uri = None
            self._bytes_left -= len(uri or "")
            self._uris[relative] = uri
        return self._uris[relative]
