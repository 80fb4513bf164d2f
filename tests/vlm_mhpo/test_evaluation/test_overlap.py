"""Rows that training has seen are found by image, by an image saved anew, and by question."""

import io
import json

import pytest
from PIL import Image, ImageDraw

from data_prep import RowError
from tests.vlm_mhpo.test_evaluation.cases import item, result, row
from vlm_mhpo.config import DataConfig
from vlm_mhpo.evaluation.overlap import read_training, shared_rows

LONG = "A train leaves the station at noon and drives for three hours at sixty miles an hour, how far is it then?"


def drawing(number: int) -> Image.Image:
    """A figure whose form depends on its number."""
    image = Image.new("RGB", (160, 120), "white")
    pen = ImageDraw.Draw(image)
    for index in range(6):
        place = 7919 * (number + 1) * (index + 1)
        x, y = place % 130, place // 130 % 90
        (pen.ellipse if place % 2 else pen.rectangle)((x, y, x + 25, y + 20), outline="black", width=3)
    return image


def encoded(image: Image.Image, format: str = "PNG", **options) -> bytes:
    stream = io.BytesIO()
    image.save(stream, format, **options)
    return stream.getvalue()


def training(folder):
    """Three training rows on disk: drawings 0 and 1, and a text."""
    folder.mkdir()
    for number in (0, 1):
        (folder / f"{number}.png").write_bytes(encoded(drawing(number)))
    rows = [
        {"images": ["0.png"], "problem": "<image>Find x.", "answer": "3"},
        {"images": ["1.png"], "problem": "<image>Find y.", "answer": "4"},
        {"images": [], "problem": LONG, "answer": "180"},
    ]
    (folder / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    return str(folder / "train.jsonl")


def test_each_shared_row_is_found_once_by_its_first_sign(tmp_path):
    rows = [
        row("same", images=[encoded(drawing(0), "WEBP", lossless=True)]),
        row("near", images=[encoded(drawing(1).resize((120, 90)), "JPEG", quality=80)]),
        row("new", images=[encoded(drawing(5))]),
        row("text"),
    ]
    asked = row("asked", answer="180")
    rows.append(type(asked)(**{name: getattr(asked, name) for name in asked.__slots__} | {"problem": LONG.upper()}))
    found = shared_rows(rows, read_training(training(tmp_path / "train"), DataConfig(train="-")))
    assert found.ids == {"same_picture": ("same",), "near_picture": ("near",), "same_question": ("asked",)}
    assert found.num_train_rows == 3

    judged = [item(one.id, mark) for one, mark in zip(rows, "++-+-", strict=True)]
    record = result(judged, shared=found).overlap
    assert (record.same_picture, record.near_picture, record.same_question) == (1, 1, 1)
    assert record.ids == ("same", "near", "asked")
    # "new" is wrong and "text" right.
    assert (record.num_clean_rows, record.clean.accuracy) == (2, 0.5)


def test_training_on_the_benchmark_itself_leaves_nothing_clean(tmp_path):
    rows = [row(str(number), images=[encoded(drawing(number))]) for number in (0, 1)]
    found = shared_rows(rows, read_training(training(tmp_path / "train"), DataConfig(train="-")))
    record = result([item("0", "+"), item("1", "-")], shared=found).overlap
    assert (record.same_picture, record.num_clean_rows, record.clean) == (2, 0, None)


def test_the_training_rows_are_read_as_a_run_reads_its_own(tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "0.png").write_bytes(encoded(drawing(0)))
    rows = [
        {"pics": ["0.png"], "ask": "<image>Find x.", "goal": ["3", "5"], "worked": ["none.png"]},
        {"pics": ["0.png"], "ask": "<image>Find y.", "goal": None, "worked": ["none.png"]},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    data = DataConfig(
        train="-",
        columns={"images": "pics", "problem": "ask", "answer": "goal"},
        ignore_columns=["worked"],
        image_root=str(tmp_path / "images"),
        answer_lists="all",
        on_bad_row="skip",
        max_bad_share=0.5,
    )
    place = str(tmp_path / "train.jsonl")
    found = shared_rows([row("same", images=[encoded(drawing(0))])], read_training(place, data))
    assert (found.num_train_rows, found.ids["same_picture"]) == (1, ("same",))
    with pytest.raises(RowError, match="answer"):
        read_training(place, data.model_copy(update={"on_bad_row": "error"}))
