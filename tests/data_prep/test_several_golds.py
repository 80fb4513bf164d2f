"""Rows with several right answers: read from what people have, and carried from there to whatever looks at a gold."""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import rewards
from data_prep import DataError, Row, RowError, load_rows, scan_rows
from data_prep.audit import audit
from data_prep.prepare.checks import check_gold
from data_prep.prepare.prepare import prepare
from data_prep.schema import make_row
from data_prep.synthetic import generate
from tests.data_prep.benchmark_files import build
from vlm_mhpo.evaluation.benchmarks.olympiadbench import official

ASK = {"problem": "How much is one half?"}
HALF = ["1/2", "0.5"]
PICTURE = next(iter(generate(["shapes"], 1, 0, "train"))).images[0]


def read(folder: Path, record: Mapping[str, Any], suffix: str = ".jsonl", **options) -> Row:
    path = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([dict(record)]), path)
    else:
        path.write_text(json.dumps(record) + "\n")
    (row,) = scan_rows(path, **options)
    return row


def is_right(row: Row, answer: str) -> bool:
    return rewards.verify(answer, row.gold, template="bare", kind=row.kind, choices=row.choices).correct


VERL = {"prompt": "How much is one half?", "data_source": "s", "extra_info": {"index": 1}}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "record",
    [
        ASK | {"answer": "1/2", "equivalent_answers": ["0.5"]},
        ASK | {"answer": HALF},
        ASK | {"ground_truth": HALF},
        ASK | {"answers": HALF},
        ASK | {"solution": HALF},
        ASK | {"solutions": ["One by two is\n\\boxed{1/2}", "It is\n\\boxed{0.5}"]},
        ASK | {"answer": '["1/2", "0.5"]'},
        VERL | {"reward_model": {"ground_truth": "1/2", "equivalent_answers": ["0.5"], "style": "rule"}},
        VERL | {"reward_model": {"ground_truth": HALF, "style": "rule"}},
        {"prompt": "How much is one half?", "solution": HALF},
    ],
)
def test_several_golds_are_read_wherever_they_stand(tmp_path, record, suffix):
    row = read(tmp_path, record, suffix)
    assert (row.answer, row.equivalent_answers, row.gold) == ("1/2", ("0.5",), ("1/2", "0.5"))


def test_equivalent_names_are_each_right_and_nothing_else_is(tmp_path):
    row = read(tmp_path, ASK | {"answer": "NYC", "equivalent_answers": ["New York City", "New York"]})
    assert [is_right(row, text) for text in ("NYC", "New York City", "new york")] == [True, True, True]
    assert [is_right(row, text) for text in ("York", "NYC, New York", "Boston")] == [False, False, False]


@pytest.mark.parametrize(
    "answers",
    [["3", "5"], ["3", "3"], ["x=3", "y=5"], ["NYC", "New York City"], ["3", "3.0", "5"], [3, 5], '["3", "5"]'],
)
def test_a_list_that_may_mean_all_together_is_refused_and_says_what_to_do(tmp_path, answers):
    error = read(tmp_path, ASK | {"answer": answers})
    assert isinstance(error, RowError)
    assert error.field == "answer" and "answer_lists=any" in str(error) and "or all" in str(error)


def test_the_user_says_what_a_list_means(tmp_path):
    both = ASK | {"answer": ["3", "5"]}
    either, together = read(tmp_path, both, answer_lists="any"), read(tmp_path, both, answer_lists="all")
    assert [is_right(either, text) for text in ("3", "5", "4", "3, 5")] == [True, True, False, False]
    assert [is_right(together, text) for text in ("3", "5", "3, 5", "5 and 3")] == [False, False, True, True]
    with pytest.raises(DataError, match="'each' is unknown; use any or all"):
        scan_rows(tmp_path / "rows.jsonl", answer_lists="each")


def test_thousands_are_not_mixed_up_with_the_list(tmp_path):
    row = read(tmp_path, ASK | {"answer": ["1,000", "5"]}, answer_lists="all")
    assert is_right(row, "1000 and 5") and not is_right(row, "1, 0 and 5")


def test_letters_of_several_choices_are_all_wanted(tmp_path):
    record = ASK | {"choices": ["red", "blue", "green"], "answer": ["A", "C"]}
    row = read(tmp_path, record)
    assert [is_right(row, text) for text in ("A, C", "CA", "A", "A, B, C")] == [True, True, False, False]
    row = read(tmp_path, record | {"answer": ["B", "blue"]})
    assert [is_right(row, text) for text in ("B", "blue", "A")] == [True, True, False]


