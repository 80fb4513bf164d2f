"""Reports against each other: by hand, only under one protocol, and over several runs of a method."""

import json

import numpy as np
import pytest
from scipy import stats

from tests.vlm_mhpo.test_evaluation.cases import results, singles
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.command import report_command
from vlm_mhpo.evaluation.compare import compare_reports, compare_results, read_report
from vlm_mhpo.evaluation.shards import write_items
from vlm_mhpo.evaluation.tables import comparison_markdown
from vlm_mhpo.records.evaluation import read_results


def put(folder, marks, *, model="models/one", **change):
    """A report's folder with one row for each mark, or for each word of marks."""
    judged = singles(marks)
    write_items(folder / "results" / "made.jsonl", judged)
    (folder / "results.json").write_text(results(judged, model=model, **change).model_dump_json(by_alias=True))
    return str(folder)


def test_two_reports_by_hand(tmp_path):
    base = put(tmp_path / "base", "++++----------", model="base")
    ours = put(tmp_path / "ours", "+++-+++++-----", model="ours")
    found = compare_reports([read_report(ours), read_report(base)], "base")
    (one,) = found.differences
    # 5 rows won, 1 lost: 2 (1 + 6) / 64.
    assert (one.method, one.wins, one.losses, one.num_rows) == ("ours", 5, 1, 14)
    assert one.difference == pytest.approx(4 / 14)
    assert one.p == pytest.approx(14 / 64)
    assert one.over_runs is None
    assert {(score.method, score.accuracy) for score in found.scores} == {("base", 4 / 14), ("ours", 8 / 14)}


def test_a_report_holds_the_comparison_with_its_baseline(tmp_path):
    base = put(tmp_path / "base", "+---", model="base")
    found = compare_results(results(singles("++--")), {"made": singles("++--")}, tmp_path / "base", allowed=False)
    assert base.endswith("base") and found.baseline == "base"
    assert (found.benchmarks[0].wins, found.benchmarks[0].difference) == (1, 0.25)


def test_other_protocols_are_refused_and_named_unless_allowed(tmp_path):
    base, ours = put(tmp_path / "base", "+-", model="base"), put(tmp_path / "ours", "++", seed=1, data="cd")
    reports = [read_report(base), read_report(ours)]
    with pytest.raises(EvaluationError) as refused:
        compare_reports(reports, "base")
    assert "seed: 0 and 1" in str(refused.value) and "benchmarks.made.data" in str(refused.value)
    found = compare_reports(reports, "base", allowed=True)
    assert len(found.protocol_differences) == 2
    assert "Protocols differ" in report_command(
        [base, ours], baseline=None, out=tmp_path / "out", allow_protocol_difference=True
    )
    with pytest.raises(EvaluationError):
        compare_results(results(singles("++"), seed=1), {"made": singles("++")}, tmp_path / "base", allowed=False)


def test_runs_of_one_method_are_averaged_and_their_spread_is_students(tmp_path):
    runs = {"old": ["+++-----", "++------", "+++++---"], "new": ["++++++--", "+++++++-", "++++----"]}
    places = [
        f"{method}={put(tmp_path / f'{method}{seed}', marks)}"
        for method, all_marks in runs.items()
        for seed, marks in enumerate(all_marks)
    ]
    found = compare_reports([read_report(place) for place in places], "old")
    values = {method: [marks.count("+") / 8 for marks in all_marks] for method, all_marks in runs.items()}
    for score in found.scores:
        expected = stats.t.interval(0.95, 2, loc=np.mean(values[score.method]), scale=stats.sem(values[score.method]))
        assert score.num_runs == 3
        assert (score.low, score.high) == pytest.approx(expected)
    (one,) = found.differences
    assert one.difference == pytest.approx(np.mean(values["new"]) - np.mean(values["old"]))
    welch = stats.ttest_ind(values["new"], values["old"], equal_var=False)
    assert one.over_runs.p == pytest.approx(welch.pvalue)
    # By row over all runs: p0 to p3 all alike but p3 (old 1 of 3, new 3), p2 (2, 3), ...
    assert (one.wins, one.losses) == (5, 0)


def test_runs_without_spread_have_no_interval_over_runs(tmp_path):
    places = [f"{method}={put(tmp_path / f'{method}{seed}', marks)}"
              for method, marks in {"a": "+-", "b": "++"}.items() for seed in range(2)]  # fmt: skip
    found = compare_reports([read_report(place) for place in places], "a")
    assert found.differences[0].over_runs is None
    assert {(score.accuracy, score.low, score.high) for score in found.scores} == {(0.5, None, None), (1.0, None, None)}
    assert "| a | made | 2 | 50.0 (all runs alike) |" in comparison_markdown(found)


def test_what_cannot_be_compared_ends_in_a_sentence(tmp_path):
    base, ours = put(tmp_path / "base", "+-", model="base"), put(tmp_path / "ours", "++")
    reports = [read_report(base), read_report(ours)]
    with pytest.raises(EvaluationError, match="--baseline nobody"):
        compare_reports(reports, "nobody")
    with pytest.raises(EvaluationError, match="at least two methods"):
        compare_reports(reports[:1], "base")
    with pytest.raises(EvaluationError, match=r"results\.json: No such file"):
        read_report(str(tmp_path / "none"))
    (tmp_path / "base" / "results.json").write_text("{}")
    with pytest.raises(EvaluationError, match="no results file of this version"):
        read_report(base)
    with pytest.raises(EvaluationError, match="rows"):
        put(tmp_path / "short", "+")
        compare_reports(
            [read_report(f"a={tmp_path / 'short'}"), read_report(f"a={ours}"), read_report(f"b={ours}")], "b"
        )


def test_the_command_writes_every_form_and_takes_a_folder_as_baseline(tmp_path):
    base, ours = put(tmp_path / "base", "+---", model="m"), put(tmp_path / "ours", "++--", model="n")
    text = report_command([ours, base], baseline=base, out=tmp_path / "out", allow_protocol_difference=False)
    assert "+25.0" in text
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert record["baseline"] == "m"
    assert record["differences"][0]["method"] == "n"
    for name in ("comparison.md", "comparison.tex", "comparison.csv"):
        assert record["protocol_hash"] in (tmp_path / "out" / name).read_text()


def test_results_are_read_back_as_they_were(tmp_path):
    written = results(singles("+-"))
    put(tmp_path / "a", "+-")
    assert read_results(tmp_path / "a") == read_results(tmp_path / "a" / "results.json") == written
