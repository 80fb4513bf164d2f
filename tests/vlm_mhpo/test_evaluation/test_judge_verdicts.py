"""A judge's verdicts beside the rules': talks in stages, figures by hand, records that say who judged."""

from __future__ import annotations

import csv
import errno
import io
import json
import re
from dataclasses import replace

import pytest

from tests.vlm_mhpo.test_evaluation.cases import BENCHMARK, item, items, protocol, result, results, row
from tests.vlm_mhpo.test_evaluation.judge_server import SERVED, completion, judge_server, says, send
from tests.vlm_mhpo.test_report.evaluation_cases import HOSTILE
from vlm_mhpo.errors import EvaluationError, JudgeError
from vlm_mhpo.evaluation import shards
from vlm_mhpo.evaluation.benchmark_run import Options, ask_judge, keep_state, ready_judge, start_report
from vlm_mhpo.evaluation.benchmarks.types import JudgeRule, Official
from vlm_mhpo.evaluation.chosen import BenchmarkRows
from vlm_mhpo.evaluation.compare import compare_results
from vlm_mhpo.evaluation.judge.answers import Answer, keep_answer
from vlm_mhpo.evaluation.judge.asking import open_judge
from vlm_mhpo.evaluation.judge.verdicts import judge_items, judge_protocol
from vlm_mhpo.evaluation.tables import csv_text, latex, markdown
from vlm_mhpo.pages.evaluation_page import write_page
from vlm_mhpo.records.evaluation import JudgeProtocol, JudgeVerdict, State


def two_stages(asked, response):
    """Asks for the answer, and of any but the gold whether it is equal to it."""
    taken = yield f"extract {response}"
    if taken == asked.answer:
        return Official(True, taken)
    said = yield f"compare {taken} {asked.answer}"
    return Official(said == "1", taken) if said in ("0", "1") else None


RULE = JudgeRule(two_stages, ("extract", "compare"), "prompts of nobody")
ROWS = [row("p0"), row("p1"), row("p2")]


def judged_by(reply, tmp_path, found):
    with judge_server(reply) as played:
        return judge_items(RULE, ROWS, found, open_judge(played.config(tmp_path)), name="t"), played


def verdicts(found) -> list[list[tuple[str, str | None]]]:
    return [[(one.judge.verdict, one.judge.extracted) for one in item.completions] for item in found]


def texts(*rows: tuple[str, ...]):
    """Items whose completions have these texts."""
    plain = [item(f"p{place}", "-" * len(row)) for place, row in enumerate(rows)]
    return [
        one.model_copy(update={"completions": tuple(
            c.model_copy(update={"text": text}) for c, text in zip(one.completions, row, strict=True)
        )})
        for one, row in zip(plain, rows, strict=True)
    ]  # fmt: skip


def test_talks_go_on_together_and_equal_questions_are_asked_once(tmp_path):
    said = {"extract seven": "7", "extract 14/2": "14/2", "compare 14/2 7": "1", "extract 8": "8", "compare 8 7": "0",
            "extract odd": "odd", "compare odd 7": "perhaps"}  # fmt: skip
    given = texts(("seven", "14/2"), ("8", "odd"), ("14/2", "  \n"))
    found, played = judged_by(says(said.get), tmp_path, given)
    assert verdicts(found) == [
        [("right", "7"), ("right", "14/2")],
        [("wrong", "8"), ("unreadable", None)],
        # An empty response is wrong without a question.
        [("right", "14/2"), ("wrong", None)],
    ]
    assert sorted(played.prompts) == sorted(said)
    # All first questions are put before any second one.
    assert [prompt.split()[0] for prompt in played.prompts] == ["extract"] * 4 + ["compare"] * 3
    # Nothing else of the rows has changed.
    assert [one.model_copy(update={"completions": ()}) for one in found] == [
        one.model_copy(update={"completions": ()}) for one in given
    ]
    assert [c.model_copy(update={"judge": None}) for one in found for c in one.completions] == [
        c for one in given for c in one.completions
    ]


def test_of_a_thought_only_what_stands_behind_it_counts(tmp_path):
    said = {"extract a": "<think>It is 8.\n</think>\n\n7", "extract b": "<think>7 or 8, or 7, or",
            "extract c": "I think 9</think>7", "compare  7": ""}  # fmt: skip
    found, _ = judged_by(says(said.get), tmp_path, texts(("a",), ("b",), ("c",)))
    assert verdicts(found) == [[("right", "7")], [("unreadable", None)], [("right", "7")]]


def test_what_the_server_refuses_is_counted_and_right_for_nobody(tmp_path):
    def reply(handler, played, prompt):
        send(handler, b"{}", 413) if "long" in prompt else send(handler, completion("7"))

    found, _ = judged_by(reply, tmp_path, texts(("long", "a"), ("a",), ("long",)))
    assert verdicts(found) == [[("refused", None), ("right", "7")], [("right", "7")], [("refused", None)]]


def marked(one, *names: str):
    """The item with these verdicts of a judge."""
    completions = [
        c.model_copy(update={"judge": JudgeVerdict(verdict=name, extracted=None)})
        for c, name in zip(one.completions, names, strict=True)
    ]
    return one.model_copy(update={"completions": tuple(completions)})