CHOICES = {"choices": ["red", "blue", "green"]}


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "record",
    [
        CHOICES | {"answer": ["red", "green"]},
        CHOICES | {"answer": ["(A)", "C. green"]},
        CHOICES | {"answer": [2, 0]},
        CHOICES | {"answer": [0.0, 2.0]},
        CHOICES | {"answers": ["green", "red"], "kind": "choice"},
        CHOICES | {"answer": "['red', 'green']"},
        {"choices": ["red, dark", "blue", "1,000"], "answer": ["red, dark", "1,000"]},
        {"choices": ["10", "20", "30"], "answer": [10, 30]},
    ],
)
def test_a_list_of_choices_wants_all_of_them_in_whatever_form(tmp_path, record, suffix):
    row = read(tmp_path, ASK | record, suffix)
    assert (row.answer, row.equivalent_answers, row.kind) == ("A, C", (), "choice")
    check_gold(row)
    assert all(is_right(row, text) for text in ("A, C", "CA"))
    assert not any(is_right(row, text) for text in ("A", "C", "A, B, C", row.choices[0]))


def test_a_list_of_choices_that_names_none_of_them_is_refused(tmp_path):
    for answer in (["red", "pink"], [0, 3], ["red", -1]):
        error = read(tmp_path, ASK | CHOICES | {"answer": answer})
        assert error.field == "answer" and "names none of the 3 choices" in str(error)
    # An index of one and the text of another.
    assert "give a letter" in str(read(tmp_path, ASK | {"choices": ["1", "2", "3"], "answer": [0, 1]}))


def test_either_of_several_choices_may_be_meant(tmp_path):
    row = read(tmp_path, ASK | CHOICES | {"answer": [0, "blue"]}, answer_lists="any")
    assert row.gold == ("A", "blue")


def test_equivalent_answers_of_a_choice_are_choices_too(tmp_path):
    row = read(tmp_path, ASK | CHOICES | {"answer": "red", "equivalent_answers": [1]})
    assert row.gold == ("red", "B")
    error = read(tmp_path, ASK | CHOICES | {"answer": "red", "equivalent_answers": ["pink"]})
    assert error.field == "equivalent_answers" and "'pink' names none of the 3 choices" in str(error)


def test_choices_do_not_say_what_a_list_means_where_they_are_not_asked_with(tmp_path):
    error = read(tmp_path, ASK | CHOICES | {"answer": ["3", "5"], "kind": "number"})
    assert error.field == "answer" and "answer_lists" in str(error)


@pytest.mark.parametrize("nothing", ["", " ", [], [""], ["", None], None])
def test_a_blank_equivalent_answer_is_none(tmp_path, nothing):
    assert read(tmp_path, ASK | {"answer": "1/2", "equivalent_answers": nothing}).gold == "1/2"
    verl = VERL | {"reward_model": {"ground_truth": "1/2", "equivalent_answers": nothing}}
    assert read(tmp_path, verl).gold == "1/2"


@pytest.mark.parametrize("kind", [{}, {"kind": "choice"}])
def test_a_choice_that_is_an_image_is_named_by_its_letter(tmp_path, kind):
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(PICTURE)
    record = {"problem": "Which?", "images": ["a.png", "b.png"], "choices": ["<image 1>", "<image 2>"]}
    row = read(tmp_path, record | kind | {"answer": "<image 2>"})
    assert (row.choices, row.gold) == (("image 1", "image 2"), "B")
    check_gold(row)
    row = read(tmp_path, record | kind | {"answer": "<image 2>", "equivalent_answers": ["<image 1>"]})
    assert row.gold == ("B", "A")


def test_a_list_in_square_brackets_is_still_one_answer(tmp_path):
    row = read(tmp_path, ASK | {"answer": "[1, 2]"})
    assert (row.answer, row.equivalent_answers) == ("[1, 2]", ())
    assert not is_right(row, "1")


def test_answers_beside_an_answer_do_not_widen_it(tmp_path):
    row = read(tmp_path, ASK | {"answer": "4", "answers": ["4", "5"]})
    assert (row.gold, row.metadata["answers"]) == ("4", ("4", "5"))


