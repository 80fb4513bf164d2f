"""An answer is right if it equals any of several golds, whichever way each of them is compared."""

import pytest

from rewards import Item, Sample, Score, Verdict, Verifier, how_compared, same_answer, verify
from rewards.functions.logbook import Logbook
from rewards.functions.user import adapt

SUM = "\\sum_{i=1}^{3} i"  # only math-verify reads it: 6


@pytest.mark.parametrize("gold", [("1/2", "blue", "C"), ["blue", "1/2", "C"]])
@pytest.mark.parametrize(
    ("answer", "verdict"),
    [
        ("0.5", Verdict.correct),
        ("Blue", Verdict.correct),
        ("C", Verdict.correct),
        ("0.6", Verdict.wrong),
        ("blue, 1/2", Verdict.wrong),
        ("", Verdict.no_answer),
    ],
)
def test_any_gold_is_right_and_no_other_text(gold, answer, verdict):
    assert verify(f"<answer>{answer}</answer>", gold).verdict == verdict


@pytest.mark.parametrize("gold", [(SUM, "7"), ("7", SUM), (SUM, "\\sum_{i=1}^{4} i"), ("\\sum_{i=1}^{4} i", SUM)])
def test_workers_are_asked_gold_after_gold(gold):
    answer = "\\sum_{k=1}^{3} k"
    assert verify(f"\\boxed{{{answer}}}", gold).verdict == Verdict.correct
    assert verify("\\boxed{\\sum_{k=1}^{2} k}", gold).verdict == Verdict.wrong


def test_a_batch_has_the_verdicts_of_single_calls():
    answers = ("6", "7", "\\sum_{k=1}^{3} k", "\\sum_{k=1}^{4} k", "8")
    items = [Item(f"\\boxed{{{answer}}}", (SUM, "7")) for answer in answers]
    with Verifier(num_workers=1, timeout_s=5.0) as verifier:
        found = [score.correct for score in verifier.score(items)]
        assert found == [verifier.score_one(item).correct for item in items] == [True, True, True, False, False]


def test_an_unreadable_gold_spoils_neither_the_others_nor_the_verdict():
    assert verify("<answer>7</answer>", ("", "7")).verdict == Verdict.correct
    assert verify("<answer>8</answer>", ("", "7")).verdict == Verdict.wrong
    assert verify("<answer>8</answer>", ("", " ")).verdict == Verdict.bad_gold
    assert verify("<answer>8</answer>", ()).verdict == Verdict.bad_gold


@pytest.mark.parametrize(
    ("gold", "options", "route"),
    [
        ("B", {}, "choice"),
        ("blue", {"choices": ("red", "blue")}, "choice"),
        ("1/2", {}, "value"),
        ("x \\ge 3", {}, "value"),
        (SUM, {}, "value"),
        ("New York", {}, "text"),
        ("3", {"kind": "text"}, "text"),
        ("\\triangle ABC \\sim \\triangle DEF", {}, "text"),
        (("half", "1/2"), {}, "value"),
        (("half", "a half"), {}, "text"),
        ("", {}, None),
        ("half", {"kind": "number"}, None),
    ],
)
def test_how_a_gold_is_compared(gold, options, route):
    assert how_compared(gold, **options) == route


def test_what_no_reader_reads_is_compared_letter_by_letter():
    """The number is for this: a right answer in other letters is refused."""
    gold = "an isosceles right triangle"
    assert how_compared(gold) == "text"
    assert verify(f"\\boxed{{{gold}}}", gold).correct
    assert not verify("\\boxed{a right triangle with two equal sides}", gold).correct


def test_same_answers_are_told_without_a_worker():
    assert same_answer("1/2", "0.5") and same_answer("B", "blue", choices=("red", "blue"))
    assert not same_answer("3", "5") and not same_answer("3", "3, 5") and not same_answer("NYC", "New York City")


# What reward functions of users get


def sample(gold, **columns) -> Sample:
    return Sample("Half?", "0.5", gold, "boxed", "auto", None, None, None, 1, False, columns=columns)


def told(function, *samples):
    """What a function of a user was called with."""
    adapt(function, "mine", Logbook())(samples, [Score(Verdict.correct, True, "", "")] * len(samples), {})


def test_trl_functions_get_the_column_as_it_stands():
    calls = []

    def reward(completions, answer, solution, equivalent_answers=None, **columns):
        calls.append((answer, solution, equivalent_answers))
        return [0.0] * len(completions)

    told(reward, sample(("1/2", "0.5"), answer=("1/2", "0.5")), sample("3", answer=("3",)))
    told(reward, sample(("1/2", "0.5"), equivalent_answers=["0.5"]))
    assert calls == [
        ([["1/2", "0.5"], ["3"]], [["1/2", "0.5"], ["3"]], None),
        (["1/2"], ["1/2"], [["0.5"]]),
    ]


def test_verl_and_easyr1_functions_get_the_ground_truth_as_it_stands():
    calls = []

    def compute_score(data_source, solution_str, ground_truth, extra_info):
        calls.append(ground_truth)
        return 0.0

    def easy(reward_input):
        calls.append(reward_input["ground_truth"])
        return {"overall": 0.0}

    for function in (compute_score, easy):
        told(function, sample(("1/2", "0.5"), answer=("1/2", "0.5")))
        told(function, sample(("1/2", "0.5")))
        told(function, sample("34", answer='["34"]'))
    assert calls == [["1/2", "0.5"], "1/2", '["34"]'] * 2
