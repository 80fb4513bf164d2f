"""Readers of the benchmark layouts: the rows of hand-made files, recognition, and what bad rows end in."""

import pytest

from data_prep import DataError, RowError, load_rows
from data_prep.formats.registry import READERS
from data_prep.loading import scan_rows
from rewards import verify
from tests.data_prep.benchmark_files import BLUE, LAYOUTS, MATHVERSE, MATHVISTA, RED, WE_MATH, build, put

# What each reader makes of its layout


def test_mathvista_rows(tmp_path):
    text, number, several = load_rows(build("mathvista", tmp_path))
    assert (text.id, text.problem, text.answer, text.kind) == ("mathvista/5", "<image>Find $x$.", "97", "choice")
    assert (text.choices, text.precision, text.unit) == (("97", "102"), None, None)
    assert (text.source, text.split, text.images[0].read_bytes()) == ("mathvista", "testmini", BLUE)
    assert dict(text.metadata) == {
        "pid": "5", "question_type": "multi_choice", "answer_type": "text", "source": "Geometry3K",
        "category": "math-targeted-vqa", "task": "geometry problem solving", "context": "geometry diagram",
        "grade": "high school", "language": "english", "skills": ("geometry reasoning", "algebraic reasoning"),
    }  # fmt: skip
    assert (number.kind, number.answer, number.precision, number.unit) == ("number", "14.14", 2, "cm")
    assert number.choices is None and number.metadata["answer_type"] == "float"
    assert (several.kind, several.answer) == ("auto", "[0, 2]")


def test_mathverse_rows(tmp_path):
    listed, in_picture, text = load_rows(build("mathverse", tmp_path))
    assert (listed.id, listed.problem) == ("mathverse/testmini/3421", "<image>A can is 13 cm high. Find L.")
    assert (listed.kind, listed.choices, listed.answer) == ("choice", ("14 cm", "15 cm"), "B")
    assert listed.metadata["question"] == MATHVERSE["question"]
    assert {name: listed.metadata[name] for name in ("problem_index", "problem_version", "question_type", "subject",
            "subfield", "query_cot")} == {
        "problem_index": "685", "problem_version": "Text Dominant", "question_type": "multi-choice",
        "subject": "Solid Geometry", "subfield": "Length", "query_cot": "Please ...",
    }  # fmt: skip
    assert in_picture.problem == "<image>Answer the question that is shown in the image."
    assert (in_picture.kind, in_picture.choices, in_picture.images[0].parent.name) == (
        "choice", None, "images_version_6")  # fmt: skip
    assert (text.id, text.split, text.images, text.kind, text.answer) == (
        "mathverse/testmini_text_only/330", "testmini_text_only", (), "auto", "S 23.5 ^\\circ W")  # fmt: skip


def test_mathvision_rows_keep_one_composite_picture_where_its_first_tag_stood(tmp_path):
    root = build("mathvision", tmp_path)
    choice, free = load_rows(f"{root}@test")
    assert choice.problem == "Eve has bananas. How many? <image> and <image2>"
    assert (choice.id, choice.answer, choice.choices) == ("mathvision/19", "B", ("$2+4+3$", "$2 \\cdot 4$"))
    assert (choice.kind, choice.solution) == ("choice", None)
    assert dict(choice.metadata) == {"id": "19", "level": 2, "subject": "arithmetic"}
    assert (free.problem, free.answer, free.kind, free.choices) == ("Which number?\n<image>", "60", "auto", None)
    assert free.solution == "Add up."
    assert [(row.id, row.split) for row in load_rows(f"{root}@testmini")] == [("mathvision/1", "testmini")]


