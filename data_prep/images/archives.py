"""Untrusted archives to a fresh folder: every member is checked before the first one is written.

The rules for names and kinds are our own: tarfile's data filter, which knows no zip, lets links inside the folder pass,
cuts the root off an absolute path instead of refusing it, and takes backslashes, control characters and names that
differ in case only. A limit on the sum, the number and the ratio no library has.

Not covered: archives inside archives (they stay files), tar compressed otherwise than by gzip, encrypted members.
"""

import gzip
import hashlib
import io
import os
import re
import shutil
import stat
import struct
import tarfile
import tempfile
import unicodedata
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from data_prep.schema import DataError

ZIP_SUFFIXES = (".zip",)
TAR_SUFFIXES = (".tar", ".tar.gz", ".tgz")

_CHUNK = 2**20
# Longest stretch that is read at once for names and headers; a larger catalogue or header is hostile.
_MAX_HEADER = 16 * 2**20
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
# What zipfile, tarfile, gzip and zlib raise on bytes that are no such archive.
_BROKEN = (zipfile.BadZipFile, tarfile.TarError, zlib.error, struct.error, EOFError, RuntimeError, ValueError)


class ArchiveError(DataError):
    """An archive that is not unpacked; the text says which and why."""


@dataclass(frozen=True, slots=True)
class ArchiveLimits:
    """What an archive may cost.

    Attributes:
        max_entries: files and folders.
        max_bytes: unpacked size of all files together.
        max_ratio: unpacked size / size of the archive; the first `free_bytes` are not counted.
        free_bytes: what any archive may unpack to; a small table of text compresses well.
    """

    max_entries: int = 100_000
    max_bytes: int = 50 * 2**30
    max_ratio: int = 100
    free_bytes: int = 64 * 2**20

    def allowed_bytes(self, archive_bytes: int) -> int:
        """Unpacked bytes that an archive of `archive_bytes` may hold."""
        return min(self.max_bytes, max(self.free_bytes, self.max_ratio * archive_bytes))


@dataclass(frozen=True, slots=True)
class _Member:
    """A file or folder in an archive; `size` is as declared, `open` is None for a folder."""

    name: str
    size: int
    open: Callable[[], IO[bytes]] | None


def is_archive(path: Path) -> bool:
    """Whether `path` is a file that is named like a zip or tar archive."""
    return path.name.lower().endswith(ZIP_SUFFIXES + TAR_SUFFIXES) and path.is_file()


def unpack(archive: Path, limits: ArchiveLimits = ArchiveLimits()) -> Path:
    """The folder with the files of `archive`, in `.unpacked-<checksum>` beside it; made once for its content.

    A single folder that holds all the rest is stepped into.

    Raises:
        ArchiveError: not an archive, over a limit, or it has a member that leaves the folder, is a link or device,
            or is there twice. Nothing is left behind.
    """
    try:
        with archive.open("rb") as file:
            home = archive.parent / f".unpacked-{hashlib.file_digest(file, 'sha256').hexdigest()[:16]}"
            folder = home / archive.name.split(".")[0]
            if not folder.is_dir():
                _unpack_into(home, folder.name, file, archive, limits)
    except OSError as error:
        raise ArchiveError(f"{archive} cannot be unpacked beside itself ({error}); unpack it elsewhere") from error
    inside = [path for path in folder.iterdir() if path.name != "__MACOSX"]
    return inside[0] if len(inside) == 1 and inside[0].is_dir() else folder


def _unpack_into(home: Path, name: str, file: IO[bytes], archive: Path, limits: ArchiveLimits) -> None:
    size = os.fstat(file.fileno()).st_size
    with _as_archive_error(archive, *_BROKEN, OSError):
        for _ in _checked(_members(archive, file), limits, size):
            pass
    staging = Path(tempfile.mkdtemp(prefix=".unpacking-", dir=home.parent))
    try:
        (staging / name).mkdir()
        # Checked again, so that a file that changes meanwhile gains nothing.
        with _as_archive_error(archive, *_BROKEN, gzip.BadGzipFile):
            for member in _checked(_members(archive, file), limits, size):
                _write(member, staging / name)
        try:
            os.rename(staging, home)
        except OSError:
            # Another rank may have been faster; its folder is as good, for the name is the content's checksum.
            if not (home / name).is_dir():
                raise
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def _as_archive_error(archive: Path, *broken: type[Exception]) -> Iterator[None]:
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{archive} is not unpacked: {error}") from error
    except broken as error:
        raise ArchiveError(f"{archive} is no whole archive ({type(error).__name__}: {error})") from error


def _members(archive: Path, file: IO[bytes]) -> Iterator[_Member]:
    file.seek(0)
    if archive.name.lower().endswith(ZIP_SUFFIXES):
        return _zip_members(file)
    is_packed = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    return _tar_members(gzip.GzipFile(fileobj=file) if is_packed else file)


