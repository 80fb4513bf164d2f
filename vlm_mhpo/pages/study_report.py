"""The comparison on paper: JSON, Markdown, LaTeX, and one HTML page with curves and bands."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from vlm_mhpo.pages.study_figures import draw_curves, draw_intervals
from vlm_mhpo.records.study import MEASURES, RunMeasures
from vlm_mhpo.records.study_statistics import Estimate, differences, summarise

# Decimals of each measure in the tables; accuracies and shares are shown in percent.
PERCENT = ("accuracy", "area", "clipped_share", "collapsed")
DECIMALS = {"norm_ratio": 2, "num_spikes": 1, "drift": 5, "entropy": 3}
LATEX_ESCAPES = str.maketrans(
    {
        **{character: f"\\{character}" for character in "&%$#_{}"},
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
    }
)

PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{{ title }}</title><style>
:root { color-scheme: light dark; font-family: system-ui, sans-serif; line-height: 1.45; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
table { display: block; overflow-x: auto; }
th, td { padding: .3rem .7rem; text-align: right; border-bottom: 1px solid #8884; white-space: nowrap; }
th:first-child, td:first-child { text-align: left; } img { max-width: 100%; background: #fff; }
.far { font-weight: 700; } small { opacity: .7; }
</style></head><body>
<h1>{{ title }}</h1><p>{{ description }}</p>
<img alt="Held-out accuracy over the steps, mean and 95 % band of each objective"
 src="data:image/png;base64,{{ curves }}">
<img alt="Mean and 95 % interval of accuracy, gradient norm ratio and drift of each objective"
 src="data:image/png;base64,{{ intervals }}">
<h2>Means over seeds, 95 % intervals</h2>{{ table(means) }}
<h2>Paired differences, objective minus {{ baseline }}</h2>
<p>Bold: the 95 % interval does not hold 0.</p>{{ table(paired, mark=true) }}
</body></html>""",
    autoescape=True,
)


def write_comparison(
    runs: Mapping[str, Mapping[int, RunMeasures]], out: Path, *, baseline: str, title: str, description: str
) -> Path:
    """Write comparison.json, .md, .tex, .html, curves.png and intervals.png to `out`; returns the page.

    Args:
        runs: measures by variant and seed.
        out: folder.
        baseline: variant that the differences are taken against.
        title, description: of the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    means, paired = summarise(runs), differences(runs, baseline)
    record = {
        "title": title,
        "description": description,
        "baseline": baseline,
        "means": as_json(means),
        "paired_differences": as_json(paired),
        "runs": {name: {str(seed): asdict(run) for seed, run in by_seed.items()} for name, by_seed in runs.items()},
    }
    (out / "comparison.json").write_text(json.dumps(clean(record), indent=1) + "\n")
    (out / "comparison.md").write_text(markdown(title, description, means, paired, baseline))
    (out / "comparison.tex").write_text(latex(means))
    pictures = {"curves": draw_curves(runs), "intervals": draw_intervals(means, baseline)}
    for name, picture in pictures.items():
        (out / f"{name}.png").write_bytes(picture)
    page = out / "comparison.html"
    page.write_text(
        PAGE.render(
            title=title,
            description=description,
            **{name: base64.b64encode(picture).decode() for name, picture in pictures.items()},
            means=means,
            paired=paired,
            baseline=baseline,
            table=html_table,
        )
    )
    return page


def as_json(table: Mapping[str, Mapping[str, Estimate]]) -> dict[str, dict[str, dict]]:
    """Estimates as plain values."""
    return {row: {name: asdict(value) for name, value in cells.items()} for row, cells in table.items()}


def clean(value: Any) -> Any:
    """JSON values; NaN and infinity, which JSON does not have, become null."""
    if isinstance(value, dict):
        return {key: clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def shown(name: str, value: Estimate) -> str:
    """A mean with its interval in the measure's unit."""
    if value.num_seeds == 0:
        return "-"
    factor, decimals, unit = (100.0, 1, " %") if name in PERCENT else (1.0, DECIMALS[name], "")
    mean, low, high = (f"{factor * number:.{decimals}f}" for number in (value.mean, value.low, value.high))
    return f"{mean}{unit} [{low}, {high}]"


def markdown(title: str, description: str, means: Mapping, paired: Mapping, baseline: str) -> str:
    """The tables in Markdown."""
    parts = [
        f"# {plain(title)}",
        "",
        plain(description),
        "",
        "Means over seeds with 95 % bootstrap intervals:",
        "",
        *rows_of(means),
    ]
    parts += ["", f"Paired differences, objective minus {baseline}; bold where the interval does not hold 0:", ""]
    parts += rows_of(paired, mark=True)
    return "\n".join([*parts, ""])


def plain(text: str) -> str:
    """Text that Markdown shows as it is: no tag, no second line."""
    return " ".join(text.split()).replace("<", "&lt;")


def rows_of(table: Mapping[str, Mapping[str, Estimate]], *, mark: bool = False) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| objective | " + " | ".join(MEASURES.values()) + " |", "| --- " * (len(MEASURES) + 1) + "|"]
    for row, cells in table.items():
        texts = [shown(name, cells[name]) for name in MEASURES]
        if mark:
            texts = [f"**{t}**" if cells[n].excludes_zero else t for n, t in zip(MEASURES, texts, strict=True)]
        # `|` would open a column, `<` a tag.
        name = row.replace("|", r"\|").replace("<", "&lt;")
        lines.append(f"| {name} | " + " | ".join(texts) + " |")
    return lines


def latex(means: Mapping[str, Mapping[str, Estimate]]) -> str:
    """The means as a booktabs table."""
    head = " & ".join(["objective", *(text.replace("%", r"\%") for text in MEASURES.values())])
    lines = [rf"\begin{{tabular}}{{l{'r' * len(MEASURES)}}}", r"\toprule", head + r" \\", r"\midrule"]
    for row, cells in means.items():
        texts = [shown(name, cells[name]).replace("%", r"\%") for name in MEASURES]
        lines.append(" & ".join([row.translate(LATEX_ESCAPES), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", ""])


def html_table(table: Mapping[str, Mapping[str, Estimate]], *, mark: bool = False) -> Markup:
    """The estimates as an HTML table, those that exclude 0 in bold if so asked; names are escaped."""
    head = "".join(f"<th>{escape(text)}</th>" for text in ("objective", *MEASURES.values()))
    body = ""
    for row, cells in table.items():
        body += f"<tr><td>{escape(row)}</td>"
        for name in MEASURES:
            style = ' class="far"' if mark and cells[name].excludes_zero else ""
            body += f"<td{style}>{escape(shown(name, cells[name]))}</td>"
        body += "</tr>"
    return Markup(f"<table><tr>{head}</tr>{body}</table>")
