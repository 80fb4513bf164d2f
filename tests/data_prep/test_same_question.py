"""A question is the same one under another persona and inside a chat: overlap checks and held-out sides see that."""

from __future__ import annotations

import json

from data_prep.audit import audit
from data_prep.loading import load_rows
from data_prep.prepare.prepare import prepare

ASKED = "A train leaves at noon and drives 90 km in 2 hours. How fast is it?"


def said(*texts: str, system: str | None = None) -> dict:
    turns = [("assistant" if index % 2 else "user", text) for index, text in enumerate(texts)]
    turns = [("system", system), *turns] if system else turns
    return {"messages": [{"role": role, "content": text} for role, text in turns], "answer": "45"}


def table(file, *records):
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def found(defects, check: str) -> list[int]:
    (defect,) = (defect for defect in defects if defect.check == check)
    return [offence.row.place[1] for offence in defect.offences]


def test_a_benchmark_question_is_found_under_a_system_message_and_in_any_turn(tmp_path):
    benchmark = table(tmp_path / "benchmark.jsonl", {"problem": ASKED, "answer": "45"})
    mine = table(
        tmp_path / "rows.jsonl",
        said(ASKED, system="You are a tutor."),
        said("Hello.", "Hello!", ASKED),
        said(ASKED, "45", "And how far in 3 hours?"),
        said("How far in 3 hours?"),
        said("Hello.", "Hello!", "How far in 3 hours?"),
    )
    assert found(audit(mine, against=[benchmark]).defects, "benchmark_same_question") == [0, 1, 2]
    assert found(audit(benchmark, against=[mine]).defects, "benchmark_same_question") == [0]


def test_the_same_short_words_in_two_chats_are_not_the_same_question(tmp_path):
    benchmark = table(tmp_path / "benchmark.jsonl", said("A has 3.", "Yes.", "How many?"))
    mine = table(
        tmp_path / "rows.jsonl", said("B has 5.", "Yes.", "How many?"), said("A has 3.", "Right.", "How many?")
    )
    assert found(audit(mine, against=[benchmark]).defects, "benchmark_same_question") == [1]


def test_two_personas_are_no_copies_of_each_other(tmp_path):
    mine = table(tmp_path / "rows.jsonl", said(ASKED, system="Be brief."), said(ASKED, system="Be kind."), said(ASKED))
    assert found(audit(mine).defects, "duplicates") == []


def test_a_question_under_several_personas_is_on_one_side(tmp_path):
    asked = [f"What is 5 * 9 + {number} - {number}?" for number in range(20)]
    rows = [said(text, system=persona) for text in asked for persona in ("Be brief.", "Be kind.")]
    prepare(load_rows(table(tmp_path / "rows.jsonl", *rows)), tmp_path / "out", heldout=0.5)
    sides = {side: {row.problem for row in load_rows(f"{tmp_path / 'out'}@{side}")} for side in ("train", "heldout")}
    assert sides["train"] and sides["heldout"] and not sides["train"] & sides["heldout"]
