"""A disk that kills, fails, or loses at a power cut what was not fsynced, at any one operation of a save."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from vlm_mhpo.checkpoint import Disk


class Killed(BaseException):
    """The process ends here; nothing of a save may catch it."""


class UnreliableDisk(Disk):
    """Real files, counted operations, and a memory of what a power cut would take.

    The model of a power cut: bytes of a file that was not fsynced since it was written are gone. Names (of new files
    and folders, and after a rename) that their folder's fsync did not cover are kept or gone, whichever hurts.
    """

    def __init__(self, kill_at: int = -1, *, torn: bool = False, fail: Callable[[int, str], int] | None = None) -> None:
        self.operations: list[str] = []
        self._kill_at, self._torn, self._fail = kill_at, torn, fail
        self._unsynced: list[Path] = []
        # (folder whose fsync makes it last, how to undo it), in order.
        self._pending: list[tuple[Path, Callable[[], None]]] = []

    def _begin(self, kind: str, path: Path) -> bool:
        """Count an operation; True when it shall be torn."""
        number = len(self.operations)
        self.operations.append(f"{kind} {path.name}")
        if number == self._kill_at and not self._torn:
            raise Killed
        if self._fail and (code := self._fail(number, kind)):
            if kind == "write":
                path.write_bytes(b"half")
            raise OSError(code, os.strerror(code), str(path))
        return number == self._kill_at

    def make_folder(self, folder: Path) -> None:
        self._begin("make_folder", folder)
        for new in (each for each in (folder, *folder.parents) if not each.exists()):
            self._note(new.parent, lambda new=new: shutil.rmtree(new, ignore_errors=True))
        super().make_folder(folder)

    def write(self, file: Path, fill: Callable[[BinaryIO], None]) -> None:
        torn = self._begin("write", file)
        if not file.exists():
            self._note(file.parent, lambda: file.unlink(missing_ok=True))
        super().write(file, fill)
        self._unsynced.append(file)
        self._tear(torn, file)

    def write_folder(self, folder: Path, fill: Callable[[Path], None]) -> None:
        torn = self._begin("write_folder", folder)
        super().write_folder(folder, fill)
        files = [path for path in folder.rglob("*") if path.is_file()]
        for file in files:
            self._note(file.parent, lambda file=file: file.unlink(missing_ok=True))
        self._note(folder.parent, lambda: shutil.rmtree(folder, ignore_errors=True))
        self._unsynced += files
        self._tear(torn, files[-1])

    def fsync(self, path: Path) -> None:
        self._begin("fsync", path)
        self._unsynced = [file for file in self._unsynced if file != path]
        self._pending = [(folder, undo) for folder, undo in self._pending if folder != path]

    def rename(self, old: Path, new: Path) -> None:
        self._begin("rename", old)
        before = new.read_bytes() if new.is_file() else None
        super().rename(old, new)
        moved = [(folder, undo) for folder, undo in self._pending if folder.is_relative_to(old)]
        # Names inside a moved folder that were never fsynced are lost under the new name as well.
        self._pending = [entry for entry in self._pending if entry not in moved]
        self._unsynced = [new / file.relative_to(old) if file.is_relative_to(old) else file for file in self._unsynced]

        def undo() -> None:
            if new.exists():
                os.rename(new, old)
            if before is not None:
                new.write_bytes(before)
            for _, inner in reversed(moved):
                inner()

        self._note(new.parent, undo)
        for _ in moved:
            self._note(old, lambda: [child.unlink() for child in new.rglob("*") if child.is_file()])

    def remove(self, file: Path) -> None:
        self._begin("remove", file)
        super().remove(file)

    def remove_folder(self, folder: Path) -> None:
        self._begin("remove_folder", folder)
        super().remove_folder(folder)

    def cut_power(self, *, names_too: bool) -> None:
        """Take away what the disk had not been told to keep."""
        for file in self._unsynced:
            if file.is_file():
                file.write_bytes(b"")
        if names_too:
            for _, undo in reversed(self._pending):
                undo()

    def _note(self, folder: Path, undo: Callable[[], None]) -> None:
        self._pending.append((folder, undo))

    def _tear(self, torn: bool, file: Path) -> None:
        if torn:
            content = file.read_bytes()
            file.write_bytes(content[: len(content) // 2])
            raise Killed


NO_SPACE, IO_ERROR = errno.ENOSPC, errno.EIO
