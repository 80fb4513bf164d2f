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

from data_prep.formats.image_cells import IMAGE_COLUMNS, is_image_name, is_video_name
from data_prep.formats.samples import KEY, TEXTS, asks_and_answers, is_unread_image, sample_columns
from data_prep.formats.table import TableFile, files_of_split, row_from_record, rows_of, split_of, tables_in
from data_prep.images.archives import TAR_SUFFIXES, is_archive, unpack
from data_prep.schema import Row, RowError

# Those that make a folder one of tables; a `.json` may be that of a sample.
_TABLES = (".jsonl", ".parquet", ".csv", ".tsv", ".jsonl.gz", ".json.gz")
# A question with its worked answer is shorter.
_MAX_TEXT_BYTES = 2**22

_Files = list[tuple[str, Path]]
"""(what follows the first dot of the name, file) of a sample."""


def matches(source: Path) -> bool:
    """Whether `source` is a folder of such archives, or of samples: an image and a text or json share their key, or,
    without images, files side by side ask and answer. A folder that holds a table is none."""
    if not source.is_dir():
        return False
    tables, jsons = tables_in(source, _TABLES), tables_in(source, (".json",))
    if shards := _shards(source):
        # img2dataset writes a table and its counts beside each archive.
        own = {shard.with_name(f"{_stem(shard)}{end}") for shard in shards for end in (".parquet", "_stats.json")}
        return {*tables, *jsons} <= own
    return not tables and _holds_samples(source, jsons)


def can_be(source: Path) -> bool:
    """Whether `source` may be read as one where that is asked for: it holds archives or files of samples."""
    return source.is_dir() and (
        bool(_shards(source)) or any(_is_of_sample(suffix) for _, suffix, _ in _files_in(source))
    )


def _holds_samples(source: Path, jsons: list[Path]) -> bool:
    samples = _samples_in(source)
    with_images = [key for key, files in samples.items() if any(is_image_name(suffix) for suffix, _ in files)]
    if len(jsons) == 1:
        # A single json is a table, unless it is the object of one image or of one question.
        own = next((key for key, files in samples.items() if any(path == jsons[0] for _, path in files)), None)
        return own is not None and (_asks if own not in with_images else _is_object)(_record(own, source, samples[own]))
    if any({suffix.rpartition(".")[2] for suffix, _ in samples[key]} & {"json", *TEXTS} for key in with_images):
        return True
    first = next(iter(samples), None)
    return (
        first is not None and not any("/" in key for key in samples) and _asks(_record(first, source, samples[first]))
    )


def _is_object(record: dict[str, Any] | RowError) -> bool:
    return isinstance(record, dict) and isinstance(record.get("json", {}), dict)


def _asks(record: dict[str, Any] | RowError) -> bool:
    return _is_object(record) and asks_and_answers(sample_columns(record, IMAGE_COLUMNS, ()))


def _is_of_sample(suffix: str) -> bool:
    return is_image_name(suffix) or suffix.rpartition(".")[2] in ("json", *TEXTS)


def _samples_in(folder: Path) -> dict[str, _Files]:
    samples: dict[str, _Files] = defaultdict(list)
    for key, suffix, path in sorted(_files_in(folder)):
        samples[key].append((suffix, path))
    return samples


def read(
    source: Path, split: str | None, *, image_root: Path | None = None, **options: Any
) -> Iterator[Row | RowError]:
    """Rows in the order of archives and keys; options as of `row_from_record`.

    Raises:
        DataError: an archive over a limit or with a member that leads elsewhere, or no such split.
    """
    shards = [TableFile(path, source.name, _split_of_shard(path)) for path in _shards(source)]
    for file in files_of_split(shards, source, split) if shards else [_unpacked(source, split)]:
        folder = unpack(file.path) if shards else source
        records = ((key, _record(key, folder, files)) for key, files in _samples_in(folder).items())
        make = partial(row_from_record, **options)
        yield from rows_of(records, file, None, image_root or folder, make)


def _shards(folder: Path) -> list[Path]:
    return [path for path in tables_in(folder, ("",)) if is_archive(path) and path.name.lower().endswith(TAR_SUFFIXES)]


def _stem(shard: Path) -> str:
    return shard.name.partition(".")[0]


def _split_of_shard(shard: Path) -> str:
    """train for train-000.tar; 000.tar says none."""
    split = split_of(Path(f"{_stem(shard)}.tar"))
    return "" if split.isdecimal() else split


def _unpacked(folder: Path, split: str | None) -> TableFile:
    """What was unpacked of one archive; the name of a numbered one says its split and its source, as in a folder.

    Raises:
        DataError: it is a shard of another split.
    """
    name = _split_of_shard(folder)
    if name == _stem(folder):
        return TableFile(folder, folder.name, split or "")
    beside = folder.parent.parent if folder.parent.name.startswith(".unpacked-") else folder.parent
    shard = TableFile(folder, name or beside.name, name or split or "")
    return files_of_split([shard], folder, split)[0]


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
        if is_image_name(suffix) or is_unread_image(suffix) or is_video_name(suffix):
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
