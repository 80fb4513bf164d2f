"""Ten hand-made record sets with the figures a person works out for them; a rerun gives the same bytes."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.vlm_mhpo.test_evaluation.cases import completion, item, items, result, results, singles
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.results import probe_score
from vlm_mhpo.evaluation.tables import markdown

ROOT = Path(__file__).resolve().parents[3]

# Rows by their marks (see cases.completion), then: official accuracy with bounds, our accuracy, pass@j, verdict
# shares, tokens per completion, and the share of problems that are right throughout. Bounds of single completions are
# Newcombe's published ones where the counts are his; those of clusters come from listing every draw.
SETS = {
    "one right row": (singles("+"), (1, 0.2065, 1), 1, [1], {"correct": 1}, 4, 1),
    "none of 20": (singles("-" * 20), (0, 0, 0.1611), 0, [0], {"wrong": 1}, 4, 0),
    "1 of 29": (singles("+" + "-" * 28), (1 / 29, 0.0061, 0.1718), 1 / 29, [1 / 29],
                {"correct": 1 / 29, "wrong": 28 / 29}, 4, 1 / 29),
    "15 of 148": (singles("+" * 15 + "n" * 133), (15 / 148, 0.0624, 0.1605), 15 / 148, [15 / 148],
                  {"correct": 15 / 148, "no_answer": 133 / 148}, 4, 15 / 148),
    "81 of 263": (singles("o" * 81 + "-" * 182), (81 / 263, 0.2553, 0.3662), 0, [81 / 263], {"wrong": 1}, 4, 81 / 263),
    # c = 0, 1, 2, 4 of 4. pass@2 = (0 + 1/2 + 5/6 + 1) / 4; pass@3 = (0 + 3/4 + 1 + 1) / 4. Of the 256 draws of four of
    # the shares 0, 1/4, 1/2, 1 the lowest means are 0 (1 draw), 1/16 (4), 1/8 (10): 2.5 % lie at 1/8. The highest are
    # 1 (1 draw), 7/8 (4), 13/16 (4): 97.5 % lie at 13/16.
    "four samples": (items({"a": "----", "b": "+---", "c": "++--", "d": "++++"}), (7 / 16, 1 / 8, 13 / 16), 7 / 16,
                     [7 / 16, 7 / 12, 11 / 16, 3 / 4], {"correct": 7 / 16, "wrong": 9 / 16}, 4, 1 / 4),
    # Three problems of two variants: 1 of 27 draws is all wrong and 1 all right, more than 2.5 %.
    "variants": (items({"a/1": "+", "a/2": "+", "b/1": "+", "b/2": "-", "c/1": "-", "c/2": "-"}), (1 / 2, 0, 1), 1 / 2,
                 [1 / 2], {"correct": 1 / 2, "wrong": 1 / 2}, 4, 1 / 3),
    "unequal problems": (items({"a/1": "+", "a/2": "+", "a/3": "+", "b/1": "-"}), (3 / 4, 0, 1), 3 / 4, [3 / 4],
                         {"correct": 3 / 4, "wrong": 1 / 4}, 4, 1 / 2),
    # Alike throughout: Wilson's interval of 4 tries with a share of 1/2, 0.5 +- 0.3500.
    "all alike": (items(dict.fromkeys("abcd", "+v")), (1 / 2, 0.1500, 0.8500), 1, [1 / 2, 1], {"correct": 1}, 4, 0),
    # Official 4 of 8 and ours 3: o counts there alone, v here alone; a right answer cut at the budget is correct.
    "every verdict": (singles("+oTvtnh-"), (3 / 8, 0.1368, 0.6943), 3 / 8, [3 / 8],
                      {"correct": 3 / 8, "no_answer": 1 / 8, "timeout": 1 / 8, "truncated": 1 / 8, "wrong": 2 / 8},
                      5.5, 3 / 8),
}  # fmt: skip


@pytest.mark.parametrize("name", SETS)
def test_a_hand_made_set_has_the_figures_of_a_hand_count(name):
    judged, (accuracy, low, high), ours, pass_at, verdicts, tokens, worst = SETS[name]
    found = result(judged)
    assert found.scores.official.accuracy == pytest.approx(accuracy)
    assert (found.scores.official.low, found.scores.official.high) == pytest.approx((low, high), abs=5e-5)
    assert found.scores.ours.accuracy == pytest.approx(ours)
    assert found.pass_at == pytest.approx(dict(enumerate(pass_at, start=1)))
    assert found.verdicts == pytest.approx(verdicts)
    assert list(found.verdicts) == sorted(verdicts)
    assert found.mean_tokens == pytest.approx(tokens)
    assert found.extra == pytest.approx({"worst_case": worst})
    assert (found.num_rows, found.num_samples) == (len(judged), len(pass_at))
    assert found.num_problems == len({one.id.partition("/")[0] for one in judged})


def test_right_answers_that_are_none_are_counted_beside_the_official_score():
    # 8 completions: two are paid without an answer (cut at the budget, blank), one rightly though cut, one for a letter
    # that our verifier reads as wrong.
    judged = singles("+T-no-t-")
    paid = ("t", {"truncated": True}), ("-", {"text": " \n"})
    for index, (mark, change) in zip((6, 7), paid, strict=True):
        change = completion(mark).model_copy(update={"official": True, **change})
        judged[index] = judged[index].model_copy(update={"completions": (change,)})
    found = result(judged)
    assert (found.unanswered, found.scores.official.accuracy) == (2 / 8, 5 / 8)
    assert "62.5 [" in (text := markdown(results(judged))) and ", 25.0 of it without an answer" in text


def test_there_are_ten_sets():
    assert len(SETS) == 10


def test_categories_are_counted_by_axis_and_value():
    judged = [
        item("a", "+", shape="circle", level="1"),
        item("b", "-", shape="circle"),
        item("c", "+", shape="bar", level="1"),
    ]
    found = result(judged).categories
    assert list(found) == ["level", "shape"]
    assert list(found["shape"]) == ["bar", "circle"]
    circle = found["shape"]["circle"]
    assert (circle.num_rows, circle.accuracy) == (2, 0.5)
    # Wilson's interval of 1 of 2.
    assert (circle.low, circle.high) == pytest.approx((0.0945, 0.9055), abs=5e-5)
    assert (found["level"]["1"].num_rows, found["level"]["1"].accuracy) == (2, 1.0)


def test_a_probe_says_what_the_pictures_are_worth():
    # 6 rows lost and 1 gained without images: McNemar 2 (1 + 7) / 128.
    found = probe_score(singles("++++++-+--"), singles("------++--"))
    assert found.num_rows == 10
    assert found.accuracy == pytest.approx(0.2)
    assert found.needs_picture.difference == pytest.approx(0.5)
    assert found.needs_picture.p == pytest.approx(16 / 128)


def test_rows_that_differ_in_their_number_of_completions_are_refused():
    with pytest.raises(EvaluationError, match="each needs the same number"):
        result(items({"a": "++", "b": "+"}))
    with pytest.raises(EvaluationError):
        result([])


PROGRAM = """
from tests.vlm_mhpo.test_evaluation.test_results import SETS
from tests.vlm_mhpo.test_evaluation.cases import results
for judged, *_ in SETS.values():
    print(results(judged).model_dump_json(by_alias=True))
"""


def test_another_process_computes_the_same_bytes():
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "1", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        timeout=100,
    )
    assert run.returncode == 0, run.stderr.decode()[-2000:]
    here = [results(judged).model_dump_json(by_alias=True) for judged, *_ in SETS.values()]
    assert run.stdout.decode().splitlines() == here