JUDGED = [
    marked(item("p0", "++"), "right", "wrong"),
    marked(item("p1", "--"), "right", "unreadable"),
    marked(item("p2", "+-"), "refused", "wrong"),
]


@pytest.fixture
def judging(monkeypatch):
    """The made-up benchmark with a judge."""
    monkeypatch.setattr("tests.vlm_mhpo.test_evaluation.cases.BENCHMARK", replace(BENCHMARK, judge=RULE))


def test_the_figures_of_a_judge_by_hand(judging):
    found = result(JUDGED).judge
    # 2 of 6 completions are right, of the rows 1/2, 1/2 and 0.
    assert found.accuracy == pytest.approx(1 / 3)
    assert 0 <= found.low < 1 / 3 < found.high <= 1
    # The rule says ++ -- +-, the judge +- +- --: they agree on the first, the fourth and the last.
    assert found.agreement == pytest.approx(3 / 6)
    assert (found.unreadable, found.refused, found.source) == (1, 1, "prompts of nobody")
    # The rule's own score does not know of it.
    assert result(JUDGED).scores == result([item("p0", "++"), item("p1", "--"), item("p2", "+-")]).scores
    assert result(items({"a": "+", "b": "-"})).judge is None


def report(served: str = SERVED, model: str = "judge"):
    pinned = {"model": model, "served": served, "prompts": "cafe", "max_tokens": 1024}
    return results(JUDGED, judge=pinned)


def test_every_table_shows_both_scores_and_who_judged(judging):
    found = report()
    (line,) = [line for line in markdown(found).splitlines() if f"| {SERVED} (asked as judge) | cafe |" in line]
    shown = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)]
    # Official 3 of 6, judge 2 of 6.
    assert shown[4].startswith("50.0 [") and shown[5].startswith("33.3 [") and shown[6:9] == ["50.0", "1", "1"]
    assert found.benchmarks[0].protocol_hash in line
    assert "language model: prompts of nobody" in markdown(found)
    assert "33.3 [" in latex(found) and SERVED in latex(found) and " Judge" in latex(found)
    figures = {line["metric"]: line["score"] for line in csv.DictReader(io.StringIO(csv_text(found)))}
    assert float(figures["judge_accuracy"]) == pytest.approx(1 / 3)
    assert (figures["judge_agreement"], figures["judge_unreadable"], figures["judge_refused"]) == ("0.5", "1", "1")
    # Without a judge nothing of it is there.
    plain = results([item("p0", "+")])
    assert "judge" not in (markdown(plain) + csv_text(plain)).replace("the judge is a rule", "")
    assert "Judge" not in latex(plain)


def test_the_page_shows_both_scores_and_a_hostile_name_as_text(judging, tmp_path):
    for served in (SERVED, HOSTILE):
        folder = tmp_path / str(len(served))
        (folder / "results").mkdir(parents=True)
        shards.write_items(folder / "results" / "made.jsonl", JUDGED)
        (folder / "results.json").write_text(report(served).model_dump_json(by_alias=True))
        page = write_page(folder, folder / "report.html").read_text()
        assert '<th scope="col">judge</th>' in page and "33.3" in page
        assert "agrees with the rule on 50.0" in page and "1 unreadable and 1 refused" in page
        assert '"judge":"unreadable"' in page.replace(": ", ":")
        assert "<script>document.title" not in page
    assert f"{SERVED} (asked as judge)" in (tmp_path / str(len(SERVED)) / "report.html").read_text()


def test_judged_rows_are_kept_and_not_asked_about_again(tmp_path):
    one = BenchmarkRows(replace(BENCHMARK, judge=RULE), "test", tuple(ROWS), tuple(ROWS))
    given = texts(("seven",), ("7",), ("8",))
    out = tmp_path / "report"
    with judge_server(says(lambda prompt: "0" if prompt.startswith("compare") else prompt.split()[-1])) as played:
        asked = open_judge(played.config(tmp_path))
        found = ask_judge(one, given, asked, out)
        kept = shards.read_items(out / "results" / "made.jsonl", ["p0", "p1", "p2"])
        assert kept == found
        assert verdicts(kept) == [[("wrong", "seven")], [("right", "7")], [("wrong", "8")]]
        before = len(played.requests)
        # Not even if the folder of answers is gone.
        fresh = open_judge(played.config(tmp_path, cache_dir=str(tmp_path / "none")))
        assert ask_judge(one, kept, fresh, out) == kept
        assert len(played.requests) == before + 1
        # Without a judge, or for a benchmark whose authors ask none, nothing is asked and nothing written.
        plain = replace(one, benchmark=BENCHMARK)
        assert ask_judge(one, given, None, tmp_path / "x") == ask_judge(plain, given, asked, tmp_path / "x") == given
        assert not (tmp_path / "x").exists() and len(played.requests) == before + 1


