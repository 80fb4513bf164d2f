"""One self-contained HTML page of a results folder: scores with intervals, probes, curves, and every row to browse.

What is counted is written out as HTML, so it prints and needs no script; the rows travel as one JSON block, of which
the script shows a page at a time as text nodes. Names, questions and completions are untrusted text in both: the
template escapes them, the block holds no character that could end it, and the content policy lets nothing run or
load but the page's own script and style, by their hashes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from vlm_mhpo.pages.evaluation_rows import Gallery, as_json, gather
from vlm_mhpo.pages.gallery import OUTCOMES
from vlm_mhpo.pages.html import digest, environment, flatten, source, write_text
from vlm_mhpo.pages.run_figures import Chart, draw_charts
from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.evaluation import Accuracy, BenchmarkResult, Comparison
from vlm_mhpo.records.evaluation_folder import Evaluated, load_evaluated
from vlm_mhpo.records.reading import tolerant
from vlm_mhpo.records.run_folder import load_run

# Verdicts in the order of the bars; what is not named here follows.
VERDICTS = ("correct", "wrong", "no_answer", "truncated", "timeout")


def write_page(results: Path, out: Path, baseline: Path | None = None) -> Path:
    """Write the page of an evaluation; the same folders give the same bytes.

    Args:
        results: the folder that `vlm-mhpo evaluate --out` wrote, or its results.json.
        out: the page to write, or a folder for `evaluation.html`.
        baseline: the results of another model, shown beside; its rows are matched by benchmark and id.
    Returns:
        the path of the page.
    Raises:
        ReportError: no results, a damaged file, or a baseline under another protocol that the results do not say
            was allowed.
    """
    after = load_evaluated(results)
    before = None if baseline is None else load_evaluated(baseline)
    path = Path(out)
    return write_text(render(after, before), path / "evaluation.html" if path.is_dir() else path)


def render(after: Evaluated, before: Evaluated | None = None) -> str:
    """The page's HTML."""
    protocol = after.results.protocol.model_dump(exclude_unset=True)
    notes = [*after.notes, *(before.notes if before else ()), *_protocol_notes(after, before)]
    gallery = gather(after, before)
    charts = draw_curves(after.results.model)
    script, style = source("evaluation.js"), source("page.css", "evaluation.css")
    return (
        environment()
        .get_template("evaluation.html.j2")
        .render(
            results=after.results,
            protocol=protocol,
            model=short_model(after.results.model),
            before=before.results if before else None,
            baseline=_baseline_name(after, before),
            theirs={b.name: b.scores.official for b in before.results.benchmarks} if before else {},
            changes=_changes(after, before, gallery),
            headline=headline(after.results.benchmarks, before.results.benchmarks if before else ()),
            verdict_names=verdict_names(after.results.benchmarks),
            pass_names=_keys(after.results.benchmarks, "pass_at"),
            outcomes=OUTCOMES
            if before
            else {key: words for key, words in OUTCOMES.items() if key in ("wrong", "right")},
            totals=Counter(row["outcome"] for row in gallery.rows),
            protocol_rows=list(flatten(protocol)),
            overlap_rows={
                b.name: list(flatten(b.overlap.model_dump(exclude_unset=True)))
                for b in after.results.benchmarks
                if b.overlap
            },
            charts=[(chart, Markup(chart.svg)) for chart in charts],
            notes=[*notes, *gallery.notes],
            data=Markup(as_json(gallery.block())),
            style=style,
            script=script,
            script_hash=digest(script),
            # The curves carry style attributes, which no hash can name.
            style_policy="'unsafe-inline'" if charts else f"'sha256-{digest(style)}'",
        )
    )


