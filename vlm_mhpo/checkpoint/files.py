"""The file layer: every operation of a save on the disk is one method here, so that a test can end a save at any."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from vlm_mhpo.errors import CheckpointError


class Disk:
    """The real disk. A test puts one in its place that counts, fails, loses what was not fsynced, or kills."""

    def make_folder(self, folder: Path) -> None:
        """Make a folder and those above it; never writable by everybody, whatever the umask."""
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)

    def write(self, file: Path, fill: Callable[[BinaryIO], None]) -> None:
        """Make a file with what `fill` writes into it.

        Raises:
            OSError: also where torch hides it behind an error of its own.
        """
        with open(file, "wb", opener=lambda path, flags: os.open(path, flags, 0o644)) as stream:
            sink = Sink(stream)
            try:
                fill(sink)
            except RuntimeError as error:
                raise (sink.problem or error) from error

    def write_folder(self, folder: Path, fill: Callable[[Path], None]) -> None:
        """Let a library write a folder of its own."""
        fill(folder)

    def fsync(self, path: Path) -> None:
        """Force a file's bytes, or a folder's names, to the disk."""
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def rename(self, old: Path, new: Path) -> None:
        """Give a file or folder another name; an existing file of that name is replaced."""
        os.rename(old, new)

    def remove(self, file: Path) -> None:
        """Remove a file or a link."""
        file.unlink()

    def remove_folder(self, folder: Path) -> None:
        """Remove an empty folder."""
        folder.rmdir()


DISK = Disk()


class Sink:
    """A stream that remembers why a write failed: torch reports an error of its own instead."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.problem: OSError | None = None

    def write(self, content: Any) -> int:
        """Write bytes."""
        try:
            return self._stream.write(content)
        except OSError as problem:
            self.problem = self.problem or problem
            raise

    def flush(self) -> None:
        """Nothing: the file is flushed when it is closed and fsynced after."""


def write_json(disk: Disk, file: Path, value: Any) -> None:
    """Write and fsync a JSON file."""
    text = json.dumps(value, indent=1, sort_keys=True)
    disk.write(file, lambda stream: stream.write(text.encode()))
    disk.fsync(file)


def remove_tree(disk: Disk, path: Path) -> None:
    """Remove a file, or a folder with everything in it; links are removed, not followed."""
    if path.is_symlink() or not path.is_dir():
        disk.remove(path)
        return
    for inside in sorted(path.iterdir()):
        remove_tree(disk, inside)
    disk.remove_folder(path)


def files_of(folder: Path) -> list[Path]:
    """Every regular file below a folder, in a fixed order."""
    return sorted(path for path in folder.rglob("*") if path.is_file())


def folders_of(folder: Path) -> list[Path]:
    """A folder and those below it, the deepest first."""
    return [*sorted((path for path in folder.rglob("*") if path.is_dir()), reverse=True), folder]


def listing_of(files: list[Path], folder: Path) -> dict[str, dict[str, Any]]:
    """The manifest's entries of some files: bytes and sha256, by their name inside `folder`."""
    return {str(file.relative_to(folder)): {"bytes": file.stat().st_size, "sha256": sha256(file)} for file in files}


def check_all_here(folder: Path, listing: Mapping[str, Mapping[str, Any]]) -> None:
    """OSError that names the first listed file that is not in the folder with its size.

    Each is opened: a network file system may answer what it remembers of a file until somebody opens it.
    """
    for name, entry in listing.items():
        found = _size(folder / name)
        if found != entry["bytes"]:
            what = "is not there" if found is None else f"has {found} of {entry['bytes']} bytes"
            raise OSError(
                f"{folder / name} {what} where rank 0 looks: put output_dir on a file system that all nodes share"
            )


def _size(file: Path) -> int | None:
    """Bytes of a file, None if there is none."""
    try:
        with file.open("rb") as stream:
            return os.fstat(stream.fileno()).st_size
    except OSError:
        return None


def sha256(file: Path) -> str:
    """Hex digest of a file's bytes."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def only_writer(run_dir: Path) -> Iterator[None]:
    """Hold a run folder's lock; the system frees it when the process ends, however it ends.

    Raises:
        CheckpointError: another process writes into the folder, or it cannot be made.
    """
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(run_dir / ".lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as problem:
        raise CheckpointError(f"output_dir={run_dir} cannot be written: {problem}") from problem
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as busy:
            raise CheckpointError(
                f"{run_dir} is being written by another run: wait until it has ended, or choose another output_dir"
            ) from busy
        except OSError as problem:
            # Some network file systems know no locks; the run is worth more than the guard.
            print(f"WARNING: {run_dir} cannot be locked ({problem}): see to it that only one run writes it", flush=True)
        yield
    finally:
        os.close(handle)
