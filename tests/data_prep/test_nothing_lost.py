"""Images and choices of a row are read, or the row is refused by the name of its column; never left out in silence."""

from __future__ import annotations

import base64
import json
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from data_prep import DataError, RowError, load_rows, read_image
from data_prep.formats.table import TableFile, row_from_record
from data_prep.formats.we_math import _options
from rewards import verify
from tests.builders import picture
from vlm_mhpo.evaluation.benchmarks.logicvista import official

IMAGE = picture(56, 56)
CHOICES = ["red", "blue", "green", "grey"]


def table(folder: Path, suffix: str, **columns) -> Path:
    """A table of one row, with an image file beside it."""
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(IMAGE)
    record = {"problem": "What is it?", "answer": "7"} | columns
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), file)
    else:
        file.write_text(json.dumps(record))
    return file


# Every name under which data sets keep images; `file_name` is that of Hugging Face's imagefolder.
NAMES = ("images", "image", "image_path", "image_paths", "image_file", "image_files", "img", "imgs", "img_path",
         "picture", "pictures", "file_name")  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("is_list", [False, True])
def test_an_image_is_read_under_every_usual_name(tmp_path, name, is_list):
    (row,) = load_rows(table(tmp_path / "paths", ".jsonl", **{name: ["a.png"] if is_list else "a.png"}))
    assert [read_image(image) for image in row.images] == [IMAGE]
    cell = {"bytes": IMAGE, "path": None}
    (row,) = load_rows(table(tmp_path / "bytes", ".parquet", **{name: [cell] if is_list else cell}))
    assert [read_image(image) for image in row.images] == [IMAGE]
    assert row.problem == "<image>What is it?"


@pytest.mark.parametrize("empty", ["", [], None])
def test_an_empty_column_hides_no_other(tmp_path, empty):
    (row,) = load_rows(table(tmp_path, ".jsonl", images=empty, img_path="a.png"))
    assert [read_image(image) for image in row.images] == [IMAGE]


@pytest.mark.parametrize("names", [("images", "image"), ("image", "picture"), ("img", "pictures")])
def test_of_two_columns_that_show_images_neither_is_chosen(tmp_path, names):
    with pytest.raises(RowError, match=f"'{names[0]}': is there beside '{names[1]}'; keep one of them"):
        list(load_rows(table(tmp_path, ".jsonl", **dict.fromkeys(names, "a.png"))))


@pytest.mark.parametrize("value", ["a.png", ["a.png"], {"path": "a.png"}])
def test_a_column_that_names_image_files_and_is_not_read_is_refused(tmp_path, value):
    with pytest.raises(RowError, match=r"diagram.* data\.columns=\{images: diagram\}"):
        list(load_rows(table(tmp_path, ".jsonl", diagram=value)))


@pytest.mark.parametrize("value", [IMAGE, {"bytes": IMAGE, "path": "x.png"}, [{"bytes": IMAGE, "path": None}]])
def test_a_column_that_holds_images_and_is_not_read_is_refused(tmp_path, value):
    with pytest.raises(RowError, match=r"diagram.*holds an image, and no column of that name is read"):
        list(load_rows(table(tmp_path, ".parquet", diagram=value)))
    # Also beside images that are read: the question may speak of both.
    both = {"images": [{"bytes": IMAGE, "path": None}], "diagram": value}
    with pytest.raises(RowError, match="diagram"):
        list(load_rows(table(tmp_path, ".parquet", **both)))


@pytest.mark.parametrize("value", ["gone.png", "see a.png", "https://example.org/a.png", "../a.png", 7, None, [1.5]])
def test_what_only_looks_like_an_image_is_metadata(tmp_path, value):
    (row,) = load_rows(table(tmp_path, ".jsonl", note=value))
    assert row.images == ()


# What data sets write for the right choice, and a right and a wrong response.
GOLDS = {
    "B": ("B", "C"),
    "b": ("B", "A"),
    "(b)": ("B", "A"),
    "B.": ("B", "A"),
    "B. blue": ("B", "A"),
    "Option B": ("blue", "red"),
    "\\text{B}": ("B", "A"),
    "blue": ("B", "A"),
    "Blue ": ("B", "A"),
    "AC": ("A, C", "A"),
    "A, C": ("CA", "B"),
    "ACD": ("A, C, D", "A, C"),
    "A and D": ("DA", "ABCD"),
}