def headline(
    after: Sequence[BenchmarkResult], before: Sequence[BenchmarkResult]
) -> tuple[Accuracy | None, Accuracy | None, int]:
    """(baseline, model, number of benchmarks): the official score of one benchmark, or the plain mean over several.

    Only benchmarks that both have count when there is a baseline; a mean over benchmarks carries no interval.
    """
    theirs = {b.name: b.scores.official for b in before}
    pairs = [(theirs.get(b.name), b.scores.official) for b in after if not before or b.name in theirs]
    pairs = [pair for pair in pairs if all(side is None or side.accuracy is not None for side in pair)]
    if not pairs:
        return None, None, 0
    if len(pairs) == 1:
        return *pairs[0], 1
    share = tolerant(Accuracy)
    ours = share(accuracy=sum(side.accuracy for _, side in pairs) / len(pairs))
    return share(accuracy=sum(side.accuracy for side, _ in pairs) / len(pairs)) if before else None, ours, len(pairs)


def verdict_names(benchmarks: Sequence[BenchmarkResult]) -> list[str]:
    """The verdicts that occur, in the order of VERDICTS, then by name."""
    found = {name for benchmark in benchmarks for name, share in benchmark.verdicts.items() if share}
    return [name for name in VERDICTS if name in found] + sorted(found - set(VERDICTS))


def draw_curves(model: str) -> Sequence[Chart]:
    """The training curves when the model is, or lies in, a run folder; nothing otherwise."""
    place = Path(model)
    for folder in (place, *list(place.parents)[:2]) if place.is_dir() else ():
        if (folder / "metrics.jsonl").is_file():
            return draw_charts(load_run(folder))[0]
    return ()


def short_model(model: str) -> str:
    """A model's name; of an absolute path the last two parts, so that a shared page tells nothing of the disk."""
    return "/".join(Path(model).parts[-2:]) if Path(model).is_absolute() else model


def _baseline_name(after: Evaluated, before: Evaluated | None) -> str:
    """The baseline's model, from its own results or from the comparison; empty without one."""
    if before is not None:
        return short_model(before.results.model)
    comparison = _comparison(after, before)
    return short_model(comparison.baseline) if comparison else ""


def _comparison(after: Evaluated, before: Evaluated | None) -> Comparison | None:
    """The comparison that the results hold, unless it is with another model than the baseline shown."""
    comparison = after.results.comparison
    if comparison is None or (before is not None and comparison.baseline != before.results.model):
        return None
    return comparison


def _protocol_notes(after: Evaluated, before: Evaluated | None) -> list[str]:
    """What differs between the protocols, if that was allowed when the two were compared; else a refusal."""
    comparison = _comparison(after, before)
    allowed = comparison.protocol_differences if comparison else ()
    if before and before.results.protocol_hash != after.results.protocol_hash and not allowed:
        raise ReportError(
            f"The baseline was evaluated under protocol {before.results.protocol_hash}, the results under "
            f"{after.results.protocol_hash}; evaluate both under one protocol, or compare them with the evaluate "
            "command and allow it there."
        )
    return [f"Not the same protocol as the baseline's: {'; '.join(allowed)}."] if allowed else []


def _changes(after: Evaluated, before: Evaluated | None, gallery: Gallery) -> dict[str, dict[str, Any]]:
    """By benchmark: the paired difference of the comparison where there is one, and the rows that changed."""
    comparison = _comparison(after, before)
    compared = {c.name: c for c in comparison.benchmarks} if comparison else {}
    counts = Counter((row["benchmark"], row["outcome"]) for row in gallery.rows)
    changes = {}
    for index, benchmark in enumerate(after.results.benchmarks):
        tested = compared.get(benchmark.name)
        fixed, broken = counts[index, "fixed"], counts[index, "broken"]
        if tested or fixed or broken:
            changes[benchmark.name] = {
                "tested": tested,
                "wins": tested.wins if tested else fixed,
                "losses": tested.losses if tested else broken,
            }
    return changes


def _keys(benchmarks: Sequence[BenchmarkResult], field: str) -> list[str]:
    """The keys of a mapping field over all benchmarks, short (numbers by size) before long."""
    found: set[str] = {key for benchmark in benchmarks for key in getattr(benchmark, field)}
    return sorted(found, key=lambda key: (len(key), key))
