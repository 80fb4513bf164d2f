"""A system message counts wherever it stands; one that says nothing is none."""

from __future__ import annotations

import json

import pytest

from data_prep import RowError, Turn
from data_prep.loading import scan_rows


def read(folder, record):
    file = folder / "rows.jsonl"
    file.write_text(json.dumps(record))
    (row,) = scan_rows(file)
    return row


@pytest.mark.parametrize(
    "record",
    [
        {"problem": "q", "answer": "5"},
        {"question": "q", "answer": "5"},
        {"prompt": "q", "solution": "5"},
        {"query": "q", "answer": "5"},
        {"query": "q", "response": "5"},
        {"query": "q", "response": "5", "history": None},
        {"query": "q", "response": "5", "history": []},
        {"prompt": "q", "reward_model": {"ground_truth": "5"}},
        {"messages": [{"role": "user", "content": "q"}], "solution": "5"},
        {"problem": "q", "answer": "5", "earlier_turns": [{"role": "system", "content": "You are X"}]},
    ],
)
def test_a_system_column_is_the_first_turn_of_every_row(tmp_path, record):
    row = read(tmp_path, record | {"system": "You are X"})
    assert (row.earlier_turns, row.problem, row.answer) == ((Turn("system", "You are X"),), "q", "5")
    assert "system" not in row.metadata
    error = read(tmp_path, record | {"system": ["You are X"]})
    assert isinstance(error, RowError) and error.field == "system"


def test_a_query_and_its_response_need_no_history(tmp_path):
    row = read(tmp_path, {"query": "2 + 2?", "response": "Two and two: \\boxed{4}"})
    assert (row.problem, row.answer, row.solution, dict(row.metadata)) == (
        "2 + 2?", "4", "Two and two: \\boxed{4}", {})  # fmt: skip


@pytest.mark.parametrize("blank", ["", "  ", "\n", [], [{"type": "text", "text": ""}], [{"type": "text", "text": " "}]])
def test_a_blank_system_message_is_none(tmp_path, blank):
    chat = [{"role": "system", "content": blank}, {"role": "user", "content": "q"}]
    assert read(tmp_path, {"messages": chat, "solution": "5"}).earlier_turns == ()
    assert read(tmp_path, {"messages": chat, "solution": "5", "system": "X"}).earlier_turns == (Turn("system", "X"),)
    if isinstance(blank, str):
        assert read(tmp_path, {"problem": "q", "answer": "5", "system": blank}).earlier_turns == ()
        own = {"problem": "q", "answer": "5", "earlier_turns": chat[:1]}
        assert read(tmp_path, own).earlier_turns == ()
