"""MathVista: query, extraction, normalisation and exact comparison, by hand-written cases."""

import json

import pytest

from data_prep import load_rows
from tests.data_prep.benchmark_files import build
from tests.vlm_mhpo.test_benchmarks.recorded import SHARED
from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import Judged, find
from vlm_mhpo.evaluation.benchmarks.mathvista import edit_distance, normalised

MATHVISTA = find("mathvista")


def choice(answer, options):
    return made(answer, options, question_type="multi_choice", answer_type="text")


def number(answer, answer_type, precision=None):
    return made(answer, question_type="free_form", answer_type=answer_type, precision=precision)


@pytest.mark.parametrize(
    ("extraction", "prediction"),
    [
        ("B", "8/11"), ("(b) 8/11", "8/11"), ("8/11", "8/11"), ("(C)", "6/11"),
        ("8/12", "8/11"),  # one replacement away
        ("(Z)", "3/5"), ("", "3/5"),  # nothing in common with any: the shortest
    ],
)  # fmt: skip
def test_what_names_no_choice_is_the_nearest(extraction, prediction):
    assert normalised(choice("8/11", ["3/11", "8/11", "6/11", "3/5"]), extraction) == prediction


@pytest.mark.parametrize(
    ("row", "extraction", "prediction"),
    [
        (number("14", "integer"), "14.9", "14"),
        (number("14", "integer"), "about 14", None),
        (number("14", "integer"), "nan", None),
        (number("0.6", "float", 1), "0.649", "0.6"),
        (number("1.45", "float", 2), "1.449", "1.45"),
        (number("2.0", "float", 1), "2", "2.0"),
        (number("[0, 2]", "list"), "[0, 2]", "[0, 2]"),
    ],
)
def test_numbers_are_truncated_or_rounded_and_lists_stay(row, extraction, prediction):
    assert normalised(row, extraction) == prediction


@pytest.mark.parametrize(
    ("row", "response", "right"),
    [
        (choice("97", ["97", "102"]), "97", True),
        (choice("97", ["97", "102"]), "We get x = 97, so the answer is (A).", True),
        (choice("97", ["97", "102"]), "<think>(B)?</think><answer>A</answer>", True),
        (choice("97", ["97", "102"]), "\\boxed{B}", False),
        (choice("97", ["97", "102"]), "The answer is **(A)**.\n\nOption (B) is too large.", True),
        (choice("No", ["Yes", "No"]), "The function is not differentiable.", True),
        (choice("97", ["97", "102"]), "Hence the angle measures \\boxed{97^\\circ}.", True),
        (number("7", "integer"), "There are 9 and 2 go, so the answer is 7.", True),
        (number("7", "integer"), "\\boxed{7}", True),
        (number("3", "integer"), "There are three objects left.", True),
        (number("1200", "integer"), "The total is 1,200.", True),
        (number("1.45", "float", 2), "Luca needs $1.45 to buy it.", True),
        (number("1.45", "float", 2), "Luca needs $1.46 to buy it.", False),
        (number("[2007, 2008]", "list"), "The maximum lies in [2007, 2008].", True),
        (number("[0, 2]", "list"), "\\boxed{[0,2]}", True),
        (number("7", "integer"), "I cannot tell.", False),
        (number("7", "integer"), "", False),
    ],
)
def test_responses_end_to_end(row, response, right):
    assert MATHVISTA.official(row, response).correct == right


@pytest.mark.parametrize(
    ("a", "b", "distance"),
    [("kitten", "sitting", 3), ("", "abc", 3), ("flaw", "lawn", 2), ("same", "same", 0), ("ab", "ba", 2)],
)
def test_the_edit_distance_is_levenshteins(a, b, distance):
    assert edit_distance(a, b) == edit_distance(b, a) == distance


def test_a_problem_counts_for_each_of_its_skills():
    rows = [choice("a", ["a", "b"]), made("a", ["a", "b"], skills=["logic", "sums"]), made("1", skills=["sums"])]
    judged = [Judged(row, right) for row, right in zip(rows, (True, True, False), strict=True)]
    assert MATHVISTA.aggregate(judged) == {"skill: logic": 1.0, "skill: sums": 0.5}


def test_the_query_names_hint_unit_and_choices(tmp_path):
    text, decimal, several = load_rows(build("mathvista", tmp_path))
    assert MATHVISTA.prompt(text) == (
        "<image>Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        "Question: Find $x$.\nChoices:\n(A) 97\n(B) 102"
    )
    assert MATHVISTA.prompt(decimal).endswith("1.23, 1.34, 1.45, at the end.\nQuestion: Find $x$. (Unit: cm)")
    assert "Python list" in MATHVISTA.prompt(several)


def test_choices_that_are_letters_of_other_choices_are_asked_once_and_judged_by_text(tmp_path):
    row = next(load_rows(build("mathvista", tmp_path, choices=["B", "A"], answer="A")))
    assert MATHVISTA.prompt(row).count("(A) B\n(B) A") == 1
    assert MATHVISTA.official(row, "\\boxed{B}").correct and not MATHVISTA.official(row, "\\boxed{A}").correct


def test_the_query_is_the_authors_on_every_shared_row():
    root = SHARED / "mathvista"
    if not root.is_dir():
        pytest.skip("the MathVista samples are not here (set VLM_MHPO_SHARED_DATA)")
    queries = json.loads((root / "data" / "query.json").read_text(encoding="utf-8"))
    rows = list(load_rows(root))
    assert len(rows) == 23
    for row in rows:
        assert MATHVISTA.prompt(row) == "<image>" + queries[row.metadata["pid"]]
