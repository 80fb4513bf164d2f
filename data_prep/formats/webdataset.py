"""Reader of webdataset archives: a folder of tar files, or what was unpacked of one; a sample's files share their name.

`0001.jpg`, `0001.json` and `0001.answer.txt` are one sample: the name up to its first dot is the key. Archives are
unpacked by `data_prep.images.archives` within its limits, so images stay in files.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.formats.samples import KEY, TEXTS, is_image, is_video
from data_prep.formats.table import TableFile, files_of_split, row_from_record, rows_of, split_of
from data_prep.images.archives import TAR_SUFFIXES, is_archive, unpack
from data_prep.schema import Row, RowError

_TABLES = (".jsonl", ".json", ".parquet", ".csv", ".tsv")
# A question with its worked answer is shorter.
_MAX_TEXT_BYTES = 2**22

_Files = list[tuple[str, Path]]
"""(what follows the first dot of the name, file) of a sample."""


def matches(source: Path) -> bool:
    """Whether `source` is a folder of such archives, or one in which an image and a text or json share their key."""
    if not source.is_dir():
        return False
    tables = [path for path in source.iterdir() if path.name.endswith(_TABLES)]
    if shards := _shards(source):
        # img2dataset writes a table and its counts beside each archive.
        own = {f"{_stem(shard)}{end}" for shard in shards for end in (".parquet", ".json", "_stats.json")}
        return {path.name for path in tables} <= own
    if any(not path.name.endswith(".json") for path in tables):
        return False
    suffixes: dict[str, set[str]] = defaultdict(set)
    for key, suffix, _ in _files_in(source):
        suffixes[key].add("image" if is_image(suffix) else suffix.rpartition(".")[2])
        if "image" in suffixes[key] and suffixes[key] & {"json", *TEXTS}:
            return True
    return False


def read(
    source: Path, split: str | None, *, image_root: Path | None = None, **options: Any
) -> Iterator[Row | RowError]:
    """Rows in the order of archives and keys; options as of `row_from_record`.

    Raises:
        DataError: an archive over a limit or with a member that leads elsewhere, or no such split.
    """
    shards = [TableFile(path, source.name, _split_of_shard(path)) for path in _shards(source)]
    for file in files_of_split(shards, source, split) if shards else [TableFile(source, source.name, split or "")]:
        folder = unpack(file.path) if shards else source
        samples: dict[str, _Files] = defaultdict(list)
        for key, suffix, path in sorted(_files_in(folder)):
            samples[key].append((suffix, path))
        records = ((key, _record(key, folder, files)) for key, files in samples.items())
        make = partial(row_from_record, **options)
        yield from rows_of(records, file, None, image_root or folder, make)


def _shards(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if is_archive(path) and path.name.lower().endswith(TAR_SUFFIXES))


def _stem(shard: Path) -> str:
    return shard.name.partition(".")[0]


def _split_of_shard(shard: Path) -> str:
    """train for train-000.tar; 000.tar says none."""
    split = split_of(Path(f"{_stem(shard)}.tar"))
    return "" if split.isdecimal() else split


def _files_in(folder: Path) -> Iterator[tuple[str, str, Path]]:
    """(key, suffix, path) of each file; the key is the way below the folder up to the first dot of the name."""
    for path in folder.rglob("*"):
        below = path.relative_to(folder)
        name, dot, suffix = path.name.partition(".")
        is_hidden = any(part.startswith(".") or part == "__MACOSX" for part in below.parts)
        if name and dot and not is_hidden and path.is_file():
            yield (below.parent / name).as_posix(), suffix.lower(), path


def _record(key: str, folder: Path, files: _Files) -> dict[str, Any] | RowError:
    """The sample as `datasets` gives it, but for its images, which are paths; files of other kinds are None."""
    record: dict[str, Any] = {KEY: key}
    for suffix, path in files:
        if is_image(suffix) or is_video(suffix):
            record[suffix] = path.relative_to(folder).as_posix()
            continue
        try:
            record[suffix] = _content(suffix.rpartition(".")[2], path)
        except (OSError, ValueError, RecursionError) as error:
            return RowError(f"cannot be read: {error}", field=path.name)
    return record


def _content(kind: str, path: Path) -> Any:
    if kind not in ("json", *TEXTS):
        return None
    if path.stat().st_size > _MAX_TEXT_BYTES:
        raise ValueError(f"it is a text of more than {_MAX_TEXT_BYTES:,} bytes")
    text = path.read_text(encoding="utf-8-sig")
    return json.loads(text) if kind == "json" else text.strip()