@pytest.mark.parametrize("gold", GOLDS)
def test_choices_are_shown_and_the_gold_is_understood(tmp_path, gold):
    (row,) = load_rows(table(tmp_path, ".jsonl", choices=CHOICES, answer=gold))
    assert (row.kind, row.choices) == ("choice", tuple(CHOICES))
    right, wrong = GOLDS[gold]
    judged = [
        verify(text, row.answer, template="bare", kind=row.kind, choices=row.choices).correct for text in (right, wrong)
    ]
    assert judged == [True, False]


@pytest.mark.parametrize(("gold", "letter"), [(0, "A"), (1, "B"), (3, "D"), (2.0, "C")])
def test_an_index_counts_from_0(tmp_path, gold, letter):
    (row,) = load_rows(table(tmp_path, ".jsonl", choices=CHOICES, answer=gold))
    assert (row.kind, row.answer) == ("choice", letter)


def test_a_number_that_is_a_choice_is_no_index(tmp_path):
    (row,) = load_rows(table(tmp_path, ".jsonl", choices=["2", "1", "0"], answer=1))
    judged = [verify(text, row.answer, template="bare", kind="choice", choices=row.choices).correct for text in "ABC"]
    assert judged == [False, True, False]


def test_a_number_that_is_one_choice_and_the_index_of_another_is_refused(tmp_path):
    with pytest.raises(RowError, match="0 is the text of one choice and the index of another: give a letter"):
        list(load_rows(table(tmp_path, ".jsonl", choices=[3, 5, 0, 7], answer=0)))


@pytest.mark.parametrize("gold", ["7", "E", "F. black", 4, "none of them"])
def test_a_gold_that_names_no_choice_is_refused_and_says_what_to_do(tmp_path, gold):
    with pytest.raises(RowError, match=r"names none of the 4 choices: give a letter, .* or a kind"):
        list(load_rows(table(tmp_path, ".jsonl", choices=CHOICES, answer=gold)))


# Golds and units as tables hold them.


@pytest.mark.parametrize(
    ("kind", "value", "gold"),
    [
        ("float32", 0.1, "0.1"),
        ("float16", 1.3, "1.3"),
        ("float64", 0.30000000000000004, "0.30000000000000004"),
        ("decimal128(6, 2)", "12.50", "12.5"),
        ("bool_", True, "True"),
        ("int64", 7, "7"),
        ("float32", 27.0, "27"),
        # Of a third the column knows seven digits, and a third rounds to those.
        ("float32", 1 / 3, "0.3333333"),
        ("float32", 2**0.5, "1.414214"),
        ("float32", 1e20, "1e+20"),
        ("float32", 16777215.0, "16777215"),
        ("float16", 2 / 3, "0.667"),
        ("float16", 1234.0, "1234"),
    ],
)
def test_a_gold_has_the_digits_of_its_column(tmp_path, kind, value, gold):
    import decimal

    import numpy
    import pyarrow
    import pyarrow.parquet

    name, _, numbers = kind.partition("(")
    arrow = getattr(pyarrow, name)(*(int(n) for n in numbers.rstrip(")").split(",") if n))
    cell = decimal.Decimal(value) if name == "decimal128" else numpy.float16(value) if name == "float16" else value
    table_ = pyarrow.table({"problem": ["How much?"], "answer": pyarrow.array([cell], arrow)})
    pyarrow.parquet.write_table(table_, tmp_path / "rows.parquet")
    (row,) = load_rows(tmp_path / "rows.parquet")
    assert row.answer == gold


def write_arrow(table_, path):
    import pyarrow

    with pyarrow.OSFile(str(path), "wb") as sink, pyarrow.ipc.new_stream(sink, table_.schema) as writer:
        writer.write_table(table_)


