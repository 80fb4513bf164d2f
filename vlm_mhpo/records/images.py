"""Copies of images that a run folder keeps."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from data_prep import ImageSource, open_image, read_image


def store_images(run_dir: Path, images: Sequence[ImageSource]) -> list[str]:
    """PNG copies in `run_dir/images`, named by content; returns paths relative to `run_dir`."""
    names: list[str] = []
    for image in images:
        encoded = read_image(image)
        name = f"images/{hashlib.sha256(encoded).hexdigest()[:16]}.png"
        file = run_dir / name
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            open_image(encoded).save(file)
        names.append(name)
    return names
