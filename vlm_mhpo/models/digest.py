"""What tells a model folder from another, wherever it lies, in a second: no weight file is read as a whole."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from vlm_mhpo.models.folder import base_of
from vlm_mhpo.models.loading import model_folder

# What transformers reads of a folder beside the weights.
SETTINGS = (".json", ".jinja", ".txt", ".model")
# Training moves every weight of a tensor; a piece of each tensor tells two models apart.
PIECE = 1024


def digest_of_model(path: str, revision: str | None = None) -> str:
    """A digest of the files of a model (of an adapter and its base): names, settings, sizes, of each tensor 1 KiB.

    Not seen: weights that differ outside the middle of their tensor only, such as those of somebody who wants it so.

    Args:
        path: a folder, or the name of a hub model that lies in the local cache.
        revision: its commit.

    Raises:
        OSError: a file cannot be read; ValueError: it is no safetensors file.
    """
    folder = model_folder(path, revision)
    if folder is None:
        return path
    base, seen = base_of(path, revision, offline=True), hashlib.sha256()
    if base.adapter:
        seen.update(digest_of_model(base.path, base.revision).encode())
    for file in sorted(folder.iterdir()):
        if file.suffix == ".safetensors":
            seen.update(f"{file.name}\0{file.stat().st_size}\0".encode() + _pieces(file))
        elif file.suffix in SETTINGS:
            seen.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return seen.hexdigest()[:16]


def _pieces(file: Path) -> bytes:
    """Digest of a safetensors file's header and of the middle of each of its tensors."""
    seen = hashlib.sha256()
    with file.open("rb") as stream:
        header = stream.read(int.from_bytes(stream.read(8), "little"))
        start = stream.tell()
        seen.update(header)
        for name, entry in sorted(json.loads(header).items()):
            if name == "__metadata__":
                continue
            begin, end = entry["data_offsets"]
            size = min(PIECE, end - begin)
            stream.seek(start + (begin + end - size) // 2)
            seen.update(stream.read(size))
    return seen.digest()
