"""The comparison on paper: JSON, Markdown, LaTeX, and one HTML page with curves and bands."""

from __future__ import annotations

import base64
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from vlm_mhpo.pages.html import environment, source, write_text
from vlm_mhpo.pages.study_figures import draw_curves, draw_intervals
from vlm_mhpo.pages.tables import latex_table, markdown_table, plain
from vlm_mhpo.records.statistics import Estimate
from vlm_mhpo.records.study import MEASURES, RunMeasures, Runs, Table, differences, means

RECORD = "comparison.json"
# Decimals of each measure in the tables; accuracies and shares are shown in percent.
PERCENT = ("accuracy", "area", "clipped_share", "collapsed")
DECIMALS = {"norm_ratio": 2, "num_spikes": 1, "drift": 5, "entropy": 3}
HEAD = ("objective", *MEASURES.values())
METHOD = (
    "Means over seeds with Student's 95 % interval. One seed, and seeds that are all alike, tell no spread and have no "
    "interval."
)
PAIRED_METHOD = (
    "Student's 95 % interval of the mean difference on the same seeds; bold where it does not hold 0. {count} "
    "intervals, each by itself: of twenty differences that are nothing, one is bold."
)


def write_comparison(runs: Runs, out: Path, *, baseline: str, title: str, description: str) -> Path:
    """Write comparison.json, .md, .tex, .html, curves.png and intervals.png to `out`; returns the page.

    Args:
        runs: measures by variant and seed.
        out: folder.
        baseline: variant that the differences are taken against.
        title, description: of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    over_seeds, paired = means(runs), differences(runs, baseline)
    record = {
        "title": title,
        "description": description,
        "baseline": baseline,
        "means": as_json(over_seeds),
        "paired_differences": as_json(paired),
        "runs": {name: {str(seed): asdict(run) for seed, run in by_seed.items()} for name, by_seed in runs.items()},
    }
    (out / RECORD).write_text(json.dumps(clean(record), indent=1) + "\n")
    (out / "comparison.md").write_text(markdown(title, description, over_seeds, paired, baseline))
    (out / "comparison.tex").write_text(latex_table(HEAD, _table_rows(over_seeds)))
    pictures = {"curves": draw_curves(runs), "intervals": draw_intervals(over_seeds, baseline)}
    for name, picture in pictures.items():
        (out / f"{name}.png").write_bytes(picture)
    html = (
        environment()
        .get_template("study.html.j2")
        .render(
            title=title,
            description=description,
            **{name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
            method=METHOD,
            paired_method=_paired_method(paired),
            means=over_seeds,
            paired=paired,
            baseline=baseline,
            head=HEAD,
            shown=shown,
            style=source("page.css"),
        )
    )
    return write_text(html, out / "comparison.html")


def redraw(folder: Path, note: str = "") -> Path:
    """Write a study anew from the measures of its runs in its comparison.json, without a run; returns the page.

    Args:
        folder: what `write_comparison` filled.
        note: sentence that the description is to end in.
    """
    record = json.loads((folder / RECORD).read_text())
    # JSON has no NaN: a measure that is null was one.
    runs = {
        name: {
            int(seed): RunMeasures(
                **{key: math.nan if value is None else value for key, value in run.items()}
                | {"curve": tuple(map(tuple, run["curve"]))}
            )
            for seed, run in by_seed.items()
        }
        for name, by_seed in record["runs"].items()
    }
    description = record["description"].removesuffix(note).strip()
    description = f"{description} {note}".strip()
    return write_comparison(runs, folder, baseline=record["baseline"], title=record["title"], description=description)


def as_json(table: Table) -> dict[str, dict[str, dict]]:
    """Estimates as plain values."""
    return {
        row: {
            name: {"mean": found.mean, "low": found.low, "high": found.high, "num_seeds": found.count}
            for name, found in cells.items()
        }
        for row, cells in table.items()
    }


def clean(value: Any) -> Any:
    """JSON values; NaN and infinity, which JSON does not have, become null."""
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(name: str, value: Estimate) -> str:
    """A mean with its interval in the measure's unit, or why it has none."""
    if value.count == 0:
        return "-"
    factor, decimals, unit = (100.0, 1, " %") if name in PERCENT else (1.0, DECIMALS[name], "")
    mean, low, high = (f"{factor * number:.{decimals}f}" for number in (value.mean, value.low, value.high))
    if value.has_interval:
        return f"{mean}{unit} [{low}, {high}]"
    return f"{mean}{unit} (one seed)" if value.count == 1 else f"{mean}{unit} (all {value.count} alike)"


def _paired_method(paired: Table) -> str:
    """How differences are judged, with the number of them that have an interval."""
    return PAIRED_METHOD.format(count=sum(found.has_interval for cells in paired.values() for found in cells.values()))


def markdown(title: str, description: str, over_seeds: Table, paired: Table, baseline: str) -> str:
    """The tables in Markdown."""
    parts = [f"# {plain(title)}", plain(description), METHOD, markdown_table(HEAD, _table_rows(over_seeds))]
    parts += [f"Paired differences, objective minus {plain(baseline)}. {_paired_method(paired)}"]
    return "\n\n".join([*parts, markdown_table(HEAD, _table_rows(paired, mark=True))]) + "\n"


def _table_rows(table: Table, *, mark: bool = False) -> list[list[str]]:
    """Cells of a table, those that exclude 0 in Markdown's bold if so asked."""
    return [
        [
            row,
            *(
                f"**{text}**" if mark and cells[name].excludes_zero else text
                for name in MEASURES
                for text in [shown(name, cells[name])]
            ),
        ]
        for row, cells in table.items()
    ]
