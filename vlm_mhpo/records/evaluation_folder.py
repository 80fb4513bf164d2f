"""Read a report's folder for a page: results.json and the judged rows, as tolerantly as `reading.tolerant` allows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.evaluation import RESULTS_FILE, BenchmarkResult, Item, Results
from vlm_mhpo.records.reading import json_lines, parse, read_text, tolerant


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A report's folder as a page reads it: results.json and the rows of each benchmark by name, in the file's order.

    Its records are `tolerant`: what is missing has a default, any number may be None, and texts are untrusted.
    """

    folder: Path
    results: Results
    rows: Mapping[str, tuple[Item, ...]]
    notes: tuple[str, ...]


def load_evaluated(place: Path) -> Evaluated:
    """Read a report's folder (or its results.json) for a page.

    Raises:
        ReportError: no results.json, a damaged file, or a benchmark or row that is there twice.
    """
    file = Path(place) / RESULTS_FILE if Path(place).is_dir() else Path(place)
    folder = file.parent.resolve()
    if not file.is_file():
        raise ReportError(
            f"There is no {RESULTS_FILE} at {place}; give the folder that `vlm-mhpo evaluate --out` wrote."
        )
    results = parse(tolerant(Results), read_text(file), str(file))
    _refuse_doubles([benchmark.name for benchmark in results.benchmarks], f"{file}: benchmark")
    notes: list[str] = []
    rows = {benchmark.name: _load_rows(folder, benchmark, notes) for benchmark in results.benchmarks}
    return Evaluated(folder, results, rows, tuple(notes))


def _load_rows(folder: Path, benchmark: BenchmarkResult, notes: list[str]) -> tuple[Item, ...]:
    """The rows of one benchmark; a missing file becomes a note, one outside the folder an error."""
    if not benchmark.items:
        return ()
    path = (folder / benchmark.items).resolve()
    if not path.is_relative_to(folder):
        raise ReportError(
            f"{benchmark.name}: its rows {benchmark.items!r} lie outside {folder}; nothing is read there."
        )
    if not path.is_file():
        notes.append(f"{benchmark.name}: {benchmark.items} is missing, so its rows are not in the gallery.")
        return ()
    rows = tuple(parse(tolerant(Item), row, where) for where, row in json_lines(path, notes))
    _refuse_doubles([row.id for row in rows], f"{path}: row")
    if len(rows) != benchmark.num_rows:
        notes.append(f"{benchmark.name}: the file of its rows holds {len(rows)} of {benchmark.num_rows}.")
    return rows


def _refuse_doubles(names: Sequence[str], what: str) -> None:
    """An error that names the first name that is there twice."""
    doubled = next((name for name, count in Counter(names).items() if count > 1), None)
    if doubled is not None:
        raise ReportError(f"{what} {doubled!r} is listed twice; run the evaluation again.")
