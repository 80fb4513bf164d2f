"""Images and choices of a row are read, or the row is refused by the name of its column; never left out in silence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data_prep import RowError, load_rows, read_image
from rewards import verify
from tests.builders import picture

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


@pytest.mark.parametrize("gold", ["7", "E", "F. black", 4, "none of them"])
def test_a_gold_that_names_no_choice_is_refused_and_says_what_to_do(tmp_path, gold):
    with pytest.raises(RowError, match=r"names none of the 4 choices: give a letter, .* or a kind"):
        list(load_rows(table(tmp_path, ".jsonl", choices=CHOICES, answer=gold)))