def test_dynamath_rows_and_variants(tmp_path):
    root = build("dynamath", tmp_path)
    number, choice, point, variant = load_rows(root)
    assert (number.id, number.answer, number.kind, number.precision) == ("dynamath/dataset/1", "2.0944", "number", 3)
    assert dict(number.metadata) == {
        "answer_type": "float", "subject": "analytic geometry", "level": "high school", "question_id": "1",
        "variant": "dataset", "question": "What is the period?",
    }  # fmt: skip
    assert (choice.problem, choice.choices, choice.answer) == ("<image>Is it even?", ("Yes", "No"), "B")
    assert (point.kind, point.answer, point.precision) == ("auto", "(4, 3)", None)
    assert (variant.id, variant.answer, variant.split) == ("dynamath/trial1/1", "3.1416", "trial1")
    assert (variant.metadata["question_id"], variant.metadata["variant"]) == ("1", "trial1")
    assert variant.images[0].parent.parent.name == "trial1"
    for source in (f"{root}@trial1", root / "samples and result" / "10trials",
                   root / "samples and result" / "10trials" / "trial1" / "dataset.json"):  # fmt: skip
        assert [row.id for row in load_rows(source)] == ["dynamath/trial1/1"]


@pytest.mark.parametrize("answer", ["2.0944", "2.094", "2.0941"])
def test_dynamath_numbers_are_right_when_three_decimals_agree(tmp_path, answer):
    row = next(load_rows(build("dynamath", tmp_path)))
    score = verify(f"<answer>{answer}</answer>", row.answer, kind=row.kind, precision=row.precision)
    assert score.correct
    assert not verify("<answer>2.096</answer>", row.answer, kind=row.kind, precision=row.precision).correct


def test_puzzlevqa_rows_of_both_parts(tmp_path):
    root = build("puzzlevqa", tmp_path)
    clock, venn, numbers = load_rows(root)
    assert (venn.id, venn.problem) == ("puzzlevqa/PuzzleVQA/venn/1", "<image>What is the missing number?")
    assert (venn.answer, venn.choices, venn.kind) == ("7", ("1", "7", "4", "0"), "choice")
    assert dict(venn.metadata) == {
        "category": "venn", "part": "PuzzleVQA", "caption": "3 circles.", "explanation": "They add.",
        "deduction": "So 7.",
    }  # fmt: skip
    assert (numbers.choices, numbers.answer) == (("1", "2"), "2")
    assert (clock.answer, clock.split, clock.images[0].read_bytes()) == ("4:09", "AlgoPuzzleVQA", BLUE)
    assert dict(clock.metadata) == {"category": "clock", "part": "AlgoPuzzleVQA"}
    for source in (f"{root}@PuzzleVQA", root / "PuzzleVQA", root / "PuzzleVQA" / "data",
                   root / "PuzzleVQA" / "data" / "venn.json"):  # fmt: skip
        assert [row.id for row in load_rows(source)] == [venn.id, numbers.id]


def test_we_math_rows(tmp_path):
    one, several = load_rows(build("we_math", tmp_path))
    assert (one.id, one.problem) == ("we_math/2steps_8/2steps_1", "<image>Its circumference is ( )")
    assert (one.choices, one.answer, one.kind) == (("31.4", "3.14", "x; y", "No correct answer"), "A", "choice")
    assert dict(one.metadata) == {
        "ID": "2steps_8", "key": "2steps_1", "question number": 8, "option": WE_MATH["option"],
        "knowledge concept": "Circumference of Circles",
    }  # fmt: skip
    assert (several.metadata["ID"], several.metadata["key"]) == ("2steps_8", "2steps_multi")


def test_tabmwp_rows(tmp_path):
    number, choice = load_rows(build("tabmwp", tmp_path))
    assert (number.id, number.answer, number.unit, number.kind) == ("tabmwp/1", "39.96", "$", "auto")
    assert (number.split, number.solution, number.images[0].read_bytes()) == ("test1k", "12 cups", RED)
    assert dict(number.metadata) == {
        "ques_type": "free_text", "ans_type": "decimal_number", "grade": 4, "table_title": "Prices",
        "table": "cup | $3.33",
    }  # fmt: skip
    assert (choice.kind, choice.choices, choice.answer) == ("choice", ("surplus", "shortage"), "shortage")