def test_the_protocol_names_the_model_as_it_is_served_and_the_prompts(tmp_path):
    with judge_server(says(lambda prompt: "7")) as played:
        asked = open_judge(played.config(tmp_path))
    found = judge_protocol(RULE, asked)
    assert (found.model, found.served, found.max_tokens) == ("judge", SERVED, 1024)
    assert judge_protocol(replace(RULE, prompts=("extract", "compare!")), asked).prompts != found.prompts


def state(judge=None, **change) -> State:
    return State(model="m", model_digest="aa", protocol=protocol(judge=judge, **change))


def test_a_report_of_rules_may_get_a_judge_and_keeps_it(tmp_path):
    one = {"model": "a", "served": "a-1", "prompts": "ee", "max_tokens": 9}
    keep_state(tmp_path, state())
    with pytest.raises(EvaluationError, match=r"seed: 0 and 1\nchoose another --out"):
        keep_state(tmp_path, state(one, seed=1))
    keep_state(tmp_path, state(one))
    kept = json.loads((tmp_path / "evaluation.json").read_text())["protocol"]["benchmarks"]["made"]["judge"]
    assert JudgeProtocol(**kept) == JudgeProtocol(**one)
    for other in (one | {"served": "a-2"}, None):
        with pytest.raises(EvaluationError, match=r"benchmarks\.made\.judge: .*\nchoose another --out"):
            keep_state(tmp_path, state(other))


def with_rows(out, found):
    shards.write_items(out / "results" / "made.jsonl", found)
    return out


def test_a_judge_is_greeted_before_every_evaluation_that_may_ask_it(tmp_path):
    one, out = BenchmarkRows(replace(BENCHMARK, judge=RULE), "test", tuple(ROWS), tuple(ROWS)), tmp_path / "report"
    with judge_server(says(lambda prompt: "0" if prompt.startswith("compare") else prompt.split()[-1])) as played:
        config = played.config(tmp_path, max_tries=1)
        open_judge(config)
        ready_judge(config, [one], out)
        assert len(played.requests) == 2
        asked = ready_judge(config, [replace(one, benchmark=BENCHMARK)], out)
        assert len(played.requests) == 2
        judge_items(RULE, ROWS, texts(("7",), ("8",), ("",)), asked, name="t")
        before = len(played.requests)
        # Every answer is kept, then one is not.
        ready_judge(config, [one], with_rows(out, texts(("8",), ("7",), ("",))))
        assert len(played.requests) == before
        ready_judge(config, [one], with_rows(out, texts(("7",), ("9",), ("8",))))
        assert len(played.requests) == before + 1
    # It has gone.
    with_rows(out, texts(("8",), ("7",), ("",)))
    assert ask_judge(one, texts(("8",), ("7",), ("",)), ready_judge(config, [one], out), out)
    ready_judge(config, [one], out)
    with pytest.raises(JudgeError, match="cannot be reached"):
        ready_judge(config, [one], tmp_path / "other")


def test_a_report_whose_judge_died_is_finished_by_rules_alone_or_another(tmp_path):
    one = {"model": "a", "served": "a-1", "prompts": "ee", "max_tokens": 9}
    for later in (None, one | {"served": "a-2"}):
        out = tmp_path / str(later is None)
        keep_state(out, state(one).model_copy(update={"model_digest": None}))
        with_rows(out, texts(("7",), ("8",)))
        begun = start_report(protocol(judge=later), "m", "m", Options(out))
        assert begun.protocol.benchmarks["made"].judge == (later and JudgeProtocol(**later))
    # What a judge has said stays, with its name, and no other may join it.
    spoken = [marked(found, "right") for found in texts(("7",), ("8",))]
    out = tmp_path / "spoken"
    keep_state(out, state(one).model_copy(update={"model_digest": None}))
    with_rows(out, spoken)
    found = start_report(protocol(), "m", "m", Options(out))
    assert found.protocol.benchmarks["made"].judge == JudgeProtocol(**one)
    with pytest.raises(EvaluationError, match=r"benchmarks\.made\.judge"):
        start_report(protocol(judge=one | {"served": "a-2"}), "m", "m", Options(out))


def test_a_judged_report_is_compared_with_one_by_rules_alone(judging, tmp_path):
    base = tmp_path / "base"
    found = texts(("7",), ("8",))
    with_rows(base, found)
    plain = results(found)
    (base / "results.json").write_text(plain.model_dump_json(by_alias=True))
    one = {"model": "a", "served": "a-1", "prompts": "ee", "max_tokens": 9}
    start_report(protocol(judge=one), "m", "m", Options(tmp_path / "out", baseline=base))
    ours = [marked(each, "right") for each in found]
    comparison = compare_results(results(ours, judge=one), {"made": ours}, base, allowed=False)
    assert comparison.protocol_differences == ()
    with pytest.raises(EvaluationError, match="seed: 1 and 0"):
        start_report(protocol(judge=one, seed=1), "m", "m", Options(tmp_path / "more", baseline=base))


def test_a_full_disk_leaves_no_half_an_answer(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("vlm_mhpo.evaluation.judge.answers.json.dump", full)
    with pytest.raises(JudgeError, match="No space left on device"):
        keep_answer(tmp_path, {"model": "m"}, Answer("7", "m"))
    assert [file for file in tmp_path.glob("**/*") if file.is_file()] == []
