"""Benchmarks beyond their files: listed choices, hub tables, metadata that stays, the shared samples."""

import json
import os
import pickle
from collections import Counter
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_prep import DataError, RowError, load_rows, open_image, read_image
from data_prep.formats.layout import split_choices
from data_prep.loading import scan_rows
from data_prep.prepare.prepare import prepare
from data_prep.schema import make_row
from rewards import verify
from tests.data_prep.benchmark_files import RED, build, hub_record

SHARED = Path(os.environ.get("VLM_MHPO_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")

# Choices


@pytest.mark.parametrize(
    ("text", "stem", "choices"),
    [
        ("Is it? choice: (A) Yes (B) No", "Is it?", ["Yes", "No"]),
        ("Which?\nChoices:\nA:40°\nB:60°\nC:70°", "Which?", ["40°", "60°", "70°"]),
        ("Which?\nChoices:\nA.$3 x-8 y=24$\nB.$3 x+8 y=24$", "Which?", ["$3 x-8 y=24$", "$3 x+8 y=24$"]),
        ("Which group?\nA. Group 1\nB. Group 2", "Which group?", ["Group 1", "Group 2"]),
        ("Which set is A: {1} or B: {2}?", "Which set is A: {1} or B: {2}?", []),
        ("Is (A) less? choice: (A) Yes (B) No", "Is (A) less?", ["Yes", "No"]),
        ("Pick: (A) 1 (C) 2", "Pick: (A) 1 (C) 2", []),
        ("Pick: (A) 1 (B)", "Pick: (A) 1 (B)", []),
        ("(A) 1 (B) 2", "(A) 1 (B) 2", []),
        ("Point (A) lies on it.", "Point (A) lies on it.", []),
        ("Find x.", "Find x.", []),
    ],
)
def test_choices_are_cut_from_the_end_of_a_question_only_where_they_run_from_a(text, stem, choices):
    assert split_choices(text) == (stem, choices)


def test_options_that_are_letters_of_other_options_are_asked_and_judged_by_letter(tmp_path):
    root = build("we_math", tmp_path, option="A. B; B. C; C. D; D. E; E. No correct answer", answer="D")
    row = next(load_rows(root))
    assert row.problem == "<image>Its circumference is ( )\nChoices:\n(A) B\n(B) C\n(C) D\n(D) E\n(E) No correct answer"
    assert (row.choices, row.answer, row.kind) == (None, "D", "choice")
    assert row.metadata["choices"] == ("B", "C", "D", "E", "No correct answer") and row.metadata["answer"] == "D"
    verdicts = {a: verify(f"<answer>{a}</answer>", row.answer, kind="choice", choices=row.choices) for a in "ABCDE"}
    assert {letter for letter, score in verdicts.items() if score.correct} == {"D"}


def test_a_gold_text_among_such_options_becomes_its_letter(tmp_path):
    row = next(load_rows(build("mathvista", tmp_path, choices=["B", "A"], answer="A")))
    assert (row.choices, row.answer, row.metadata["answer"]) == (None, "B", "A")
    assert row.problem.endswith("Choices:\n(A) B\n(B) A")


def test_options_that_are_their_own_letters_stay_choices(tmp_path):
    row = next(load_rows(build("mathvision", tmp_path, options=["A", "b", "C", "It depends."], answer="B")))
    assert (row.choices, row.answer) == (("A", "b", "C", "It depends."), "B")
    row = next(load_rows(build("mathvision", tmp_path, options=["$x$", "$-a$"], answer="B")))
    assert (row.choices, row.answer) == (("$x$", "$-a$"), "B")


# Hub tables


HUB_LAYOUTS = ("mathvista", "mathverse", "mathvision", "dynamath", "we_math", "olympiadbench", "mmk12", "charxiv",
               "hallusionbench", "m3cot", "chartqa")  # fmt: skip


@pytest.mark.parametrize("name", HUB_LAYOUTS)
def test_a_hub_table_gives_the_row_of_the_file(tmp_path, monkeypatch, name):
    record, split = hub_record(name)
    table = datasets.Dataset.from_list([record])
    for column, value in record.items():
        if isinstance(value, dict) and "bytes" in value:
            table = table.cast_column(column, datasets.Image())
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split: table)
    (from_hub,) = load_rows(f"org/{name}@{split}")
    pyarrow.parquet.write_table(pa.Table.from_pylist([record]), tmp_path / f"{split}-00000-of-00001.parquet")
    (from_parquet,) = load_rows(tmp_path)
    assert from_hub == from_parquet
    from_file = next(load_rows(build(name, tmp_path)))
    assert (tuple(map(read_image, from_hub.images)), from_hub.split, from_hub.source) == ((RED,), split, name)
    for field in ("problem", "answer", "kind", "choices", "precision", "unit", "solution"):
        assert getattr(from_hub, field) == getattr(from_file, field)
    assert from_hub.id.split("/")[-1] == from_file.id.split("/")[-1]
    assert from_hub.metadata.items() >= {  # the hub names DynaMath's level otherwise
        (key, value) for key, value in from_file.metadata.items() if key not in ("variant", "level")
    }


