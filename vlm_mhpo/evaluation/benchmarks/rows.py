"""The rows of a benchmark: from a place on disk or from the hub, or one sentence that says what to download."""

from __future__ import annotations

from pathlib import Path

from data_prep import DataError, Row, load_rows
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.evaluation.benchmarks.types import ALL, Benchmark


def benchmark_rows(
    benchmark: Benchmark, *, split: str | None = None, source: str | Path | None = None, folder: Path | None = None
) -> list[Row]:
    """All rows of a benchmark, in order.

    Args:
        split: one of `benchmark.splits`; None = the first.
        source: where the rows are, as `data_prep.load_rows` takes it.
        folder: folder of benchmarks: without a `source` its sub-folder of the benchmark's name is read if it exists,
            else the hub's tables (its local cache, when offline).
    Raises:
        ConfigError: no such split.
        DataError: the rows cannot be had; the text says what to download and where to put it.
    """
    split = benchmark.splits[0] if split is None else split
    if split not in benchmark.splits:
        raise ConfigError(f"{benchmark.name} has no split {split!r}; use {' or '.join(benchmark.splits)}")
    whole, belongs = (benchmark.subsets or {}).get(split, (split, None))
    rows = _rows_of_split(benchmark, whole, source, folder)
    return [row for row in rows if belongs(row)] if belongs else rows


def _rows_of_split(benchmark: Benchmark, split: str, source: str | Path | None, folder: Path | None) -> list[Row]:
    own = None if folder is None else folder / benchmark.name
    place = source if source is not None else own if own is not None and own.exists() else None
    try:
        if place is not None:
            named = None if split == ALL or Path(place).is_file() else split
            return benchmark.select(list(load_rows(place, split=named)))
        if benchmark.sources:
            default = benchmark.splits[0]
            return benchmark.select(list(load_rows([name.replace(default, split) for name in benchmark.sources])))
    except DataError as error:
        raise DataError(f"{benchmark.title}: {error}; {_to_download(benchmark, own)}") from error
    raise DataError(f"{benchmark.title} is not on this disk: {_to_download(benchmark, own)}")


def _to_download(benchmark: Benchmark, own: Path | None) -> str:
    return benchmark.download.format(folder=own if own is not None else "a folder and name it as the source")
