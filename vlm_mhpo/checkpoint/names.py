"""Where the parts of a checkpoint lie."""

from __future__ import annotations

import re
from pathlib import Path

FORMAT_VERSION = 2
ENGINE_TAG = "engine"
MANIFEST = "manifest.json"
STATE = "state.json"
# Folders that are not checkpoints: half written, or half removed. The next save clears them away.
STAGING, REMOVED = ".staging_", ".removed_"


def folder_of(root: Path, step: int) -> Path:
    """Where the checkpoint after `step` steps lies."""
    return root / f"step_{step:06d}"


def steps_in(root: Path) -> list[int]:
    """Steps of the committed checkpoints, oldest first."""
    names = [path.name for path in root.iterdir() if path.is_dir()] if root.is_dir() else []
    return sorted(int(match[1]) for name in names if (match := re.fullmatch(r"step_(\d{6,})", name)))


def step_of(path: Path, root: Path) -> int | None:
    """The step whose checkpoint under `root` is at or above `path`; None for a path of none of them."""
    folder, root = path.resolve(), root.resolve()
    inside = next((part for part in (folder, *folder.parents) if part.parent == root), None)
    return next((step for step in steps_in(root) if folder_of(root, step) == inside), None)


def leftovers_in(root: Path) -> list[Path]:
    """What interrupted saves left behind."""
    return sorted(path for path in root.iterdir() if path.name.startswith((STAGING, REMOVED)))