def test_the_other_hub_form_of_dynamath_has_its_variant_in_a_column(monkeypatch):
    record = hub_record("dynamath")[0] | {"id": "3", "question_id": "17"}
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split: datasets.Dataset.from_list([record]))
    (row,) = load_rows("org/name@test")
    assert row.id == "dynamath/3/17"
    assert (row.metadata["question_id"], row.metadata["variant"]) == ("17", "3")


def test_hub_pictures_are_bytes_or_refused(monkeypatch):
    records = [hub_record("mathvista")[0] | {"decoded_image": None}]
    monkeypatch.setattr(datasets, "load_dataset", lambda _, split: datasets.Dataset.from_list(records))
    (error,) = scan_rows("org/name@testmini")
    assert (error.field, error.row, "nothing is fetched" in str(error)) == ("image", 1, True)


# Metadata


def test_metadata_is_read_only_and_lists_become_tuples():
    row = make_row(id="a", problem="p", answer="1", metadata={"level": 2, "skills": ["x"], "share": 0.5, "mini": True})
    assert dict(row.metadata) == {"level": 2, "skills": ("x",), "share": 0.5, "mini": True}
    with pytest.raises(TypeError):
        row.metadata["level"] = 3
    assert hash(row) == hash(replace(row, metadata={}))
    for copy in (pickle.loads(pickle.dumps(row)), deepcopy(row)):
        assert copy == row
        with pytest.raises(TypeError):
            copy.metadata["level"] = 3


@pytest.mark.parametrize(
    "metadata", [{"a": None}, {"a": {"b": 1}}, {"a": [[1]]}, {"a": float("nan")}, {"a": "\ud83d"}, {1: "a"}, ["a"], "a"]
)
def test_metadata_that_cannot_be_saved_is_refused(metadata):
    with pytest.raises(RowError) as caught:
        make_row(id="a", problem="p", answer="1", metadata=metadata)
    assert caught.value.field == "metadata"


def test_metadata_survives_prepare(tmp_path):
    rows = list(load_rows(build("mathvista", tmp_path)))
    prepare(rows, tmp_path / "out")
    saved = list(load_rows(tmp_path / "out"))
    assert [row.metadata for row in saved] == [row.metadata for row in rows]
    assert saved[0].metadata["skills"] == ("geometry reasoning", "algebraic reasoning")
    assert [replace(row, images=()) for row in saved] == [replace(row, images=()) for row in rows]


def test_tables_of_the_first_schema_version_are_still_read(tmp_path):
    table = pa.table({"id": ["a"], "problem": ["1+1?"], "answer": ["2"]})
    table = table.replace_schema_metadata({"vlm_mhpo.schema_version": "1"})
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    (row,) = load_rows(tmp_path)
    assert (row.id, dict(row.metadata)) == ("a", {})


# The shared samples, where they are