def test_logicvista_rows(tmp_path):
    several, listed, number = load_rows(build("logicvista", tmp_path))
    assert (several.id, several.kind, several.choices, several.answer) == ("logicvista/v1_1", "choice", None, "A, C")
    assert (several.metadata["skill"], several.metadata["broad_capability"]) == (("inductive",), ("diagram",))
    assert (several.split, several.solution) == ("test", "They have an X.")
    assert (listed.problem, listed.choices, listed.answer) == (
        "<image>How many? Select from A and B.", ("10", "12"), "B")  # fmt: skip
    assert (number.kind, number.answer) == ("auto", "3")
    assert verify("<answer>A and C</answer>", several.answer, kind="choice").correct
    assert not verify("<answer>A</answer>", several.answer, kind="choice").correct


def test_mmk12_rows(tmp_path):
    (row,) = load_rows(build("mmk12", tmp_path))
    assert (row.id, row.problem, row.answer) == ("mmk12/4d61-b", "<image>then $f(x)=$ .", "$2\\sin (2x)$")
    assert (row.kind, row.split, row.images[0].read_bytes()) == ("auto", "test", RED)


def test_olympiadbench_rows_and_no_proofs(tmp_path):
    root = build("olympiadbench", tmp_path)
    snail, train = load_rows(root)
    assert (snail.id, snail.answer) == ("olympiadbench/2231", "$\\frac{1}{2}$")
    assert snail.problem == "A snail:\n<image>\n\nDetermine $C$."
    assert (snail.split, snail.images[0].read_bytes()) == ("OE_MM_maths_en_COMP", BLUE)
    assert dict(snail.metadata) == {
        "final_answer": ("$\\frac{1}{2}$",), "is_multiple_answer": False, "answer_type": "Numerical",
        "subfield": "Geometry",
    }  # fmt: skip
    assert (train.problem, train.unit, train.images) == ("A train runs.\nHow fast?", "m/s", ())
    assert train.metadata["error"] == "1e-1"


# Recognition


@pytest.mark.parametrize("name", LAYOUTS)
def test_each_layout_is_recognised_by_its_own_reader_alone(tmp_path, name):
    root = build(name, tmp_path)
    assert [other for other in LAYOUTS if READERS[other].matches(root)] == [name]
    for path in root.rglob("*.json*"):
        assert [other for other in LAYOUTS if READERS[other].matches(path)] in ([], [name])
    assert {row.source for row in load_rows(root)} == {name}
    with pytest.raises(DataError, match="no split 'nowhere'; it has: "):
        list(load_rows(f"{root}@nowhere"))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.jsonl", ({"id": 1, "question": "1+1?", "answer": "2", "options": ["1", "2"], "image": ""},)),
        ("rows.json", [{"problem": "1+1?", "answer": "2", "solution": "Add.", "metadata": {"level": 1}}]),
        ("rows.jsonl", ({"metadata": {"level": 1}, "problem": "1+1?", "answer": "2"},)),
        ("rows.jsonl", ({"question": "1+1?", "answer": "2", "subject": "sums", "level": "easy", "id": "a"},)),
    ],
)
def test_plain_tables_are_left_to_the_plain_readers(tmp_path, name, content):
    path = put(tmp_path / name, content)
    assert not any(READERS[layout].matches(path) for layout in LAYOUTS)
    assert [row.answer for row in load_rows(path)] == ["2"]


@pytest.mark.parametrize("content", [b"", b"[", b"{", b"\xff\xfe", b"[1]", b"7", b'{"a": ', b"{}", b"[" * 100_000])
def test_broken_files_are_no_benchmark(tmp_path, content):
    for name in ("a.json", "a.jsonl", "a.parquet"):
        path = put(tmp_path / name, content)
        assert not any(READERS[layout].matches(path) for layout in LAYOUTS)