@pytest.mark.parametrize("suffix", [".parquet", ".arrow"])
@pytest.mark.parametrize("kind", ["float32", "float16"])
def test_golds_inside_lists_and_structs_have_the_digits_of_their_column(tmp_path, kind, suffix):
    import numpy
    import pyarrow
    import pyarrow.parquet

    number, arrow = getattr(numpy, kind)(0.1), getattr(pyarrow, kind)()
    listed = pyarrow.table({"problem": ["How much?"], "answer": pyarrow.array([[number]], pyarrow.list_(arrow))})
    parts = pyarrow.struct([("ground_truth", arrow), ("equivalent_answers", pyarrow.list_(arrow))])
    cells = pyarrow.array([{"ground_truth": number, "equivalent_answers": [getattr(numpy, kind)(0.2)]}], parts)
    verl = pyarrow.table({"prompt": ["How much?"], "data_source": ["s"], "reward_model": cells})
    for table_, gold in ((listed, "0.1"), (verl, ("0.1", "0.2"))):
        path = tmp_path / f"rows{suffix}"
        pyarrow.parquet.write_table(table_, path) if suffix == ".parquet" else write_arrow(table_, path)
        (row,) = load_rows(path)
        assert row.gold == gold


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_none_is_no_gold(tmp_path, value):
    with pytest.raises(RowError, match="'answer': is missing"):
        list(load_rows(table(tmp_path, ".jsonl", answer=value)))


@pytest.mark.parametrize(
    "value", [np.float32(0.1), np.float16(0.1), np.float64(0.1), Decimal("0.10"), [np.float32(0.1)]]
)
def test_numbers_of_other_libraries_are_numbers(value):
    row = row_from_record({"problem": "How much?", "answer": value}, TableFile(Path("t"), "t", ""), 1, None)
    assert row.gold == "0.1"


@pytest.mark.parametrize("name", ["unit", "units", "answer_unit"])
def test_a_unit_of_its_own_column_belongs_to_the_gold(tmp_path, name):
    (row,) = load_rows(table(tmp_path, ".jsonl", answer="12", **{name: "cm"}))
    assert (row.answer, row.unit) == ("12", "cm")


# Names that a user gives, and the layouts that others write.


def test_columns_are_read_under_the_names_that_a_user_gives(tmp_path):
    columns = {"problem": "ask", "answer": "final", "images": "diagram", "choices": "opts"}
    record = {"ask": "Which?", "final": "B", "diagram": "a.png", "opts": CHOICES, "level": 3}
    (row,) = load_rows(table(tmp_path, ".jsonl", **record), columns=columns)
    assert (row.problem, row.answer, row.choices) == ("<image>Which?", "B", tuple(CHOICES))
    assert [read_image(image) for image in row.images] == [IMAGE]
    assert dict(row.metadata) == {"level": 3}


def test_a_name_that_does_not_exist_lists_those_that_do(tmp_path):
    file = table(tmp_path, ".jsonl")
    with pytest.raises(RowError, match=r"'images': is read from the column 'pic'; there is problem, answer"):
        list(load_rows(file, columns={"images": "pic"}))
    with pytest.raises(DataError, match="columns: 'picture' is no column of a row; those are problem, answer, images"):
        load_rows(file, columns={"picture": "a"})


RECORDS = [
    {"problem": "What is red?", "answer": "3", "image": "a.png"},
    {"problem": "What is blue?", "answer": "4", "image": "a.png"},
]


def written(folder: Path, layout: str) -> Path:
    """The two records as another program writes them."""
    import csv
    import gzip

    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(IMAGE)
    lines = "".join(json.dumps(record) + "\n" for record in RECORDS)
    if layout == "jsonl.gz":
        (folder / "train.jsonl.gz").write_bytes(gzip.compress(lines.encode()))
    elif layout == "one json":
        (folder / "train.json").write_text(json.dumps(RECORDS))
        return folder
    elif layout in ("csv", "tsv"):
        with (folder / f"train.{layout}").open("w", newline="") as file:
            writer = csv.DictWriter(file, RECORDS[0], delimiter="\t" if layout == "tsv" else ",")
            writer.writeheader()
            writer.writerows(RECORDS)
    return next(folder.glob("train.*"))


@pytest.mark.parametrize("layout", ["jsonl.gz", "one json", "csv", "tsv"])
def test_other_containers_hold_the_same_rows(tmp_path, layout):
    rows = list(load_rows(written(tmp_path / "set", layout)))
    assert [(row.problem, row.answer, row.split) for row in rows] == [
        ("<image>What is red?", "3", "train" if layout == "one json" else ""),
        ("<image>What is blue?", "4", "train" if layout == "one json" else ""),
    ]
    assert [read_image(row.images[0]) for row in rows] == [IMAGE, IMAGE]