def shared(folder: str) -> Path:
    if not (SHARED / folder).is_dir():
        pytest.skip(f"the shared sample {folder} is not here (set VLM_MHPO_SHARED_DATA)")
    return SHARED / folder


def expected_counts(folder: str) -> Counter:
    """Rows by split, counted from the files by other means than the readers'."""
    root = shared(folder)
    if folder in ("mathvision", "puzzlevqa"):
        files = [*root.glob("data/*.jsonl"), *root.glob("*/data/*.json")]
        return Counter(
            file.stem if folder == "mathvision" else file.parts[-3]
            for file in files for line in file.read_bytes().splitlines() if line.strip()
        )  # fmt: skip
    files = {"mathvista": ["data/testmini.json"], "mathverse_text_only": ["data/testmini_text_only.json"],
             "dynamath": ["dataset/dataset.json", *(f"samples and result/10trials/trial{n}/dataset.json"
                                                    for n in (1, 2, 3))]}[folder]  # fmt: skip
    splits = [Path(file).parent.name if folder == "dynamath" else Path(file).stem for file in files]
    return Counter(
        {split: len(json.loads((root / file).read_bytes())) for split, file in zip(splits, files, strict=True)}
    )


SAMPLES = ("mathvista", "mathverse_text_only", "mathvision", "dynamath", "puzzlevqa")


@pytest.mark.parametrize("folder", SAMPLES)
def test_every_shared_row_is_read_with_its_pictures(folder):
    rows = list(load_rows(shared(folder)))
    assert Counter(row.split for row in rows) == expected_counts(folder)
    for row in rows:
        assert len(row.images) == (folder != "mathverse_text_only")
        for image in row.images:
            assert min(open_image(image).size) > 20


@pytest.mark.parametrize("folder", SAMPLES)
def test_every_shared_gold_verifies_against_itself(folder):
    refused = []
    for row in load_rows(shared(folder)):
        score = verify(f"<think>gold</think><answer>{row.answer}</answer>", row.answer, template="think_answer",
                       kind=row.kind, choices=row.choices, precision=row.precision, unit=row.unit)  # fmt: skip
        if not score.correct:
            refused.append((row.id, row.answer, score.reason))
    assert refused == []


def test_first_values_of_the_shared_samples():
    puzzles = {row.id: row for row in load_rows(shared("puzzlevqa"))}
    clock = puzzles["puzzlevqa/AlgoPuzzleVQA/clock/1"]
    assert (clock.choices, clock.answer) == (("9:17", "2:41", "4:09", "10:08"), "4:09")
    assert clock.images[0].name == "clock_0039.jpg"
    vista = {row.id: row for row in load_rows(shared("mathvista"))}
    assert vista["mathvista/333"].answer == json.loads(
        (SHARED / "mathvista" / "data" / "testmini.json").read_text())["333"]["answer"]  # fmt: skip
    verse = next(load_rows(shared("mathverse_text_only")))
    assert (verse.id, verse.answer) == ("mathverse/testmini_text_only/330", "S 23.5 ^\\circ W")
    trials = [row for row in load_rows(shared("dynamath")) if row.metadata["question_id"] == "101"]
    assert [(row.metadata["variant"], row.answer) for row in trials] == [
        ("dataset", "B"), ("trial1", "B"), ("trial2", "C"), ("trial3", "B")]  # fmt: skip


def test_mathvision_answers_are_letters_exactly_where_there_are_options():
    for row in load_rows(f"{shared('mathvision')}@test"):
        assert (row.kind == "choice") == (row.choices is not None)
        assert row.choices is None or row.answer in "ABCDE"
        assert row.problem.count("<image>") == 1


@pytest.mark.parametrize("folder", ["mathvista_extraction", "olympiadbench_scoring"])
def test_samples_without_problems_to_show_yield_no_row(folder):
    try:
        rows = list(scan_rows(shared(folder)))
    except DataError:
        return  # grader cases are no layout of rows
    assert {(type(row), row.field) for row in rows} == {(RowError, "image")}
