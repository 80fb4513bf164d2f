"""The check of all rows is done once for a state of data and processor, and again for any other state."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from data_prep import load_rows
from tests.builders import picture, problem_row
from vlm_mhpo.errors import PromptError, TrainingError
from vlm_mhpo.prompts import builder as building
from vlm_mhpo.prompts import checked
from vlm_mhpo.prompts.builder import OverlongPrompt
from vlm_mhpo.prompts.rows import usable_rows
from vlm_mhpo.runtime import ranks


@pytest.fixture
def model(tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tiny("qwen2_5_vl")


@pytest.fixture
def opened(monkeypatch) -> list:
    """Every image that is opened for a prompt."""
    seen = []
    original = building.open_image

    def counting(image):
        seen.append(image)
        return original(image)

    monkeypatch.setattr(building, "open_image", counting)
    return seen


@pytest.fixture
def table(tmp_path, model) -> Path:
    """Three rows with an image of 1, 81 and 4 tokens, the images in files."""
    (tmp_path / "data").mkdir()
    lines = []
    for index, side in enumerate((1, 9, 2)):
        (tmp_path / f"data/{index}.png").write_bytes(picture(side * 28, side * 28, seed=index))
        lines.append({"id": f"r{index}", "problem": "<image>What is it?", "answer": "7", "images": f"{index}.png"})
    (tmp_path / "data/rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "data/rows.jsonl"


def check(model, rows, *, overlong: str = "filter", **options) -> list[str]:
    builder = model.builder(**({"max_prompt_length": 60} | options))
    return [row.id for row in usable_rows(list(rows), builder, overlong=overlong, what="training")]


def test_the_second_start_opens_nothing_and_keeps_the_same_rows(model, table, opened, capsys):
    assert check(model, load_rows(table)) == ["r0", "r2"]
    assert len(opened) == 3
    first = capsys.readouterr().out
    opened.clear()
    assert check(model, load_rows(table)) == ["r0", "r2"]
    assert opened == []
    assert capsys.readouterr().out == first and "1 of 3 training rows are left out: row r1" in first
    assert [path.parent for path in table.parent.rglob("rows-*.json")] == [table.parent / ".vlm_mhpo"]


def test_rows_that_must_fit_are_checked_again_to_name_the_one_that_does_not(model, table, opened):
    check(model, load_rows(table))
    with pytest.raises(OverlongPrompt, match="row r1"):
        check(model, load_rows(table), overlong="error")
    assert check(model, load_rows(table), overlong="error", max_prompt_length=4096) == ["r0", "r1", "r2"]
    opened.clear()
    assert check(model, load_rows(table), overlong="error", max_prompt_length=4096) == ["r0", "r1", "r2"]
    assert opened == []


def test_a_changed_image_file_is_opened_again(model, table, opened):
    check(model, load_rows(table))
    image = table.parent / "0.png"
    state = image.stat()
    image.write_bytes(picture(28, 28, seed=77)[:40].ljust(state.st_size, b"\0"))
    os.utime(image, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(PromptError, match="row r0"):
        check(model, load_rows(table))


def test_a_changed_image_in_a_table_is_opened_again(model, tmp_path, opened):
    def written(seed: int) -> Path:
        cells = [{"bytes": picture(28, 28, seed=seed + index), "path": None} for index in range(3)]
        columns = {"problem": ["<image>?"] * 3, "answer": ["7"] * 3, "image": cells}
        pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "rows.parquet")
        return tmp_path / "rows.parquet"

    for seed, expected in ((0, 3), (0, 0), (1, 3), (0, 0)):
        opened.clear()
        check(model, load_rows(written(seed)))
        assert len(opened) == expected


@pytest.mark.parametrize("change", ["processor", "template", "vocabulary", "limit", "instruction", "system", "rows"])
def test_any_other_state_is_checked_again(model, table, opened, monkeypatch, change):
    check(model, load_rows(table))
    opened.clear()
    rows, options, codec = list(load_rows(table)), {}, model.codec
    if change == "processor":
        monkeypatch.setattr(codec.processor.image_processor, "size", {"shortest_edge": 784, "longest_edge": 3136})
    elif change == "template":
        monkeypatch.setattr(codec.processor, "chat_template", codec.processor.chat_template + " ")
    elif change == "vocabulary":
        grown = type(codec.tokenizer)(tokenizer_object=codec.tokenizer.backend_tokenizer.from_str(
            codec.tokenizer.backend_tokenizer.to_str().replace('"content":"<|im_end|>"', '"content":"<|im_end_|>"')
        ))  # fmt: skip
        before = checked.name_of(rows, model.builder())
        builder = model.builder()
        builder.codec = replace(codec, tokenizer=grown)
        assert checked.name_of(rows, builder) != before
        return
    elif change == "rows":
        rows = [replace(rows[0], problem=rows[0].problem + "!"), *rows[1:]]
    else:
        options = {"limit": {"max_prompt_length": 61}, "instruction": {"instruction": " Think."},
                   "system": {"system_prompt": "You count."}}[change]  # fmt: skip
    check(model, rows, **options)
    assert len(opened) == 3


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"dropped": [0, 2], "reason": "", "sum": ""}', b"\xff\xfe"])
def test_a_damaged_file_is_not_believed(model, table, opened, damage):
    check(model, load_rows(table))
    (kept,) = table.parent.rglob("rows-*.json")
    whole = kept.read_bytes()
    for content in (damage, whole.replace(b"[1]", b"[0]"), whole.replace(b"[1]", b"[7]"), whole[:-2]):
        kept.write_bytes(content)
        opened.clear()
        assert check(model, load_rows(table)) == ["r0", "r2"]
        assert len(opened) == 3
        # It is whole again.
        assert kept.read_bytes() == whole
    assert {path.name for path in kept.parent.iterdir()} == {kept.name}


def test_what_cannot_be_kept_beside_the_data_is_kept_in_the_users_cache(model, table, opened, tmp_path):
    (table.parent / ".vlm_mhpo").write_text("")
    check(model, load_rows(table))
    opened.clear()
    assert check(model, load_rows(table)) == ["r0", "r2"]
    assert opened == [] and len(list((tmp_path / "cache").rglob("rows-*.json"))) == 1


def test_where_nothing_can_be_kept_every_start_checks(model, table, opened, tmp_path):
    (table.parent / ".vlm_mhpo").write_text("")
    (tmp_path / "cache").write_text("")
    for _ in range(2):
        assert check(model, load_rows(table)) == ["r0", "r2"]
    assert len(opened) == 6


def test_a_failed_check_is_not_kept(model, table, opened):
    (table.parent / "2.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    for _ in range(2):
        with pytest.raises(PromptError, match="row r2"):
            check(model, load_rows(table))
    assert not list(table.parent.rglob("rows-*.json"))


def test_no_rows_left_is_said_at_every_start(model):
    rows = [problem_row("long", "<image>?", [picture(280, 280)])]
    for _ in range(2):
        with pytest.raises(TrainingError, match=r"no training rows are left after filtering 1; the first.* row long"):
            check(model, rows)


def test_only_the_main_rank_reads_and_writes(model, table, monkeypatch):
    monkeypatch.setattr(ranks, "is_main", lambda: False)
    monkeypatch.setattr(checked, "name_of", None)
    monkeypatch.setattr(checked, "remember", None)
    assert check(model, load_rows(table)) == ["r0", "r2"]
    # What the main rank recalled counts on all.
    monkeypatch.setattr(ranks, "gather_objects", lambda value: [([0], "said before")])
    assert check(model, load_rows(table)) == ["r1", "r2"]


def test_images_are_really_decoded_by_the_first_check(model, table, monkeypatch):
    decoded = []
    original = Image.Image.convert
    monkeypatch.setattr(Image.Image, "convert", lambda self, *a, **k: decoded.append(1) or original(self, *a, **k))
    check(model, load_rows(table))
    assert len(decoded) >= 3
