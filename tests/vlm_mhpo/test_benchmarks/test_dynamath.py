"""DynaMath: short answers out of JSON, the three comparisons, average and worst case by hand."""

import json

import pytest

from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import Judged, find

DYNAMATH = find("dynamath")


def answered(short: object) -> str:
    return json.dumps({"solution": "I compute \\frac{1}{2}.", "short answer": short}, ensure_ascii=False)


@pytest.mark.parametrize(
    ("gold", "answer_type", "short", "right"),
    [
        ("2.0944", "float", "2.094", True),
        ("2.0944", "float", "2.093", False),
        ("2.0944", "float", 2.0944, True),
        ("2.0944", "float", "2.094 radians", True),
        ("6.2832", "float", "2π", True),
        ("75.3982", "float", "24π cm", True),
        ("-9", "float", "-9.000", True),
        ("-9", "float", "about -9", False),
        ("-9", "float", "nan", False),
        ("B", "multiple choice", "B", True),
        ("B", "multiple choice", "(B) No", True),
        ("B", "multiple choice", "A", False),
        ("B", "multiple choice", "The answer is B", False),  # beyond the first three characters
        ("Nov", "text", "in Nov", True),
        ("Nov", "text", "nov", False),
        ("49", "single answer", "49 customers", True),
        ("49", "single answer", "50", False),
        ("49", "single answer", "", False),
    ],
)
def test_short_answers_are_compared_by_their_type(gold, answer_type, short, right):
    row = made(gold, answer_type=answer_type)
    assert DYNAMATH.official(row, answered(short)).correct == right


@pytest.mark.parametrize(
    ("response", "extracted"),
    [
        ('```json\n{"solution": "x", "short answer": "7.000"}\n```', "7.000"),
        ('{"solution": "\\(x\\) is\n 7", "short answer": "7.000"}', "7.000"),
        ("We find \\boxed{7.0}.", "7.0"),
        ("<think>{</think><answer>7</answer>", "7"),
        ('{"solution": "x"}', None),
        ("", None),
    ],
)
def test_the_short_answer_is_the_jsons_else_the_declared_one(response, extracted):
    found = DYNAMATH.official(made("7", answer_type="float"), response)
    assert (found.extracted, found.correct) == (extracted, extracted is not None)


def test_average_and_worst_case_by_hand():
    # Three seed questions with three variants: 3, 2 and 0 right. Average 5/9; only the first is right in all.
    rights = {"1": (True, True, True), "2": (True, False, True), "3": (False, False, False)}
    answers = [
        Judged(made("1", answer_type="float", question_id=seed, variant=str(variant)), right)
        for seed, variants in rights.items()
        for variant, right in enumerate(variants)
    ]
    expected = {"average": 5 / 9, "worst_case": 1 / 3, "reasoning_robustness": 3 / 5}
    assert DYNAMATH.aggregate(answers) == pytest.approx(expected)


def test_the_worst_case_is_taken_within_a_sample_and_averaged_over_samples():
    row = made("1", answer_type="float", question_id="1")
    answers = [Judged(row, True, 0), Judged(row, True, 0), Judged(row, True, 1), Judged(row, False, 1)]
    scores = DYNAMATH.aggregate(answers)
    assert (scores["average"], scores["worst_case"]) == (0.75, 0.5)


def test_nothing_right_has_no_robustness():
    row = made("1", answer_type="float", question_id="1")
    assert DYNAMATH.aggregate([Judged(row, False)]) == {"average": 0, "worst_case": 0, "reasoning_robustness": 0}


def test_the_question_ends_in_an_example_that_is_json():
    row = made("B", ["Yes", "No"], problem="<image>Is it?", images=1, answer_type="multiple choice",
               question="Is it? choice: (A) Yes (B) No")  # fmt: skip
    text = DYNAMATH.prompt(row)
    assert text.startswith("<image>## Question\nIs it? choice: (A) Yes (B) No\n## Answer Instruction Please provide")
    assert set(json.loads(text[text.index("{") :])) == {"solution", "short answer"}
    number = DYNAMATH.prompt(made("2", answer_type="float", question="How far?"))
    assert number.startswith("## Question\nHow far?Please answer in a floating-point number.\n## Answer Instruction")
