"""`load_rows`: from what a user names (a path, a glob, a hub name, a drawn set, several with weights) to rows."""

import glob
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import chain
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

from data_prep.formats.dialects import DIALECTS
from data_prep.formats.listed import ANSWER_LISTS
from data_prep.formats.registry import READERS, TABLES
from data_prep.formats.table import COLUMNS
from data_prep.images.archives import TAR_SUFFIXES, ZIP_SUFFIXES, is_archive, unpack
from data_prep.mixture import mixed
from data_prep.schema import DataError, Row, RowError

_HUB_NAME = re.compile(r"([A-Za-z0-9][\w.-]*/[\w-][\w.-]*)(:[\w.+-]+(?: \([\w ]+\))?)?")
_WEIGHT = re.compile(r"(.+):(\d+(?:\.\d*)?|\.\d+)", re.DOTALL)
# A mistyped path such as data/train.jsonl also looks like org/name.
_FILE_SUFFIXES = (".jsonl", ".json", ".parquet", ".csv", ".tsv", ".txt", ".gz", ".arrow", *ZIP_SUFFIXES, *TAR_SUFFIXES)
_SYNTHETIC = "synthetic:"
_RANGE, _MAX_SHARDS = re.compile(r"\{(\d+)\.\.(\d+)\}"), 100_000

_Source = str | Path
_Reading = Callable[[], Iterator[Row | RowError]]


def load_rows(
    source: _Source | Sequence[_Source],
    *,
    format: str = "auto",
    split: str | None = None,
    image_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    answer_lists: str | None = None,
    ignore_columns: Collection[str] = (),
) -> Iterator[Row]:
    """Rows of one or several sources, in order, read as they are asked for; images stay encoded.

    Args:
        source: a file, a folder or an archive of one (.zip, .tar, .tar.gz; see `data_prep.images.archives`); a glob
            (`data/*.jsonl`, `**` for any depth), whose matches are read in the order of their names, or numbered names
            (`shard-{000..010}.tar`); `org/name` or
            `org/name:configuration` on the hub; a drawn set such as
            `synthetic:shapes,bars?seed=0&num_rows=100&difficulty=1`; each with `@split` behind it where wanted. Or a
            list of those: one after the other, or, where each ends in `:weight` (`a.jsonl@train:0.7`), mixed by
            `data_prep.mixture.mixed`. What exists on disk under the whole name is that file.
        format: a name from `data_prep.formats.registry.READERS`; "auto" recognises the layout.
        split: read this split only; `@split` in a source wins.
        image_root: folder that image paths are relative to; default: the table's own folder. Layouts that fix
            where their images lie ignore it.
        columns: names of a table's columns that stand for ours, as {"problem": "query", "answer": "final"}.
        answer_lists: what a list of answers in a table means: "any" of them is right, or a response must give "all";
            None: told by the list where it can be (see `data_prep.formats.listed`). Benchmarks have their own rules.
        ignore_columns: names of a table's columns that are left out, such as one of images that no question shows.
    Returns:
        rows with distinct ids: the second row called `a` becomes `a#2`.
    Raises:
        DataError: at once, if a source does not exist or is not recognised, or only some carry a weight.
        RowError: while reading, at the first unusable row.
    """
    rows = scan_rows(
        source,
        format=format,
        split=split,
        image_root=image_root,
        columns=columns,
        ignore_columns=ignore_columns,
        answer_lists=answer_lists,
    )
    return _raise_errors(rows)


def scan_rows(
    source: _Source | Sequence[_Source],
    *,
    format: str = "auto",
    split: str | None = None,
    image_root: Path | None = None,
    columns: Mapping[str, str] | None = None,
    answer_lists: str | None = None,
    ignore_columns: Collection[str] = (),
    seen: set[str] | None = None,
) -> Iterator[Row | RowError]:
    """As `load_rows`, but an unusable row is yielded as its `RowError` and reading goes on; for `prepare`.

    Args:
        seen: is given the names of the columns of tables, as they are read.
    """
    sources = [source] if isinstance(source, str | Path) else list(source)
    if not sources:
        raise DataError("no data source is named; give a path, org/name@split or synthetic:shapes")
    if format != "auto" and format not in READERS:
        raise DataError(f"{format!r} is no known format; use auto or one of {', '.join(READERS)}")
    if unknown := sorted(set(columns or {}) - set(COLUMNS)):
        raise DataError(f"columns: {unknown[0]!r} is no column of a row; those are {', '.join(COLUMNS)}")
    if answer_lists not in (None, *ANSWER_LISTS):
        raise DataError(f"answer_lists {answer_lists!r} is unknown; use {' or '.join(ANSWER_LISTS)}")
    of_tables = {"columns": columns, "ignore_columns": ignore_columns, "answer_lists": answer_lists}
    options = {"image_root": image_root, "seen": seen} | {name: value for name, value in of_tables.items() if value}
    named = [_weighed(item) for item in sources]
    readings = [_reading(item, format, split, options) for item, _ in named]
    weights = [weight for _, weight in named if weight is not None]
    if not weights:
        return _with_distinct_ids(row for reading in readings for row in reading())
    if len(weights) != len(named) or len(named) == 1 or min(weights) == 0:
        raise DataError(
            f"{', '.join(map(str, sources))}: a weight is a source's share beside others; give every source of a "
            "mixture one above 0, as in a.jsonl:0.7 and b.jsonl:0.3, or none"
        )
    return _with_distinct_ids(
        mixed([(str(item), weight, reading()) for (item, weight), reading in zip(named, readings, strict=True)])
    )


