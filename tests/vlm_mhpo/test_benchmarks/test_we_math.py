"""We-Math: the letter of a response, and the four-way score counted by hand from the paper's definitions."""

import pytest

from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import Judged, find

WE_MATH = find("we_math")


def judged(problem: str, steps: int, ones: str, multi: bool, sample: int = 0) -> list[Judged]:
    """One composite problem: `ones` is a string of 1 (right) and 0 for its one-step parts."""
    keys = [*(f"{steps}steps_{number}" for number in range(1, steps + 1)), f"{steps}steps_multi"]
    rights = [*(mark == "1" for mark in ones), multi]
    return [
        Judged(made("A", ["1", "2"], ID=f"{steps}steps_{problem}", key=key), right, sample)
        for key, right in zip(keys, rights, strict=True)
    ]


@pytest.mark.parametrize(
    ("response", "letter"),
    [
        ("<Thought process>: <<I add>> <Answer>: <<B>>", "B"),
        ("Answer: A\nNo, wait.\n<Answer>: <<B. 31.4>>", "B"),
        ("B", "B"),
        ("The answer is B", None),  # lower case announces nothing, and T is no option
        ("<Answer>: <<Option B>>", None),
        ("Answer", None),
        ("", None),
    ],
)
def test_the_first_letter_behind_the_last_answer_counts(response, letter):
    row = made("B", ["1", "2", "3"])
    assert WE_MATH.official(row, response).extracted == letter
    assert WE_MATH.official(row, response).correct == (letter == "B")


def test_the_four_way_score_by_hand():
    # Two-step: 1 mastery; 1 rote strictly but mastery loosely; 1 rote both ways; 1 inadequate; 1 insufficient.
    # Three-step: 1 mastery; 1 insufficient; 1 rote strictly.
    answers = [
        *judged("a", 2, "11", True), *judged("b", 2, "10", True), *judged("c", 2, "00", True),
        *judged("d", 2, "11", False), *judged("e", 2, "01", False),
        *judged("f", 3, "111", True), *judged("g", 3, "110", False), *judged("h", 3, "001", True),
    ]  # fmt: skip
    assert WE_MATH.aggregate(answers) == pytest.approx({
        "insufficient_knowledge": 2 / 8, "inadequate_generalization": 1 / 8,
        "complete_mastery_strict": 2 / 8, "rote_memorization_strict": 3 / 5, "score_strict": (8 - 0.5 - 3 - 2) / 8,
        "complete_mastery_loose": 4 / 8, "rote_memorization_loose": 1 / 5, "score_loose": (8 - 0.5 - 1 - 2) / 8,
        "accuracy_one_step": (2 + 1 + 0 + 2 + 1 + 3 + 2 + 1) / 19, "accuracy_two_step": 3 / 5,
        "accuracy_three_step": 2 / 3,
    })  # fmt: skip


def test_the_published_form_of_the_score_holds():
    # 525 problems as in the paper: score = (525 - IG/2 - RM - IK)/525, here IG 100, RM 20 (strict), IK 200, CM 205.
    answers = []
    for number in range(525):
        if number < 100:
            answers += judged(str(number), 2, "11", False)
        elif number < 120:
            answers += judged(str(number), 2, "01", True)
        elif number < 320:
            answers += judged(str(number), 3, "011", False)
        else:
            answers += judged(str(number), 3, "111", True)
    scores = WE_MATH.aggregate(answers)
    assert scores["score_strict"] == pytest.approx((525 - 50 - 20 - 200) / 525)
    assert scores["score_loose"] == pytest.approx((525 - 50 - 0 - 200) / 525)
    assert scores["rote_memorization_strict"] == pytest.approx(20 / 225)


def test_problems_with_a_missing_part_are_left_out_and_samples_are_runs_of_their_own():
    whole, cut = judged("a", 2, "11", True), judged("b", 2, "00", False)[:-1]
    assert WE_MATH.aggregate(whole + cut) == WE_MATH.aggregate(whole)
    assert WE_MATH.aggregate(cut) == {}
    mixed = WE_MATH.aggregate(judged("a", 2, "11", True, sample=0) + judged("a", 2, "11", False, sample=1))
    assert mixed["complete_mastery_strict"] == 0.5 and mixed["score_strict"] == pytest.approx(0.75)


def test_the_parts_of_a_problem_share_its_id():
    answers = judged("a", 3, "111", True)
    assert {WE_MATH.problem(one.row) for one in answers} == {"3steps_a"}


def test_the_question_holds_the_options_as_one_text():
    row = made("A", ["31.4", "3.14"], problem="<image>Its circumference is ( )", images=1, option="A. 31.4;B. 3.14")
    text = WE_MATH.prompt(row)
    assert text.startswith("<image>Now, we require you to solve a multiple-choice math question.")
    assert "\nQuestion: Its circumference is ( )\nOption: A. 31.4;B. 3.14\n" in text
    assert text.endswith("<Thought process>: <<your thought process>>\n<Answer>: <<your option>>")
