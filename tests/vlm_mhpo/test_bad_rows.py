"""Rows that cannot be used stop a run, or are left out by choice: counted, named, and only up to a share."""

from __future__ import annotations

import json

import pytest

from data_prep import RowError
from tests.builders import picture
from vlm_mhpo.config import DataConfig
from vlm_mhpo.errors import PromptError, TrainingError
from vlm_mhpo.prompts.rows import read_rows, usable_rows

GOOD = {"query": "What is 3 + 4?", "final": "7"}
COLUMNS = {"problem": "query", "answer": "final"}


def table(folder, records) -> str:
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(file)


def data(source: str, **options) -> DataConfig:
    return DataConfig(train=source, columns=COLUMNS, **options)


def test_a_bad_row_stops_or_is_left_out_counted_and_named(tmp_path, capsys):
    source = table(tmp_path, [GOOD] * 3 + [{"query": "What?"}] + [GOOD] * 4)
    with pytest.raises(RowError, match="line 4"):
        read_rows(source, data(source), None, None)
    config = data(source, on_bad_row="skip", max_bad_share=0.125)
    assert len(read_rows(source, config, None, None, skips_bad=True)) == 7
    said = capsys.readouterr().out
    assert "1 of 8 rows" in said and "line 4" in said and "data.on_bad_row=skip" in said


def test_more_than_the_share_stops_all_the_same(tmp_path):
    source = table(tmp_path, [GOOD] * 6 + [{"query": "What?"}] * 2)
    config = data(source, on_bad_row="skip", max_bad_share=0.2)
    with pytest.raises(TrainingError, match=r"2 of 8 rows .*more than data\.max_bad_share=0\.2:\n.*line 7"):
        read_rows(source, config, None, None, skips_bad=True)


def test_an_image_that_does_not_open_is_such_a_row(tmp_path, tiny, capsys):
    (tmp_path / "good.png").write_bytes(picture(56, 56))
    (tmp_path / "broken.png").write_bytes(picture(56, 56)[:60])
    names = ["good.png", "broken.png", "good.png", "good.png"]
    source = table(tmp_path, [GOOD | {"image": name} for name in names])
    rows, builder = read_rows(source, data(source), None, None), tiny("qwen2_5_vl").builder()
    with pytest.raises(PromptError, match=r"broken\.png"):
        usable_rows(rows, builder, overlong="filter", what="training")
    for _ in range(2):  # the second time from what was kept
        assert len(usable_rows(rows, builder, overlong="filter", what="training", max_bad_share=0.25)) == 3
    assert "broken.png" in capsys.readouterr().out
    # What was kept for one share says nothing of a smaller one.
    with pytest.raises(TrainingError, match=r"max_bad_share=0\.1"):
        usable_rows(rows, builder, overlong="filter", what="training", max_bad_share=0.1)
    with pytest.raises(PromptError, match=r"broken\.png"):
        usable_rows(rows, builder, overlong="filter", what="training")
    with pytest.raises(TrainingError, match=r"1 of 4 rows of the training set .*max_bad_share=0\.1"):
        usable_rows(rows[:4], tiny("qwen2_5_vl").builder(instruction="x"), overlong="filter", what="training",
                    max_bad_share=0.1)  # fmt: skip


@pytest.mark.parametrize(("family", "warned"), [("qwen2_5_vl", True), ("qwen2", False)])
def test_a_vision_model_on_texts_alone_is_told(tmp_path, tiny, capsys, family, warned):
    source = table(tmp_path, [GOOD] * 2)
    usable_rows(read_rows(source, data(source), None, None), tiny(family).builder(), overlong="error", what="training")
    assert ("none of the 2 training rows has an image" in capsys.readouterr().out) is warned