def none_has_an_image(num_rows: int, seen: Collection[str]) -> str:
    """What is said of a set that shows nothing: its images may lie in a column that nobody reads."""
    columns = f"; its columns are {', '.join(sorted(seen))}" if seen else ""
    return f"none of the {num_rows} rows has an image{columns}"


def _raise_errors(rows: Iterator[Row | RowError]) -> Iterator[Row]:
    for row in rows:
        if isinstance(row, RowError):
            raise row
        yield row


def _with_distinct_ids(rows: Iterator[Row | RowError]) -> Iterator[Row | RowError]:
    times: dict[str, int] = {}
    for row in rows:
        if isinstance(row, Row):
            name = row.id
            while name in times:
                times[row.id] += 1
                name = f"{row.id}#{times[row.id]}"
            times[name] = 1
            row = row if name == row.id else replace(row, id=name)
        yield row


def _weighed(source: _Source) -> tuple[_Source, Fraction | None]:
    """A source and the weight behind it; what exists under the whole name has none."""
    weight = None if Path(source).exists() else _WEIGHT.fullmatch(str(source))
    if weight is None:
        return source, None
    return weight[1] if isinstance(source, str) else Path(weight[1]), Fraction(weight[2])


def _reading(source: _Source, format: str, split: str | None, options: Mapping[str, Any]) -> _Reading:
    """What to call for the rows of one source, once it is known to exist."""
    if isinstance(source, str) and source.startswith(_SYNTHETIC):
        return _synthetic_reading(source, split)
    path = Path(source)
    if not path.exists() and "@" in path.name:
        name, _, split = str(source).rpartition("@")
        source, path = (name if isinstance(source, str) else Path(name)), Path(name)
    if not path.exists():
        if _RANGE.search(str(source)):
            readings = [_reading(name, format, split, options) for name in _numbered(str(source))]
            return lambda: chain.from_iterable(reading() for reading in readings)
        if glob.has_magic(str(source)):
            return _glob_reading(str(source), format, split, options)
        return _hub_reading(source, format, split, options)
    if is_archive(path):
        path = unpack(path)
    name = _recognise(path) if format == "auto" else format
    reader = READERS[name]
    if name not in TABLES:
        if given := {"columns", "ignore_columns"} & options.keys():
            raise DataError(f"{path} has the layout of {name!r}, whose columns are known: leave data.{min(given)} out")
        options = {"image_root": options["image_root"]}
    if format != "auto" and not (reader.can_be or reader.matches)(path):
        raise DataError(f"{path} has not the layout of {format!r}; with format auto it would be {_recognise(path)!r}")
    return lambda: reader.read(path, split, **options)


def _numbered(pattern: str) -> Iterator[str]:
    """`shard-{000..010}.tar` as the names that a shell makes of it."""
    found = _RANGE.search(pattern)
    first, last = int(found[1]), int(found[2])
    if not first <= last < first + _MAX_SHARDS:
        raise DataError(f"{pattern!r}: {found[0]} counts from {first} to {last}; give up to {_MAX_SHARDS:,} in order")
    width = len(found[1]) if found[1].startswith("0") else 0
    for number in range(first, last + 1):
        yield f"{pattern[: found.start()]}{number:0{width}d}{pattern[found.end() :]}"


def _glob_reading(pattern: str, format: str, split: str | None, options: Mapping[str, Any]) -> _Reading:
    paths = sorted(Path(name) for name in glob.glob(pattern, recursive=True))
    if not paths:
        raise DataError(f"no file or folder matches {pattern!r} (looked from {Path().absolute()})")
    readings = [_reading(path, format, split, options) for path in paths]
    return lambda: chain.from_iterable(reading() for reading in readings)


def _hub_reading(source: _Source, format: str, split: str | None, options: Mapping[str, Any]) -> _Reading:
    name = _HUB_NAME.fullmatch(source) if isinstance(source, str) else None
    is_hub_name = name is not None and Path(name[1]).suffix not in _FILE_SUFFIXES
    if format == "hub" or (is_hub_name and (format == "auto" or format in DIALECTS)):
        dialect = format if format in DIALECTS else None
        return lambda: READERS["hub"].read(str(source), split, dialect=dialect, **options)
    raise DataError(
        f"no data at {str(source)!r}: there is no such file or folder (looked for {Path(source).absolute()}), "
        "and it is not a hub name such as hiyouga/geometry3k"
    )


def _recognise(path: Path) -> str:
    for name, reader in READERS.items():
        if reader.matches(path):
            return name
    raise DataError(
        f"{path} has no layout that is known ({', '.join(READERS)}); a table is a .jsonl, .json, .parquet, .csv or "
        ".tsv file, a folder of them, or what `datasets` saved"
    )


def _synthetic_reading(source: str, split: str | None) -> _Reading:
    from data_prep.synthetic import generate

    spec, _, named_split = source.removeprefix(_SYNTHETIC).partition("@")
    families, _, query = spec.partition("?")
    options = {"seed": 0, "num_rows": 1000, "difficulty": 1}
    try:
        given = {key: int(value) for key, value in parse_qsl(query, keep_blank_values=True)}
    except ValueError as error:
        raise DataError(f"{source!r}: every option is a whole number ({error})") from error
    if unknown := given.keys() - options.keys():
        raise DataError(f"{source!r}: unknown option {', '.join(sorted(unknown))}; use {', '.join(options)}")
    options |= given
    rows = generate(families.split(","), options["num_rows"], options["seed"], named_split or split or "train",
                    difficulty=options["difficulty"])  # fmt: skip
    return lambda: rows
