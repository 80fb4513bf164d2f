"""The nouns of an evaluation page: results.json and its rows, read from a results folder and checked.

Tolerant where the writer's own schema is strict: what is missing takes a default and what is not named here is
ignored, so a page can still be made of older and newer reports. Strings are untrusted, as in `records`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.nouns import MaybeNumber, MaybeText, Record, Text
from vlm_mhpo.records.run_folder import json_lines, parse, read_text

RESULTS_FILE = "results.json"


class Share(Record):
    """A share of right answers, 0..1, with its 95 % interval."""

    accuracy: MaybeNumber = None
    low: MaybeNumber = None
    high: MaybeNumber = None


class CategoryShare(Share):
    """The share among the rows with one value of a category."""

    num_rows: int = 0


class Difference(Record):
    """A paired difference of two shares, -1..1, with its 95 % interval and two-sided p-value."""

    difference: MaybeNumber = None
    low: MaybeNumber = None
    high: MaybeNumber = None
    p: MaybeNumber = None


class Probe(CategoryShare):
    """Accuracy with the pictures taken away, and what that cost."""

    needs_picture: Difference | None = None


class Scores(Record):
    """Accuracy under the benchmark's own rule and under our verifier."""

    official: Share = Share()
    ours: Share = Share()


class BenchmarkResult(Record):
    """One benchmark of results.json; verdicts are shares of the completions, categories official accuracy."""

    name: Text
    title: Text = ""
    citation: Text = ""
    split: Text = ""
    deviation: Text = ""
    num_problems: int = 0
    num_rows: int = 0
    num_samples: int = 1
    scores: Scores = Scores()
    pass_at: dict[Text, MaybeNumber] = Field(default_factory=dict)
    extra: dict[Text, MaybeNumber] = Field(default_factory=dict)
    verdicts: dict[Text, MaybeNumber] = Field(default_factory=dict)
    mean_tokens: MaybeNumber = None
    categories: dict[Text, dict[Text, CategoryShare]] = Field(default_factory=dict)
    probes: dict[Text, Probe] = Field(default_factory=dict)
    overlap: dict[str, Any] | None = None
    items: str = ""


class BenchmarkComparison(Difference):
    """One benchmark against the baseline: wins are rows that only (or more often) this model has right."""

    name: Text
    wins: int = 0
    losses: int = 0


class Comparison(Record):
    """The model against a baseline; `protocol_differences` is not empty when unlike protocols were allowed."""

    baseline: Text = ""
    protocol_differences: tuple[Text, ...] = ()
    benchmarks: tuple[BenchmarkComparison, ...] = ()


class Results(Record):
    """results.json."""

    model: Text
    created_by: Text = ""
    protocol: dict[str, Any] = Field(default_factory=dict)
    protocol_hash: Text = ""
    benchmarks: tuple[BenchmarkResult, ...] = ()
    comparison: Comparison | None = None


class RowCompletion(Record):
    """One completion: `official` by the benchmark's rule, `verdict` and `correct` by our verifier."""

    text: Text = ""
    official: bool
    extracted: MaybeText = None
    verdict: Text = ""
    correct: bool = False
    num_tokens: int | None = None
    truncated: bool = False


class EvaluatedRow(Record):
    """One row of a benchmark; `images` are paths relative to the results folder."""

    id: Text
    problem: Text = ""
    question: Text = ""
    choices: tuple[Text, ...] | None = None
    gold: Text = ""
    kind: Text = ""
    images: tuple[str, ...] = ()
    categories: dict[Text, Text] = Field(default_factory=dict)
    completions: tuple[RowCompletion, ...] = ()

    @property
    def right(self) -> bool:
        """True when more than half of the completions are right by the official rule."""
        return sum(c.official for c in self.completions) * 2 > len(self.completions)


@dataclass(frozen=True, slots=True)
class Evaluated:
    """A results folder: results.json and the rows of each benchmark by name, in the order of the file."""

    folder: Path
    results: Results
    rows: Mapping[str, tuple[EvaluatedRow, ...]]
    notes: tuple[str, ...]


def load_evaluated(place: Path) -> Evaluated:
    """Read a results folder (or its results.json).

    Raises:
        ReportError: no results.json, a damaged file, or a benchmark or row that is there twice.
    """
    file = Path(place) / RESULTS_FILE if Path(place).is_dir() else Path(place)
    folder = file.parent.resolve()
    if not file.is_file():
        raise ReportError(
            f"There is no {RESULTS_FILE} at {place}; give the folder that `vlm-mhpo evaluate --out` wrote."
        )
    results = parse(Results, read_text(file), str(file))
    _refuse_doubles([benchmark.name for benchmark in results.benchmarks], f"{file}: benchmark")
    notes: list[str] = []
    rows = {benchmark.name: _load_rows(folder, benchmark, notes) for benchmark in results.benchmarks}
    return Evaluated(folder, results, rows, tuple(notes))


def _load_rows(folder: Path, benchmark: BenchmarkResult, notes: list[str]) -> tuple[EvaluatedRow, ...]:
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
    rows = tuple(parse(EvaluatedRow, row, where) for where, row in json_lines(path, notes))
    _refuse_doubles([row.id for row in rows], f"{path}: row")
    if len(rows) != benchmark.num_rows:
        notes.append(f"{benchmark.name}: the file of its rows holds {len(rows)} of {benchmark.num_rows}.")
    return rows


def _refuse_doubles(names: list[str], what: str) -> None:
    """An error that names the first name that is there twice."""
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise ReportError(f"{what} {name!r} is listed twice; run the evaluation again.")
        seen.add(name)