def test_a_keyed_file_that_breaks_off_ends_in_one_sentence(tmp_path):
    root = build("mathvista", tmp_path)
    path = root / "data" / "testmini.json"
    path.write_text(path.read_text().rstrip().rstrip("}"))
    with pytest.raises(DataError, match=r"testmini\.json is not a JSON object of rows"):
        list(load_rows(root))


def test_a_file_larger_than_the_look_at_its_start_is_recognised(tmp_path):
    many = {str(pid): MATHVISTA | {"pid": str(pid), "question": "Find $x$. " * 200} for pid in range(700)}
    put(tmp_path / "images" / "5.jpg", BLUE)
    path = put(tmp_path / "testmini.json", many)
    assert path.stat().st_size > 2**20
    assert sum(1 for _ in load_rows(path)) == 700
    assert sum(1 for _ in load_rows(put(tmp_path / "lines.jsonl", tuple(many.values())))) == 700


def test_rows_are_read_without_a_look_into_their_pictures(tmp_path):
    for name in LAYOUTS:
        root = build(name, tmp_path)
        for path in [*root.rglob("*.png"), *root.rglob("*.jpg")]:
            path.write_bytes(b"no image")
        assert list(load_rows(root))


def test_another_image_root_is_used_where_it_is_given(tmp_path):
    root = build("mathvision", tmp_path)
    (root / "images").rename(tmp_path / "images")
    assert {error.field for error in scan_rows(root, split="testmini")} == {"image"}
    (row,) = load_rows(root, split="testmini", image_root=tmp_path)
    assert row.images[0].read_bytes() == BLUE


# Bad rows


@pytest.mark.parametrize(
    ("name", "change", "file", "key", "field"),
    [
        ("mathvista", {"answer": "98"}, "testmini.json", "5", "answer"),
        ("mathvista", {"answer": ""}, "testmini.json", "5", "answer"),
        ("mathvista", {"question": None}, "testmini.json", "5", "question"),
        ("mathvista", {"image": "images/6.jpg"}, "testmini.json", "5", "image"),
        ("mathvista", {"image": "../5.jpg"}, "testmini.json", "5", "image"),
        ("mathvista", {"image": None}, "testmini.json", "5", "image"),
        ("mathvista", {"choices": "97"}, "testmini.json", "5", "choices"),
        ("mathvista", {"precision": 1.5, "question_type": "free_form"}, "testmini.json", "5", "precision"),
        ("mathverse", {"answer": "C"}, "testmini.json", 1, "answer"),
        ("mathverse", {"question": "", "image": ""}, "testmini.json", 1, "question"),
        ("mathverse", {"question": 7}, "testmini.json", 1, "question"),
        ("mathverse", {"image": "http://x.invalid/a.png"}, "testmini.json", 1, "image"),
        ("mathvision", {"answer": "F"}, "test.jsonl", 1, "answer"),
        ("mathvision", {"options": {"A": "1"}}, "test.jsonl", 1, "options"),
        ("mathvision", {"options": ["1", ""]}, "test.jsonl", 1, "options"),
        ("mathvision", {"options": ["1"] * 27}, "test.jsonl", 1, "options"),
        ("mathvision", {"question": ["<image1>"]}, "test.jsonl", 1, "question"),
        ("mathvision", {"question": "<image1> <image>"}, "test.jsonl", 1, "question"),
        ("dynamath", {"answer": None}, "dataset.json", "1", "answer"),
        ("dynamath", {"image": "image/none.png"}, "dataset.json", "1", "image"),
        ("puzzlevqa", {"answer": 8}, "venn.json", 1, "answer"),
        ("puzzlevqa", {"options": "1"}, "venn.json", 1, "options"),
        ("we_math", {"option": "A. 1;C. 2"}, "testmini.json", 1, "option"),
        ("we_math", {"option": ["A. 1"]}, "testmini.json", 1, "option"),
        ("we_math", {"answer": "E"}, "testmini.json", 1, "answer"),
        ("we_math", {"image_path": "3steps/a.png"}, "testmini.json", 1, "image_path"),
        ("tabmwp", {"answer": None}, "problems_test1k.json", "1", "answer"),
        ("logicvista", {"imagename": "../../a.png"}, "dataset.json", "v1_1", "imagename"),
        ("logicvista", {"answer": ["A"]}, "dataset.json", "v1_1", "answer"),
        ("olympiadbench", {"final_answer": []}, "OE_MM_maths_en_COMP.json", 1, "final_answer"),
        ("olympiadbench", {"question": "<img_1>"}, "OE_MM_maths_en_COMP.json", 1, "images"),
        ("olympiadbench", {"question": "<image_1> x"}, "OE_MM_maths_en_COMP.json", 1, "question"),
        ("mmk12", {"answer": " "}, "k12.json", 1, "answer"),
        ("mmk12", {"image_path": "images/none.png"}, "k12.json", 1, "image_path"),
        ("charxiv", {"answer": None}, "reasoning_val.json", "7", "answer"),
        ("charxiv", {"figure_id": 9}, "reasoning_val.json", "7", "image"),
        ("hallusionbench", {"gt_answer": "2"}, "HallusionBench.json", 1, "gt_answer"),
        ("hallusionbench", {"filename": "../../a.png"}, "HallusionBench.json", 1, "filename"),
        ("mm_math", {"solution": "It is 5."}, "MM_Math.jsonl", 1, "solution"),
        ("m3cot", {"answer": "C"}, "test.jsonl", 1, "answer"),
        ("chartqa", {"label": None}, "test_human.json", 1, "label"),
        ("chartqa", {"imgname": "18.png"}, "test_human.json", 1, "image"),
    ],
)
def test_a_bad_row_names_file_key_and_column_and_the_rest_is_still_read(tmp_path, name, change, file, key, field):
    good = list(load_rows(build(name, tmp_path / "good")))
    rows = list(scan_rows(build(name, tmp_path / "bad", **change)))
    (error,) = [row for row in rows if isinstance(row, RowError)]
    assert (error.file.name, error.row, error.field) == (file, key, field)
    assert f"field {field!r}" in str(error)
    assert [row.id for row in rows if not isinstance(row, RowError)] == [
        row.id for row in good if row.id != good[rows.index(error)].id]  # fmt: skip


