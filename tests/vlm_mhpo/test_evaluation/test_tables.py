"""Tables hold the record's figures and its protocol, and text from data or models cannot break them."""

import csv
import io
import re

import pytest

from tests.vlm_mhpo.test_evaluation.cases import item, items, results, singles
from vlm_mhpo.evaluation.overlap import Shared
from vlm_mhpo.evaluation.results import probe_score
from vlm_mhpo.evaluation.tables import csv_text, latex, markdown
from vlm_mhpo.records.evaluation import BenchmarkComparison, Comparison, Results

HOSTILE = "=cmd|'x' & 50 % of <script>\n# _all_ {~^}"


def whole() -> Results:
    """A report with everything in it, under hostile names."""
    judged = [item(f"p{index}", mark, **{HOSTILE: HOSTILE}) for index, mark in enumerate("++-t")]
    options = {
        "probes": {"blank": probe_score(singles("++-t"), singles("+---"))},
        "shared": Shared(HOSTILE, 5, {"same_picture": ("p0",), "near_picture": (), "same_question": ()}),
    }
    compared = BenchmarkComparison(name="made", num_rows=4, difference=0.25, low=-0.2, high=0.6, p=0.0004, wins=1,
                                   losses=0)  # fmt: skip
    comparison = Comparison(baseline=HOSTILE, protocol_differences=("seed: 0 and 1",), benchmarks=(compared,))
    return results(judged, model=HOSTILE, comparison=comparison, options=options)


def sections(text: str) -> dict[str, list[str]]:
    """Lines of the tables below each heading."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("#"):
            found[line.lstrip("# ")] = lines = []
        elif line.startswith("|"):
            lines.append(line)
    return found


def test_markdown_has_every_table_with_the_protocol_in_each():
    report = whole()
    tables = {title: lines for title, lines in sections(markdown(report)).items() if lines}
    assert len(tables) == 6
    for title, lines in tables.items():
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in lines}) == 1, title
        assert all(report.benchmarks[0].protocol_hash in line for line in lines[2:]), title
        assert len(lines) > 2
    assert report.protocol_hash in markdown(report)


def test_markdown_shows_the_figures():
    text = markdown(whole())
    # 2 of 4: Wilson 15.0 to 85.0.
    assert "50.0 [15.0, 85.0]" in text
    assert "+25.0 [-20.0, +60.0], p < 0.001" in text
    assert "| 25.0 |" in text  # the share that was truncated
    assert "the judge is a rule" in text
    assert "seed: 0 and 1" in text


def test_no_text_becomes_markup_a_column_or_a_line():
    text = markdown(whole())
    assert "<script>" not in text and "<b>" not in text
    assert not [line for line in text.splitlines() if line.startswith("# _all_")]


def test_latex_is_a_booktabs_table_whose_texts_are_escaped():
    report = whole()
    text = latex(report)
    assert text.count(r"\toprule") == text.count(r"\bottomrule") == 1
    assert report.protocol_hash in text
    rows = [line for line in text.splitlines() if line.endswith(r"\\") and not line.startswith(r"\multicolumn")]
    # Column separators are the ampersands without a backslash.
    assert {len(re.findall(r"(?<!\\)&", row)) for row in rows} == {5}
    bare = re.sub(r"\\[&%$#_{}]", "", text)
    assert not re.search(r"[%#_~^$<>]", re.sub(r"\\text\w+\{\}", "", bare))


def test_csv_holds_every_figure_and_no_formula():
    report = whole()
    rows = list(csv.DictReader(io.StringIO(csv_text(report))))
    figures = {(row["group"], row["value"], row["metric"]): row for row in rows}
    assert float(figures["", "", "official_accuracy"]["score"]) == 0.5
    assert float(figures["verdict", "truncated", "share"]["score"]) == 0.25
    assert float(figures["", "", "difference_to_baseline"]["p"]) == 0.0004
    assert float(figures["probe", "blank", "needs_picture"]["score"]) == 0.25
    assert float(figures["overlap", "clean", "official_accuracy"]["score"]) == pytest.approx(1 / 3)
    assert {row["protocol_hash"] for row in rows} == {report.benchmarks[0].protocol_hash}
    assert not [cell for row in rows for cell in row.values() if cell.startswith(("=", "+", "@"))]


def test_a_plain_report_has_no_empty_sections():
    text = markdown(results(items({"a": "++", "b": "+-"})))
    assert set(sections(text)) == {
        "Benchmarks: models/one", "Verdicts of our verifier, percent of the completions", "Deviations"
    }  # fmt: skip
    assert "Avg@2 at temperature 1" in text
    assert "100.0 (k = 2)" in text


def test_a_split_is_named_once():
    plain = results(singles("+-"))
    assert "100 % (test)" in markdown(plain)
    named = plain.benchmarks[0].model_copy(update={"title": "Made test"})
    assert "Made test |" in markdown(plain.model_copy(update={"benchmarks": (named,)}))
