"""What a judge is asked, and which of its answers are verdicts: a person's readings, and none that helps by luck."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from data_prep import load_rows
from tests.data_prep.benchmark_files import build
from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import find
from vlm_mhpo.evaluation.benchmarks.judging import CHARXIV, MATHVERSE, MMK12, filled, scored, text_of
from vlm_mhpo.evaluation.benchmarks.types import Official


def talk(rule, row, response: str, *answers: str) -> tuple[list[str], Official | None]:
    """What a judge that gives these answers is asked, and the verdict."""
    steps, asked, left = rule.steps(row, response), [], list(answers)
    try:
        asked.append(next(steps))
        while True:
            asked.append(steps.send(left.pop(0)))
    except StopIteration as end:
        assert left == []
        return asked, end.value


# ---- MathVerse: extraction, then comparison

MADE = made("B", question_type="multi-choice", problem="How long is L?")


def test_mathverse_asks_for_the_answer_and_then_whether_it_is_the_gold():
    asked, found = talk(MATHVERSE, MADE, "So L is 15 cm, {choice} <|gold|> B.", "Extracted Answer: B", "1")
    extraction, comparison = asked
    assert extraction.endswith("Model response: 'So L is 15 cm, {choice} <|gold|> B.'\nExtracted Answer: ")
    assert comparison.endswith("[Question]: How long is L?\n[Standard Answer]: B\n[Model_answer] : B\nJudgement:")
    assert found == Official(True, "B")
    # As their authors send it: format() has made one brace of two.
    assert "B:2√{3}" in comparison and "\\frac{x^2}{81}" in comparison and "{{" not in comparison


def test_a_question_that_stands_in_the_image_is_the_one_that_its_authors_published():
    row = made("3", question="", question_for_eval="Find the radius.", problem="<image>", images=1)
    asked, _ = talk(MATHVERSE, row, "3", "3", "1")
    assert "[Question]: Find the radius.\n[Standard Answer]: 3" in asked[1]


def test_the_question_is_the_authors_own_with_its_choices_and_without_our_marks_of_images(tmp_path):
    rows = list(load_rows(build("mathverse", tmp_path / "mathverse")))
    asked, _ = talk(MATHVERSE, rows[0], "L is 15", "15 cm", "1")
    assert "[Question]: A can is 13 cm high. Find L.\nChoices:\nA:14 cm\nB:15 cm\n[Standard Answer]: B\n" in asked[1]
    row = made("4", problem="<image>Two of <image> make?", images=2, inst_category=3)
    for rule, answer in ((MMK12, "no"), (CHARXIV, '{"score": 0}')):
        (prompt,), _ = talk(rule, row, "5", answer)
        assert "Two of  make?" in prompt and "<image>" not in prompt


@pytest.mark.parametrize(
    ("judgement", "correct"),
    [
        ("1", True), ("0", False), ("Judgement: 1", True), ("Judgement: 0", False), ("**Judgement: 1**", True),
        ("Judgment:\n0.", False), (" 1 ", True),
        # No verdict: never right.
        ("", None), ("10", None), ("1 or 0", None), ("Yes", None), ("The answers match, so 1", None), ("-1", None),
        ("1\n0", None), ("true", None), ("<html>1</html>", None), ("I cannot judge 1 response", None),
    ],
)  # fmt: skip
def test_only_a_clear_judgement_is_one(judgement, correct):
    _, found = talk(MATHVERSE, MADE, "It is B", "B", judgement)
    assert found == (None if correct is None else Official(correct, "B"))


def test_without_an_answer_there_is_nothing_to_compare():
    for nothing in ("null", "None", "Extracted Answer: null", "**Answer:** none"):
        assert talk(MATHVERSE, MADE, "I do not know", nothing) == (
            [filled("mathverse_extract", response="I do not know")], Official(False, None)
        )  # fmt: skip
    assert talk(MATHVERSE, MADE, "I do not know", "Extracted Answer:")[1] is None


# ---- MMK12


@pytest.mark.parametrize(
    ("answer", "correct"),
    [("Yes", True), ("no", False), ("**No.**", False), ('"YES"', True), ("", None), ("Yes and no", None),
     ("Yes, because 4 = 4", None), ("1", None), ("yesterday", None), ("not", None)],
)  # fmt: skip
def test_mmk12_asks_for_yes_or_no(answer, correct):
    (asked,), found = talk(MMK12, made("4", problem="2+2?"), "It is \\boxed{4}", answer)
    assert "2+2?" in asked and "Correct Answer:\n4\n" in asked and "Solution: \nIt is \\boxed{4}\n" in asked
    assert "\\boxed, $...$" in asked and "\b" not in asked
    assert found == (None if correct is None else Official(correct, None))


# ---- MathVista: extraction, then the authors' normalisation

VISTA = find("mathvista").judge


def vista(row, response: str, *answers: str):
    asked, found = talk(VISTA, row, response, *answers)
    return asked, found and found.correct


def vista_row(options, answer: str, answer_type: str = "text", **more):
    """A row of MathVista as its reader makes it."""
    letter = "ABCDEF"[options.index(answer)] if options else answer
    kind = "multi_choice" if options else "free_form"
    row = made(letter, options or None, question_type=kind, answer_type=answer_type, problem="Which is it?", **more)
    return replace(row, metadata={**row.metadata, "answer": answer})


@pytest.mark.parametrize(
    ("options", "gold", "answer", "correct"),
    [
        (("3/11", "8/11", "6/11"), "8/11", "B", True),
        (("3/11", "8/11", "6/11"), "8/11", "(B)", True),
        (("3/11", "8/11", "6/11"), "8/11", "B.", True),
        (("3/11", "8/11", "6/11"), "8/11", "Answer: 8/11", True),
        (("3/11", "8/11", "6/11"), "8/11", "A", False),
        (("angle P", "angle Q"), "angle Q", "Angle Q.", True),
        (("Yes", "No"), "No", "no", True),
        (("Yes", "No"), "No", "none", False),
        # What names no choice is no verdict, though the nearest in edit distance would be the gold.
        (("Yes", "No"), "No", "I'm sorry, I cannot help with that.", None),
        (("3/11", "8/11", "6/11"), "3/11", "D", None),
        (("3/11", "8/11", "6/11"), "3/11", "(Z)", None),
        (("14 cm", "20 cm"), "14 cm", "15 cm", None),
        (("5", "7"), "7", "9", None),
        (("Yes", "No"), "No", "", None),
        (("Yes", "No"), "No", "<html><body>502</body></html>", None),
        (("red", "dark blue"), "dark blue", "red or dark blue", None),
    ],
)
def test_an_extraction_counts_if_it_names_a_choice(options, gold, answer, correct):
    row = vista_row(options, gold)
    asked, found = vista(row, "It is the second, I think.", answer)
    assert found is correct
    (prompt,) = asked
    shown = "\n".join(f"({'ABC'[i]}) {option}" for i, option in enumerate(options))
    assert prompt.endswith(
        "Hint: Please answer the question and provide the correct option letter, e.g., A, B, C, D, at the end.\n"
        f"Question: Which is it?\nChoices:\n{shown}\nResponse: It is the second, I think.\nAnswer:"
    )


@pytest.mark.parametrize(
    ("answer_type", "gold", "precision", "answer", "correct"),
    [
        ("integer", "14", None, "14", True),
        ("integer", "14", None, "14.0", True),
        ("integer", "14", None, "15", False),
        ("integer", "14", None, "14 apples", None),
        ("integer", "14", None, "fourteen", None),
        ("integer", "14", None, "1e999", None),
        ("float", "0.6", 1, "0.61", True),
        ("float", "0.6", 1, "0.7", False),
        ("float", "0.6", 1, "none", False),
        ("list", "[2007, 2008]", None, "[2007, 2008]", True),
        ("list", "[2007, 2008]", None, "[2008, 2007]", False),
    ],
)
def test_an_extraction_is_compared_in_the_form_of_the_gold(answer_type, gold, precision, answer, correct):
    row = vista_row((), gold, answer_type, **({"precision": precision} if precision else {}))
    assert vista(row, "It follows.", answer)[1] is correct


def test_a_response_that_is_its_answer_needs_no_judge():
    assert vista(vista_row(("Yes", "No"), "No"), "No") == ([], True)
    assert vista(vista_row((), "14", "integer"), " 14 ") == ([], True)
    assert vista(vista_row((), "14", "integer"), "15") == ([], False)


# ---- LogicVista


@pytest.mark.parametrize(
    ("gold", "answer", "correct"),
    [
        ("B", "B", True), ("B", "(b).", True), ("B", "Letters: B", True), ("B", "A", False), ("A, C", "C, A", True),
        ("A, C", "A", False), ("A", "A, C", False), ("4", "4", True), ("B", "none", False), ("B", "", None),
        ("B", "B because", None), ("B", "The letter is B", None), ("B", "<b>", None), ("A, C", "A and C", None),
    ],
)  # fmt: skip
def test_logicvista_asks_for_the_letters(gold, answer, correct):
    row = made(gold, question="Which one?\nA) x\nB) y", kind="text")
    (asked,), found = talk(find("logicvista").judge, row, "I would take the second.", answer)
    assert "Question: Which one?\nA) x\nB) y\n\nResponse: I would take the second.\n" in asked
    assert (found and found.correct) is correct
    assert talk(find("logicvista").judge, row, " b ") == ([], Official(gold == "B", "B"))


# ---- CharXiv


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ('{"extracted_answer": "b", "score": 1}', Official(True, "b")),
        ('```json\n{"extracted_answer": 0.012, "score": 0}\n```', Official(False, "0.012")),
        ('{"extract_answer": "b", "score": "1"}', Official(True, "b")),
        ('{"score": 1}', Official(True, None)),
        ('{"extracted_answer": "b", "score": 2}', None),
        ('{"extracted_answer": "b", "score": true}', None),
        ('{"extracted_answer": "b", "score": null}', None),
        ('{"extracted_answer": "b"}', None),
        ('{"extracted_answer": "b", "score": 1', None),
        ('{"score": 1} {"score": 0}', None),
        ("1", None), ("", None), ("score: 1", None), ("[1]", None), ("{" * 5000 + "}" * 5000, None),
    ],
)  # fmt: skip
def test_an_object_with_a_score_is_a_verdict(answer, found):
    assert scored(answer) == found


@pytest.mark.parametrize(("category", "file"), [(1, 1), (2, 2), ("3", 3), (4, 3)])
def test_charxiv_is_asked_by_the_category_of_the_answer(category, file):
    row = made("0.5", problem="What is it?", inst_category=category)
    (asked,), found = talk(CHARXIV, row, "About <|question|>", json.dumps({"extracted_answer": "0.5", "score": 1}))
    expected = text_of(f"charxiv_{file}").replace("<|question|>", "What is it?").replace("<|gold|>", "0.5")
    assert asked == expected.replace("<|response|>", "About <|question|>")
    assert "### Your Turn ###\n    * Question: What is it?\n    * Ground Truth: 0.5\n    * Response: About" in asked
    assert found == Official(True, "0.5")


def test_every_prompt_of_a_rule_is_in_its_digest_and_has_its_places():
    for rule, places in ((MATHVERSE, 4), (MMK12, 3), (VISTA, 2), (CHARXIV, 9)):
        assert sum(prompt.count("<|") for prompt in rule.prompts) == places
        assert rule.source
    assert [find(name).judge is None for name in ("mathvista", "mathverse", "mmk12", "charxiv", "mathvision")] == [
        *[False] * 4,
        True,
    ]
