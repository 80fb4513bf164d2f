"""Archives cannot escape or explode: whatever is wrong with a member is found before the first byte is written."""

import gzip
import io
import json
import stat
import struct
import tarfile
import time
import zipfile
import zlib
from pathlib import Path

import pytest

from data_prep import DataError, load_rows
from data_prep.images.archives import ArchiveError, ArchiveLimits, unpack
from tests.builders import picture

ROW = json.dumps({"problem": "<image>How many?", "answer": "2", "images": ["pictures/a.png"]}).encode() + b"\n"
HONEST = {"train.jsonl": ROW, "pictures/a.png": picture(28, 28)}


def zipped(members: dict[str, bytes], **external: int) -> bytes:
    """A zip of these files; `external` gives a member by its name without suffix another Unix mode."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as packed:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = external.get(name.split(".")[0], stat.S_IFREG | 0o644) << 16
            packed.writestr(info, data, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def tarred(*members: tuple[str, bytes] | tarfile.TarInfo, mode: str = "w", **options) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode=mode, **options) as packed:
        for member in members:
            info, data = (
                (member, b"") if isinstance(member, tarfile.TarInfo) else (tarfile.TarInfo(member[0]), member[1])
            )
            info.size = len(data) or info.size
            packed.addfile(info, io.BytesIO(data) if data else None)
    return stream.getvalue()


def special(name: str, kind: bytes = tarfile.REGTYPE, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def claiming(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """The header of a tar member that says how large it is, and nothing of it."""
    info = special(name, kind)
    info.size = size
    return info.tobuf(tarfile.GNU_FORMAT)


def zip_claiming(size: int) -> bytes:
    """A zip whose only member claims another unpacked size, in both places where that is written."""
    data = zipped({"a.jsonl": bytes(1000)})
    wrong, right = struct.pack("<L", size), struct.pack("<L", 1000)
    assert data.count(right) == 2
    return data.replace(right, wrong)


def many_zip_entries(number: int) -> bytes:
    """A zip whose catalogue lists so many empty members."""
    entry = struct.pack("<4s4B4HL2L5H2L", b"PK\1\2", 20, 3, 20, 0, 0, 0, 0, 33, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0)
    catalogue = b"".join(entry + b"%07d" % index for index in range(number))
    some = min(number, 0xFFFF)
    return catalogue + struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, some, some, len(catalogue), 0, 0)


def gzipped(*pieces: tuple[bytes, int]) -> bytes:
    """Pieces, each repeated, compressed without ever being in memory as a whole."""
    packer = zlib.compressobj(1, zlib.DEFLATED, 31)
    out = [packer.compress(piece) for piece, times in pieces for _ in range(times)]
    return b"".join([*out, packer.flush()])


MIB = 2**20
LIMITS = ArchiveLimits()
ESCAPES = {
    "../up.jsonl": "climbs out",
    "pictures/../../up.jsonl": "climbs out",
    "/tmp/absolute.jsonl": "absolute path",
    "~/home.jsonl": "absolute path",
    "C:/windows.jsonl": "absolute path",
    "..\\up.jsonl": "no plain file name",
    "\\\\host\\share.jsonl": "no plain file name",
    "new\nline.jsonl": "no plain file name",
    "a" * 300: "no plain file name",
    "/".join(["deep"] * 300): "no plain file name",
}
TRICKS: dict[str, tuple[str, bytes, str]] = {
    **{f"zip {name[:20]!r}": ("x.zip", zipped(HONEST | {name: b"x"}), why) for name, why in ESCAPES.items()},
    **{f"tar {name[:20]!r}": ("x.tar", tarred((name, b"x")), why) for name, why in ESCAPES.items()},
    "zip NUL": ("x.zip", zipped({"aXb.jsonl": ROW}).replace(b"aXb", b"a\0b"), "no plain file name"),
    "zip link": ("x.zip", zipped(HONEST | {"out.png": b"/etc/passwd"}, out=stat.S_IFLNK | 0o777), "link or device"),
    "zip pipe": ("x.zip", zipped({"pipe.png": b""}, pipe=stat.S_IFIFO | 0o644), "link or device"),
    "zip device": ("x.zip", zipped({"zero.png": b""}, zero=stat.S_IFCHR | 0o644), "link or device"),
    "tar symbolic link": ("x.tar", tarred(special("out", tarfile.SYMTYPE, "/etc")), "link, device"),
    "tar link then file below": (
        "x.tar", tarred(special("d", tarfile.SYMTYPE, "/tmp"), ("d/a.jsonl", ROW)), "link, device",
    ),
    "tar hard link": ("x.tar", tarred(special("out.png", tarfile.LNKTYPE, "/etc/passwd")), "link, device"),
    "tar device": ("x.tar", tarred(special("zero.png", tarfile.CHRTYPE)), "link, device"),
    "tar block device": ("x.tar", tarred(special("disk.png", tarfile.BLKTYPE)), "link, device"),
    "tar pipe": ("x.tar.gz", tarred(special("pipe.png", tarfile.FIFOTYPE), mode="w:gz"), "link, device"),
    "tar of unknown type": ("x.tar", claiming("a.jsonl", 10 * 2**30, b"?"), "link, device"),
    "tar doubled name": ("x.tar", tarred(("a.jsonl", ROW), ("./a.jsonl", ROW)), "there twice"),
    "tar name in another case": ("x.tar", tarred(("a.jsonl", ROW), ("A.JSONL", ROW)), "there twice"),
    "tar name composed otherwise": ("x.tar", tarred(("\u00e9.png", b"x"), ("e\u0301.png", b"x")), "there twice"),
    "zip file that is a folder": ("x.zip", zipped({"a": b"x", "a/b.jsonl": ROW}), "there twice"),
    "zip file that was a folder": ("x.zip", zipped({"a/b.jsonl": ROW, "a": b"x"}), "there twice"),
    "zip of lzma": ("x.zip", zipped({"a.jsonl": ROW}).replace(b"\x08\0\0\0!\0", b"\x0e\0\0\0!\0"), "packed by method"),
    "zip encrypted": (
        "x.zip", zipped({"a.jsonl": ROW}).replace(b"\x14\0\0\0\x08", b"\x14\0\1\0\x08"), "encrypted",
    ),
    "zip claims 4 GB": ("x.zip", zip_claiming(2**32 - 2), "over the limit"),
    "zip claims less than it holds": ("x.zip", zip_claiming(10), "no whole archive|declares"),
    "zip claims more than it holds": ("x.zip", zip_claiming(5000), "declares|no whole archive"),
    "tar claims 10 GB": ("x.tar", claiming("a.jsonl", 10 * 2**30), "over the limit"),
    "tar claims less than nothing": ("x.tar", claiming("a.jsonl", -(2**40)), "over the limit|no whole archive"),
    "tar header of 10 GB": (
        "x.tgz", gzipped((claiming("a", 10 * 2**30, b"x"), 1), (bytes(MIB), 64)), "list of names",
    ),
    "tar name of 10 GB": (
        "x.tgz", gzipped((claiming("a", 10 * 2**30, b"L"), 1), (bytes(MIB), 64)), "list of names",
    ),
    "tar of header in header": (
        "x.tar.gz", gzipped((claiming("a", 0, b"L"), 5000), (bytes(1024), 1)), "no whole archive",
    ),
    "zip broken off": ("x.zip", zipped(HONEST)[:-30], "no whole archive"),
    "tar broken off": ("x.tar", tarred(*HONEST.items())[:700], "no whole archive"),
    "tar cut between members": ("x.tar", tarred(("a.jsonl", ROW))[:1024], "cut off or has a broken header"),
    "tar with a broken header": (
        "x.tar", tarred(("a.jsonl", ROW), ("b.jsonl", ROW)).replace(b"b.jsonl", b"c.jsonl"), "broken header",
    ),
    "gzip broken off": ("x.tgz", tarred(*HONEST.items(), mode="w:gz")[:-40], "no whole archive"),
    "not a zip": ("x.zip", b"hello", "no whole archive"),
    "not a tar": ("x.tar", b"hello" * 400, "no whole archive"),
    "nothing": ("x.tar.gz", b"", "no whole archive"),
}  # fmt: skip


def refused(folder: Path, name: str, data: bytes, why: str, limits: ArchiveLimits = LIMITS) -> None:
    """Unpacking is refused for that reason and leaves nothing beside the archive, nor above it."""
    inner = folder / "above" / "inner"
    inner.mkdir(parents=True)
    (inner / name).write_bytes(data)
    with pytest.raises(ArchiveError, match=why) as caught:
        unpack(inner / name, limits)
    assert name in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(path.name for path in folder.rglob("*")) == sorted(["above", "inner", name])


@pytest.mark.parametrize("trick", TRICKS)
def test_a_hostile_archive_is_refused_and_leaves_nothing(tmp_path, trick):
    refused(tmp_path, *TRICKS[trick])


def test_there_is_no_more_outside(tmp_path):
    # What the names above would have made.
    assert not Path("/tmp/absolute.jsonl").exists()
    assert not (Path.home() / "home.jsonl").exists()


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
@pytest.mark.parametrize("size_mib", [100, 1000])
def test_a_bomb_is_refused_by_its_ratio_before_it_is_written(tmp_path, name, size_mib):
    if name == "x.zip":
        stream = io.BytesIO()
        # Level 1 packs a GiB of zeros in a second.
        deflated = zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1)
        with deflated as packed, packed.open("a.jsonl", "w") as file:
            for _ in range(size_mib):
                file.write(bytes(MIB))
        data = stream.getvalue()
    else:
        data = gzipped((claiming("a.jsonl", size_mib * MIB), 1), (bytes(MIB), size_mib), (bytes(1024), 1))
    # 64 MiB are free, and then a hundred times the archive.
    limit = max(64 * MIB, 100 * len(data))
    started = time.process_time()
    refused(tmp_path, name, data, f"unpacks to {size_mib * MIB:,} bytes, over the limit of {limit:,} for")
    assert time.process_time() - started < 2


def test_a_catalogue_of_a_million_entries_is_refused_before_it_is_read(tmp_path):
    data = many_zip_entries(1_000_000)
    started = time.process_time()
    refused(tmp_path, "x.zip", data, "list of names is longer than")
    assert time.process_time() - started < 1


@pytest.mark.full
def test_a_million_entries_of_a_tar_are_refused_in_ten_seconds(tmp_path):
    data = gzip.compress(claiming("a/", 0, tarfile.DIRTYPE) * 1000) * 1000
    started = time.process_time()
    refused(tmp_path, "x.tar.gz", data, "more than 100,000 entries")
    assert time.process_time() - started < 10


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_entries_are_counted_whatever_they_are(tmp_path, name):
    headers = b"".join(claiming(f"{index}/", 0, tarfile.DIRTYPE) for index in range(2001))
    data = many_zip_entries(2001) if name == "x.zip" else headers + bytes(1024)
    refused(tmp_path, name, data, "more than 2,000 entries", ArchiveLimits(max_entries=2000))


def test_limits_are_inclusive(tmp_path):
    file = tmp_path / "x.zip"
    file.write_bytes(zipped({"a.jsonl": bytes(1000), "b.jsonl": bytes(1000)}))
    assert unpack(file, ArchiveLimits(max_entries=2, max_bytes=2000)).is_dir()
    refused(tmp_path / "entries", "y.zip", file.read_bytes(), "more than 1 entries", ArchiveLimits(max_entries=1))
    refused(tmp_path / "bytes", "y.zip", file.read_bytes(), "over the limit of 1,999", ArchiveLimits(max_bytes=1999))


# ---- honest archives -------------------------------------------------------------------------------------------


def packed_as(name: str, members: dict[str, bytes]) -> bytes:
    if name.endswith(".zip"):
        return zipped(members)
    return tarred(*members.items(), mode="w" if name.endswith(".tar") else "w:gz")


@pytest.mark.parametrize("top", ["", "set/", "./set/"])
@pytest.mark.parametrize("name", ["my.zip", "my.tar", "my.tar.gz", "my.tgz", "MY.ZIP"])
def test_rows_of_an_archive_are_those_of_its_folder(tmp_path, name, top):
    members = {top + member: data for member, data in HONEST.items()}
    (tmp_path / name).write_bytes(packed_as(name.lower(), members))
    for source in (tmp_path / name, f"{tmp_path / name}@train"):
        (row,) = load_rows(source)
        assert row.answer == "2" and row.images[0].read_bytes() == HONEST["pictures/a.png"]
    # One folder for one content, and it holds what the archive held.
    (home,) = (path for path in tmp_path.iterdir() if path.is_dir())
    assert {path.relative_to(home).name for path in home.rglob("*") if path.is_file()} == {"train.jsonl", "a.png"}


def test_folders_and_empty_files_are_kept_and_nothing_can_be_executed(tmp_path):
    file = tmp_path / "x.tar"
    script = tarfile.TarInfo("run.sh")
    script.mode, script.size = 0o4777, 3
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as packed:
        packed.addfile(special("empty", tarfile.DIRTYPE))
        packed.addfile(special("empty", tarfile.DIRTYPE))
        packed.addfile(script, io.BytesIO(b"abc"))
        packed.addfile(tarfile.TarInfo("none.txt"))
    file.write_bytes(stream.getvalue())
    folder = unpack(file)
    assert (folder / "empty").is_dir() and (folder / "none.txt").read_bytes() == b""
    assert not (folder / "run.sh").stat().st_mode & 0o7111


def test_another_content_under_the_same_name_is_unpacked_again(tmp_path):
    file = tmp_path / "x.zip"
    file.write_bytes(zipped({"a.jsonl": b"1"}))
    first = unpack(file)
    assert unpack(file) == first
    file.write_bytes(zipped({"a.jsonl": b"2"}))
    assert unpack(file) != first and (unpack(file) / "a.jsonl").read_bytes() == b"2"


def test_a_rank_that_comes_second_takes_the_folder_of_the_first(tmp_path, monkeypatch):
    import data_prep.images.archives as archives

    file = tmp_path / "x.zip"
    file.write_bytes(zipped(HONEST))
    rename = archives.os.rename

    def overtaken(source, target):
        monkeypatch.setattr(archives.os, "rename", rename)
        unpack(file)
        rename(source, target)

    monkeypatch.setattr(archives.os, "rename", overtaken)
    assert (unpack(file) / "train.jsonl").read_bytes() == ROW
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".unpacking")] == []


def test_a_link_that_an_archive_cannot_hold_is_no_way_out_for_its_rows(tmp_path):
    file = tmp_path / "x.zip"
    row = json.dumps({"problem": "<image>?", "answer": "2", "images": ["../secret.png"]}).encode()
    file.write_bytes(zipped({"train.jsonl": row}))
    with pytest.raises(DataError, match="climbs out"):
        list(load_rows(file))


def test_an_archive_of_gzip_headers_only_is_no_archive(tmp_path):
    refused(tmp_path, "x.tar.gz", gzip.compress(b"") * 1000, "no whole archive")