@pytest.mark.parametrize("layout", ["Dataset", "DatasetDict", "arrow"])
def test_what_datasets_saves_is_read(tmp_path, layout):
    import datasets

    image = {"bytes": IMAGE, "path": None}
    features = datasets.Features(
        {"problem": datasets.Value("string"), "answer": datasets.Value("float32"), "image": datasets.Image()}
    )
    made = datasets.Dataset.from_list(
        [{"problem": "Which?", "answer": 0.1, "image": image}], features=features, split="train"
    )
    if layout == "DatasetDict":
        datasets.DatasetDict({"train": made, "test": made}).save_to_disk(tmp_path / "set")
        assert [row.split for row in load_rows(tmp_path / "set")] == ["train", "test"]
        with pytest.raises(DataError, match="no split 'dev'; it has: train, test"):
            list(load_rows(tmp_path / "set", split="dev"))
    else:
        made.save_to_disk(tmp_path / "set")
    source = next((tmp_path / "set").glob("*.arrow")) if layout == "arrow" else tmp_path / "set"
    (row,) = load_rows(source, split="train")
    assert (row.problem, row.answer) == ("<image>Which?", "0.1")
    assert [read_image(image) for image in row.images] == [IMAGE]


def test_images_as_base64_and_data_urls(tmp_path):
    text = base64.b64encode(IMAGE).decode()
    for value in (text, f"data:image/png;base64,{text}", [text]):
        (row,) = load_rows(table(tmp_path, ".jsonl", image=value))
        assert [read_image(image) for image in row.images] == [IMAGE]


@pytest.mark.parametrize("value", ["data:text/html;base64,PGI+", "data:image/png,abc", "data:image/png;base64,%%%"])
def test_a_data_url_of_anything_else_is_refused(tmp_path, value):
    with pytest.raises(RowError, match="'images': is a data URL"):
        list(load_rows(table(tmp_path, ".jsonl", image=value)))


def test_an_error_never_prints_an_image(tmp_path):
    text = base64.b64encode(IMAGE).decode()[:-3] + "!"
    with pytest.raises(RowError) as refused:
        list(load_rows(table(tmp_path, ".jsonl", image=text)))
    assert text[:300] not in str(refused.value)


# What stands in whole releases of benchmarks, where no row may be left out.


@pytest.mark.parametrize("question", ["", " ", "<image>"])
def test_an_image_may_be_the_whole_question(tmp_path, question):
    # MATH-Vision 2759 and Geometry3K have such rows.
    (row,) = load_rows(table(tmp_path, ".jsonl", problem=question, image="a.png"))
    assert row.problem.strip() == "<image>" and len(row.images) == 1
    with pytest.raises(RowError, match="is blank"):
        list(load_rows(table(tmp_path, ".jsonl", problem=" ")))


@pytest.mark.parametrize(
    ("text", "options"),
    [
        ("A. 31.4;B. 3.14; C. No correct answer", ["31.4", "3.14", "No correct answer"]),
        ("A. ①;B．②;C. ③", ["①", "②", "③"]),
        ("A. OA;B. O;O.;C. OB", ["OA", "O;O.", "OB"]),
        ("A. 31B. 3.14C. 7 D. No correct answer", ["31", "3.14", "7", "No correct answer"]),
        ("A：3；B：4", ["3", "4"]),
        ("A. Point B; B. Point C", ["Point B", "Point C"]),
    ],
)
def test_options_of_we_math_in_one_text(text, options):
    assert _options(text) == options


def test_a_row_of_logicvista_without_question_and_answer_stays_and_pays_nobody(tmp_path):
    record = {"imagename": "v1.png", "question": "", "answer": "", "reasoning": "", "skill": ["spatial"]}
    (tmp_path / "data" / "images").mkdir(parents=True)
    (tmp_path / "data" / "images" / "v1.png").write_bytes(IMAGE)
    (tmp_path / "data" / "dataset.json").write_text(json.dumps({"v1": record}))
    (row,) = load_rows(tmp_path)
    assert [official(row, text).correct for text in ("", "A", "\\boxed{A}", "-", "\\boxed{-}", "none")] == [False] * 6
