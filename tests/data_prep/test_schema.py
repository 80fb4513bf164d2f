"""Rows: what is accepted, what is refused, and that a refusal names the field."""

import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.schema import RowError, make_row

GOOD = {"id": "r1", "problem": "Find x.", "answer": "7"}


def test_a_text_only_row_keeps_its_problem_unchanged():
    row = make_row(**GOOD)
    assert (row.problem, row.images, row.kind) == ("Find x.", (), "auto")


def test_missing_placeholders_are_put_in_front_one_per_image():
    assert make_row(**GOOD, images=[b"a", Path("b.png")]).problem == "<image><image>Find x."


def test_placeholders_that_match_stay_where_they_are():
    problem = "In <image> and <image>, find x."
    assert make_row(**(GOOD | {"problem": problem}), images=[b"a", b"b"]).problem == problem


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"answer": None}, "answer"),
        ({"answer": ""}, "answer"),
        ({"answer": " \n\t"}, "answer"),
        ({"answer": 7}, "answer"),
        ({"answer": "\ud800"}, "answer"),
        ({"problem": None}, "problem"),
        ({"problem": "  "}, "problem"),
        ({"problem": ["Find x."]}, "problem"),
        ({"problem": "<image> find x"}, "problem"),
        ({"problem": "<image> find x", "images": [b"a", b"b"]}, "problem"),
        ({"problem": "<image><image> find x", "images": [b"a"]}, "problem"),
        ({"images": ["a.png"]}, "images"),
        ({"images": [None]}, "images"),
        ({"id": ""}, "id"),
        ({"id": 3}, "id"),
        ({"kind": "essay"}, "kind"),
        ({"kind": None}, "kind"),
        ({"choices": "abcd"}, "choices"),
        ({"choices": []}, "choices"),
        ({"choices": ["a", ""]}, "choices"),
        ({"choices": ["a", 2]}, "choices"),
        ({"precision": -1}, "precision"),
        ({"precision": 1.5}, "precision"),
        ({"precision": True}, "precision"),
        ({"unit": 5}, "unit"),
        ({"source": None}, "source"),
        ({"split": "../train"}, "split"),
        ({"split": "a/b"}, "split"),
        ({"solution": " "}, "solution"),
    ],
)
def test_a_bad_field_is_refused_by_name(change, field):
    with pytest.raises(RowError) as caught:
        make_row(**(GOOD | change))
    assert caught.value.field == field
    assert repr(field) in str(caught.value)


def test_an_error_names_file_line_and_field_and_survives_pickling():
    error = RowError("is blank", field="answer").placed(Path("a/train.jsonl"), 3)
    assert str(error) == "a/train.jsonl, line 3, field 'answer': is blank"
    copy = pickle.loads(pickle.dumps(error))
    assert (str(copy), copy.row, copy.field) == (str(error), 3, "answer")


def test_placing_an_error_keeps_a_place_it_already_has():
    error = RowError("is blank", file="x.parquet", row=1, field="answer").placed("y", 2)
    assert str(error) == "x.parquet, row 1, field 'answer': is blank"


def test_importing_the_door_loads_no_table_library_and_no_torch():
    script = "import sys, data_prep; print(sorted({'torch', 'datasets', 'pyarrow', 'rewards'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