def test_the_first_worked_solution_is_the_rows(tmp_path):
    row = read(tmp_path, ASK | {"solutions": ["So\n\\boxed{7}", "Or\n\\boxed{7.0}"]})
    assert (row.gold, row.solution) == (("7", "7.0"), "So\n\\boxed{7}")


def test_several_final_answers_of_olympiadbench_are_wanted_together(tmp_path):
    folder = build("olympiadbench", tmp_path, final_answer=["$3$", "$5$"], is_multiple_answer=True)
    row = next(load_rows(folder, format="olympiadbench", split="OE_MM_maths_en_COMP"))
    assert [is_right(row, text) for text in ("3", "5, 3")] == [False, True]
    assert official(row, "So the final answer is $3$.").correct  # their grader reads the first one alone


CHAT = [{"role": "user", "content": "How much is one half?"}, {"role": "assistant", "content": "It is one by two"}]


@pytest.mark.parametrize("chat", [CHAT, CHAT[:1]])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize(
    "gold",
    [
        {"answers": HALF},
        {"answers": '["1/2", "0.5"]'},
        {"answers": HALF, "solution": "One by two"},
        {"solutions": ["One by two is\n\\boxed{1/2}", "It is\n\\boxed{0.5}"]},
        {"ground_truth": HALF},
        {"gt": HALF},
        {"target": "1/2", "equivalent_answers": ["0.5"]},
        {"Answer": HALF},
        {"solution": ["<answer>1/2</answer>", "\\boxed{0.5}"]},
    ],
)
def test_the_golds_of_a_chat_are_its_columns_and_not_its_reply(tmp_path, gold, suffix, chat):
    row = read(tmp_path, {"messages": chat} | gold, suffix)
    assert row.gold == ("1/2", "0.5")
    if not {"solution", "solutions"} & gold.keys() and len(chat) == 2:
        assert row.solution == "It is one by two"


def test_the_reply_of_a_chat_is_its_gold_where_no_column_has_one(tmp_path):
    assert read(tmp_path, {"messages": CHAT}).gold == "It is one by two"
    several = [CHAT[0], {"role": "assistant", "content": "One\nby two"}]
    error = read(tmp_path, {"messages": several})
    assert error.field == "answer" and "'solution'" not in str(error) and "the reply of the chat holds" in str(error)


def test_answers_beside_a_prompt_go_before_a_solution_without_one(tmp_path):
    row = read(tmp_path, {"prompt": "How much is one half?", "answers": HALF, "solution": "One by two"})
    assert (row.gold, row.solution) == (("1/2", "0.5"), "One by two")


# Carried on


def rows_with_golds() -> list[Row]:
    return [
        make_row(id="a", problem="Half?", answer="1/2", equivalent_answers=("0.5", "50 %"), metadata={"answer": HALF}),
        make_row(id="b", problem="Two?", answer="2"),
    ]


def test_prepared_rows_keep_them(tmp_path):
    prepare(rows_with_golds(), tmp_path / "out")
    assert list(load_rows(tmp_path / "out")) == rows_with_golds()


def test_a_gold_that_does_not_verify_is_found_beside_one_that_does(tmp_path):
    bad = make_row(id="a", problem="Half?", answer="1/2", equivalent_answers=("one half",), kind="number")
    with pytest.raises(RowError, match="'one half' does not verify against itself"):
        check_gold(bad)
    check_gold(replace(bad, equivalent_answers=("0.5",)))


def test_rows_that_share_a_gold_do_not_contradict_each_other(tmp_path):
    rows = [
        {"id": "a", "answer": "1/2", "equivalent_answers": ["half"]},
        {"id": "b", "answer": "half"},
        {"id": "c", "answer": "2"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(ASK | row) + "\n" for row in rows))
    found = {defect.check: [o.row.id for o in defect.offences] for defect in audit(tmp_path / "rows.jsonl").defects}
    assert (found["duplicates"], found["contradictions"]) == (["b"], ["c"])


def test_rows_that_differ_only_in_their_other_golds_are_different():
    first = make_row(id="a", problem="Half?", answer="1/2", equivalent_answers=("0.5",))
    assert first != make_row(id="a", problem="Half?", answer="1/2")
    assert make_row(id="a", problem="Q?", answer="2", equivalent_answers=("2", "two", "two")).gold == ("2", "two")
    with pytest.raises(RowError, match="one text, not a list"):
        make_row(id="a", problem="Q?", answer="2", equivalent_answers="two")
