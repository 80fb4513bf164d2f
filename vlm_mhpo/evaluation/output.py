"""The files of a report: results.json, .md, .tex, .csv and the page."""

from __future__ import annotations

from pathlib import Path

from vlm_mhpo.evaluation import tables
from vlm_mhpo.evaluation.compare import ReportComparison
from vlm_mhpo.pages.evaluation_page import write_page
from vlm_mhpo.records.evaluation import RESULTS_FILE, Results

PAGE_FILE = "report.html"


def write_outputs(out: Path, results: Results, baseline: Path | None) -> None:
    """Write everything but the items, the JSON last: where it lies, the report is whole but for its page."""
    (out / "results.md").write_text(tables.markdown(results))
    (out / "results.tex").write_text(tables.latex(results))
    (out / "results.csv").write_text(tables.csv_text(results))
    (out / RESULTS_FILE).write_text(results.model_dump_json(by_alias=True, indent=1) + "\n")
    write_page(out / RESULTS_FILE, out / PAGE_FILE, baseline)


def write_comparison(out: Path, found: ReportComparison) -> None:
    """comparison.json, .md, .tex and .csv."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "comparison.md").write_text(tables.comparison_markdown(found))
    (out / "comparison.tex").write_text(tables.comparison_latex(found))
    (out / "comparison.csv").write_text(tables.comparison_csv(found))
    (out / "comparison.json").write_text(found.model_dump_json(indent=1) + "\n")
