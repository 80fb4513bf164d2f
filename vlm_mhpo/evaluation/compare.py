"""Reports against each other: paired differences on the same rows, and means over runs of the same method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from pydantic import Field

from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.protocol import check_same, differences
from vlm_mhpo.evaluation.results import compare_items, difference_of
from vlm_mhpo.evaluation.shards import read_items
from vlm_mhpo.records import statistics
from vlm_mhpo.records.evaluation import (
    Accuracy,
    BenchmarkComparison,
    Comparison,
    Difference,
    Item,
    Record,
    Results,
    read_results,
)


class MethodScore(Record):
    """Accuracy of a method on one benchmark: of one run with its own interval, or the mean over runs with Student's."""

    method: str
    name: str
    num_runs: int
    accuracy: float
    low: float | None = Field(description="Null for runs that are all alike, which tell no spread.")
    high: float | None


class MethodDifference(BenchmarkComparison):
    """A method minus the baseline; the interval is over problems, `over_runs` (Welch) is over runs."""

    method: str
    over_runs: Difference | None = Field(description="Null unless both sides have two runs that differ.")


class ReportComparison(Record):
    """comparison.json."""

    baseline: str
    protocol_hash: str = Field(description="Of the first report.")
    protocol_differences: tuple[str, ...] = Field(description="What differs, if that was allowed.")
    scores: tuple[MethodScore, ...]
    differences: tuple[MethodDifference, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One evaluation: the method it is a run of, its folder and results."""

    method: str
    folder: Path
    results: Results

    @property
    def names(self) -> list[str]:
        """Its benchmarks."""
        return [found.name for found in self.results.benchmarks]

    def items(self, name: str) -> list[Item]:
        """The judged rows of a benchmark."""
        found = next(found for found in self.results.benchmarks if found.name == name)
        return read_items(self.folder / found.items)

    def accuracy(self, name: str) -> Accuracy:
        """Its official accuracy on a benchmark."""
        return next(found.scores.official for found in self.results.benchmarks if found.name == name)


def read_report(entry: str) -> Report:
    """A report of METHOD=FOLDER, or of FOLDER, whose method is its model."""
    method, separator, place = entry.partition("=")
    folder = Path(place if separator else entry)
    results = read_results(folder)
    return Report(method if separator else results.model, folder if folder.is_dir() else folder.parent, results)


def compare_results(results: Results, items: Mapping[str, list[Item]], baseline: Path, *, allowed: bool) -> Comparison:
    """The `comparison` of a report that is being written.

    Raises:
        EvaluationError: protocols differ and that is not allowed, or no benchmark is common.
    """
    base = read_report(str(baseline))
    what = f"this and {baseline}"
    # Rows are compared by the rules' verdicts, whoever judged beside them.
    found = check_same(results.protocol, base.results.protocol, what=what, allowed=allowed, judges=False)
    common = [name for name in items if name in base.names]
    if not common:
        raise EvaluationError(f"{baseline} has none of the benchmarks {', '.join(items)}: evaluate it on them first")
    if set(items) != set(base.names):
        found = (*found, f"benchmarks: {', '.join(items)} here, {', '.join(base.names)} there")
    return Comparison(
        baseline=base.results.model,
        protocol_differences=found,
        benchmarks=tuple(compare_items(name, items[name], base.items(name)) for name in common),
    )


def compare_reports(reports: Sequence[Report], baseline: str, *, allowed: bool = False) -> ReportComparison:
    """Every method against `baseline`, on the benchmarks that all reports have.

    Args:
        reports: two or more; those of one method are its runs.
        baseline: a method.
        allowed: compare although protocols differ.

    Raises:
        EvaluationError: no such method, nothing to compare it with, no common benchmark, or protocols differ.
    """
    methods = {report.method: [other for other in reports if other.method == report.method] for report in reports}
    if baseline not in methods or len(methods) < 2:
        raise EvaluationError(
            f"--baseline {baseline}: give at least two methods, one of them the baseline; there is {', '.join(methods)}"
        )
    for one, other in pairwise(reports):
        what = f"{one.folder} and {other.folder}"
        check_same(one.results.protocol, other.results.protocol, what=what, allowed=allowed)
    names = [name for name in reports[0].names if all(name in report.names for report in reports)]
    if not names:
        raise EvaluationError("the reports have no benchmark in common: evaluate all on the same")
    pooled = {method: {name: pool(runs, name) for name in names} for method, runs in methods.items()}
    return ReportComparison(
        baseline=baseline,
        protocol_hash=reports[0].results.protocol_hash,
        protocol_differences=tuple(
            difference
            for other in reports[1:]
            for difference in differences(reports[0].results.protocol, other.results.protocol)
        ),
        scores=tuple(score(method, runs, name) for method, runs in methods.items() for name in names),
        differences=tuple(
            MethodDifference(
                method=method,
                over_runs=over_runs(runs, methods[baseline], name),
                **compare_items(name, pooled[method][name], pooled[baseline][name]).model_dump(),
            )
            for method, runs in methods.items()
            if method != baseline
            for name in names
        ),
    )


def pool(runs: Sequence[Report], name: str) -> list[Item]:
    """The rows of a benchmark with the completions of all runs.

    Raises:
        EvaluationError: the runs judged different rows.
    """
    first, *others = (run.items(name) for run in runs)
    for run, items in zip(runs[1:], others, strict=True):
        if [item.id for item in items] != [item.id for item in first]:
            raise EvaluationError(f"{name}: {run.folder} and {runs[0].folder} judged different rows")
    return [
        same[0].model_copy(update={"completions": tuple(c for item in same for c in item.completions)})
        for same in zip(first, *others, strict=True)
    ]


def score(method: str, runs: Sequence[Report], name: str) -> MethodScore:
    """Accuracy of a method with an interval: of its one run, or over its runs."""
    if len(runs) == 1:
        return MethodScore(method=method, name=name, num_runs=1, **runs[0].accuracy(name).model_dump())
    found = statistics.over_runs([run.accuracy(name).accuracy for run in runs])
    low, high = (found.low, found.high) if found.has_interval else (None, None)
    return MethodScore(method=method, name=name, num_runs=len(runs), accuracy=found.mean, low=low, high=high)


def over_runs(ours: Sequence[Report], theirs: Sequence[Report], name: str) -> Difference | None:
    """Welch's difference of the means over runs; None where a spread cannot be told."""
    found = statistics.welch(*([run.accuracy(name).accuracy for run in runs] for runs in (ours, theirs)))
    return found and difference_of(found)
