"""Copies of images that a run folder keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from data_prep import ImageSource, Row, VideoSource, contact_sheet, open_image, read_image, read_video

if TYPE_CHECKING:
    from PIL.Image import Image


def store_media(run_dir: Path, row: Row) -> list[str]:
    """PNG copies of a row's images and contact sheets of its videos; see `store_images`."""
    sheets = [_store(run_dir, _digest(video), lambda video=video: contact_sheet(video, 8)) for video in row.videos]
    return [*store_images(run_dir, row.images), *sheets]


def store_images(run_dir: Path, images: Sequence[ImageSource]) -> list[str]:
    """PNG copies in `run_dir/images`, named by content; returns paths relative to `run_dir`."""
    encoded = [read_image(image) for image in images]
    return [_store(run_dir, hashlib.sha256(data).hexdigest(), lambda data=data: open_image(data)) for data in encoded]


def _store(run_dir: Path, digest: str, opened: Callable[[], Image]) -> str:
    name = f"images/{digest[:16]}.png"
    file = run_dir / name
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        opened().save(file)
    return name


def _digest(video: VideoSource) -> str:
    if isinstance(video, Path):
        with video.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    data = read_video(video)
    return hashlib.sha256(data if isinstance(data, bytes) else b"".join(data)).hexdigest()