def _zip_members(file: IO[bytes]) -> Iterator[_Member]:
    with zipfile.ZipFile(_ShortReads(file)) as packed:
        for info in packed.infolist():
            # zipfile cuts a name at NUL; the original is what is checked.
            name, kind = info.orig_filename, stat.S_IFMT(info.external_attr >> 16)
            if info.flag_bits & 1:
                raise ArchiveError(f"{name!r} is encrypted")
            if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                raise ArchiveError(f"{name!r} is packed by method {info.compress_type}; use deflate or none")
            if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
                raise ArchiveError(f"{name!r} is a link or device, not a file or folder")
            opener = None if info.is_dir() else (lambda info=info: packed.open(info))
            yield _Member(name, info.file_size, opener)


def _tar_members(file: IO[bytes]) -> Iterator[_Member]:
    with tarfile.open(fileobj=_ShortReads(file), mode="r:") as packed:
        while info := packed.next():
            # tarfile remembers every member; a million headers would fill the memory.
            packed.members.clear()
            if not (info.isdir() or info.type in (tarfile.REGTYPE, tarfile.AREGTYPE)) or info.issparse():
                raise ArchiveError(f"{info.name!r} is a link, device or sparse file, not a file or folder")
            opener = None if info.isdir() else (lambda info=info: packed.extractfile(info))
            yield _Member(info.name, info.size, opener)
        # tarfile takes a broken header for the end.
        packed.fileobj.seek(packed.offset)
        if packed.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ArchiveError("it is cut off or has a broken header")
        # To the end, where gzip keeps the checksum of the whole.
        packed.fileobj.read(_MAX_HEADER)


def _checked(members: Iterator[_Member], limits: ArchiveLimits, archive_bytes: int) -> Iterator[_Member]:
    """The members, each only after it and all before it were found harmless."""
    allowed = limits.allowed_bytes(archive_bytes)
    total = 0
    kinds: dict[str, bool] = {}
    for number, member in enumerate(members, start=1):
        if number > limits.max_entries:
            raise ArchiveError(f"it has more than {limits.max_entries:,} entries; split it or unpack it yourself")
        parts = _safe_parts(member.name)
        _check_new(kinds, parts, member)
        total += 0 if member.open is None else member.size
        if member.size < 0 or total > allowed:
            raise ArchiveError(
                f"up to {member.name!r} it unpacks to {total:,} bytes, over the limit of {allowed:,} for an archive of "
                f"{archive_bytes:,}; unpack it yourself if you trust it"
            )
        yield member


def _safe_parts(name: str) -> list[str]:
    """The names on the way to a member; ArchiveError if they lead elsewhere than below the folder."""
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if _CONTROL.search(name) or "\\" in name or len(name) > 1024:
        raise ArchiveError(f"{name[:100]!r} is no plain file name")
    if name.startswith(("/", "~")) or re.match(r"[A-Za-z]:", name):
        raise ArchiveError(f"{name!r} is an absolute path")
    if ".." in parts:
        raise ArchiveError(f"{name!r} climbs out of its folder with '..'")
    try:
        too_long = any(len(part.encode()) > 255 for part in parts)
    except UnicodeEncodeError:
        too_long = True
    if too_long:
        raise ArchiveError(f"{name[:100]!r} is no plain file name")
    return parts


def _check_new(kinds: dict[str, bool], parts: list[str], member: _Member) -> None:
    """Note the member and the folders above it in `kinds` (whether a name is a file); refuse what is there twice."""
    # Some disks take names for the same that differ in case or composition.
    folded = [unicodedata.normalize("NFC", part).casefold() for part in parts]
    above = ["/".join(folded[:end]) for end in range(1, len(folded))]
    name = "/".join(folded)
    is_file = member.open is not None
    if is_file and not parts:
        raise ArchiveError(f"{member.name!r} is a file without a name")
    if (name in kinds and (is_file or kinds[name])) or any(kinds.get(folder) for folder in above):
        raise ArchiveError(f"{member.name!r} is there twice")
    kinds |= dict.fromkeys(above, False) | {name: is_file}


def _write(member: _Member, folder: Path) -> None:
    target = folder.joinpath(*_safe_parts(member.name))
    if member.open is None:
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    written = 0
    with member.open() as packed, target.open("xb") as file:
        while chunk := packed.read(_CHUNK):
            written += len(chunk)
            if written > member.size:
                raise ArchiveError(f"{member.name!r} is larger than the {member.size:,} bytes it declares")
            file.write(chunk)
    if written != member.size:
        raise ArchiveError(f"{member.name!r} has {written:,} of the {member.size:,} bytes it declares")


class _ShortReads(io.RawIOBase):
    """A file that refuses a long read: zipfile and tarfile take a whole catalogue or header into memory at once."""

    def __init__(self, file: IO[bytes]):
        self._file = file

    def read(self, size: int = -1) -> bytes:
        """As of the file; ArchiveError above `_MAX_HEADER` bytes."""
        data = self._file.read(size if 0 <= size <= _MAX_HEADER else _MAX_HEADER + 1)
        if len(data) > _MAX_HEADER:
            raise ArchiveError(f"its list of names is longer than {_MAX_HEADER:,} bytes")
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of the file."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As of the file."""
        return self._file.tell()

    def seekable(self) -> bool:
        """True: archives are files."""
        return True

    def readable(self) -> bool:
        """True."""
        return True