def test_an_error_prints_the_key_of_a_keyed_file(tmp_path):
    (error, *_) = scan_rows(build("mathvista", tmp_path, answer="98"))
    assert ", key '5', field 'answer': '98' names none of the 2 choices ['97', '102']" in str(error)


def test_a_record_that_is_no_object_is_one_bad_row(tmp_path):
    root = build("mathverse", tmp_path)
    put(root / "data" / "testmini.json", [MATHVERSE, "text", MATHVERSE])
    first, error, last = scan_rows(root, split="testmini")
    assert (error.row, first.answer, last.answer) == (2, "B", "B")


@pytest.mark.parametrize(
    ("answer", "gold", "choices"),
    [
        ("(B)", "B", ("14 cm", "15 cm")),
        ("15 cm", "15 cm", ("14 cm", "15 cm")),
        ("A\nB", "A, B", None),  # both are right, so the question stays as it is
    ],
)
def test_mathverse_golds_may_be_bracketed_letters_texts_or_several_letters(tmp_path, answer, gold, choices):
    row = next(load_rows(build("mathverse", tmp_path, answer=answer)))
    assert (row.answer, row.choices, row.kind) == (gold, choices, "choice")
    assert row.problem.endswith("Find L." if choices else "Find L.\nChoices:\nA:14 cm\nB:15 cm")


def test_mathverse_keeps_the_choices_that_only_the_image_shows(tmp_path):
    hidden = {"question": "", "question_for_eval": "Find L.\nChoices:\nA:14 cm\nB:15 cm"}
    row = next(load_rows(build("mathverse", tmp_path, **hidden)))
    assert (row.choices, row.metadata["choices_in_image"]) == (None, ("14 cm", "15 cm"))
    assert "choices_in_image" not in next(load_rows(build("mathverse", tmp_path / "listed"))).metadata
