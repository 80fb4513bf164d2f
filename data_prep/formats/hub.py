"""Reader for a data set on the Hugging Face hub, by `name` or `name:configuration`: a benchmark or a table."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.formats import (
    chartqa,
    charxiv,
    dynamath,
    hallusionbench,
    m3cot,
    mathverse,
    mathvision,
    mathvista,
    mm_math,
    mmk12,
    olympiadbench,
    we_math,
)
from data_prep.formats.coarse import mends
from data_prep.formats.layout import make_from
from data_prep.formats.table import TableFile, row_from_record, rows_of
from data_prep.images.stored import Keys, with_handles
from data_prep.schema import DataError, Row, RowError

_MODULES = (mathvista, mathverse, mathvision, dynamath, we_math, olympiadbench, mmk12, charxiv, hallusionbench, mm_math,
            m3cot, chartqa)  # fmt: skip
_BENCHMARKS = tuple(module.LAYOUT for module in _MODULES)


@dataclass(frozen=True, slots=True, eq=False)
class HubTable:
    """A `datasets.Dataset`, mapped into memory from its local copy, as a `data_prep.images.stored.Table`."""

    name: str
    rows: Any = field(repr=False)

    def __str__(self) -> str:
        return self.name

    def value(self, row: int, keys: Keys) -> Any:
        """See `Table`."""
        value = self.rows[row]
        for key in keys:
            value = value[key]
        return value


def matches(source: Path) -> bool:
    """Never: a name on the hub is not a path (see `data_prep.loading`)."""
    return False


def read(name: str, split: str | None, *, image_root: Path | None = None, **options: Any) -> Iterator[Row | RowError]:
    """Rows of `name`'s split, in order.

    Args:
        name: `org/name` or `org/name:configuration`.
        image_root: a local folder for rows that name their images; None: a row that names a path or URL is refused.
        options: of `data_prep.formats.table.row_from_record`.
    Raises:
        DataError: the data set cannot be had (offline, no such name, split or configuration), or a split must be
            chosen.
    """
    table = _load(name, split)
    label = re.match(r"[A-Za-z0-9_.-]*", split or str(table.split or ""))[0]  # "train[:10%]" -> "train"
    return rows_of_table(name, table, label, image_root=image_root, **options)


def rows_of_table(
    name: str, table: Any, label: str, *, image_root: Path | None, **options: Any
) -> Iterator[Row | RowError]:
    """Rows of a `datasets.Dataset`: of a benchmark that is known by its columns, or of a plain table.

    Args:
        options: of `data_prep.formats.table.row_from_record`.
    """
    table = _without_decoding(table)
    own = dict.fromkeys(table.column_names)
    is_known = options.get("dialect") is None and not options.get("columns")
    layout = next((layout for layout in _BENCHMARKS if layout.has(own)), None) if is_known else None
    file = TableFile(Path(name), source=layout.name if layout else name, split=label)
    make = partial(make_from, layout) if layout else partial(row_from_record, **options)
    source = HubTable(name, table)
    coarse = mends(table.features.arrow_schema)

    def made(index: int, record: dict[str, Any]) -> tuple[int, Any]:
        fine = record | {key: mend(record[key]) for key, mend in coarse.items()}
        return index + 1, with_handles(fine, source, index)

    records = (made(index, record) for index, record in enumerate(table))
    return rows_of(records, file, None, image_root, make)


def _load(name: str, split: str | None) -> Any:
    import datasets

    repository, _, configuration = name.partition(":")
    try:
        loaded = datasets.load_dataset(repository, *([configuration] if configuration else []), split=split)
    # OSError covers no network, offline mode and "not found"; ValueError an unknown split or configuration.
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise DataError(
            f"{name!r} is no path on this disk, and the hub could not give data set {name!r}"
            f"{f' (split {split!r})' if split else ''}: {reason}; check the name and the network, or give a local path"
        ) from error
    if not isinstance(loaded, dict):
        return loaded
    if len(loaded) != 1:
        first = next(iter(loaded), "train")
        raise DataError(f"data set {name!r} has the splits {', '.join(loaded)}; choose one, as in '{name}@{first}'")
    return next(iter(loaded.values()))


def _without_decoding(table: Any) -> Any:
    """The table with its images left as bytes: decoding would open whatever path or URL a row names."""
    import datasets

    def undecoded(feature: Any) -> Any:
        if isinstance(feature, dict):
            return {name: undecoded(part) for name, part in feature.items()}
        if isinstance(feature, datasets.List | datasets.LargeList):
            return replace(feature, feature=undecoded(feature.feature))
        if isinstance(feature, datasets.Video):
            return datasets.Video(decode=False)
        return datasets.Image(decode=False) if isinstance(feature, datasets.Image) else feature

    for column, feature in table.features.items():
        if undecoded(feature) != feature:
            table = table.cast_column(column, undecoded(feature))
    return table
