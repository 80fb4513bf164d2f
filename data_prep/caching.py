"""Files that can be made again at any time: beside the data where its folder is writable, else in the user's cache."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path

FOLDER = ".vlm_mhpo"


def folders(near: Path | None) -> list[Path]:
    """Where such files may lie, the preferred place first; `near` is a folder of the data."""
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "vlm_mhpo"
    return [user] if near is None else [near / FOLDER, user]


def kept(name: str, near: Path | None) -> Iterator[Path]:
    """The files called `name` that are there, the preferred one first."""
    return (folder / name for folder in folders(near) if (folder / name).is_file())


def keep(name: str, near: Path | None, write: Callable[[Path], None], *, once: bool = False) -> Path:
    """Have `write` write a file aside and rename it to `name`, so that it is whole or not there.

    Args:
        name: of the file; names the content too, so that a file that is there need not be compared.
        write: writes to the path that it is given.
        once: processes that want the same file wait for the first of them and take its file.
    Raises:
        OSError: no place can be written to.
    """
    problem: OSError | None = None
    for folder in folders(near):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with _lock(folder / f"{name}.lock") if once else nullcontext():
                if not (once and (folder / name).is_file()):
                    _write_aside(folder / name, write)
            return folder / name
        except OSError as error:
            problem = error
    raise problem or OSError("there is no place for it")


def _write_aside(target: Path, write: Callable[[Path], None]) -> None:
    descriptor, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
    os.close(descriptor)
    try:
        write(Path(partial))
        os.replace(partial, target)
    finally:
        Path(partial).unlink(missing_ok=True)


def _lock(path: Path):
    from filelock import FileLock

    return FileLock(path)
