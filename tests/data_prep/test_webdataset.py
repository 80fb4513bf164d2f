"""Webdatasets give the rows that their samples hold, read by us or by `datasets`, within the limits of zip files."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pytest

from data_prep import DataError, RowError, Turn, load_rows, read_image
from data_prep.loading import scan_rows
from tests.builders import picture

IMAGES = [picture(56, 56, seed=seed) for seed in range(4)]
ASKED = {"question": "Which?", "answer": "7"}


def archive(file: Path, members: dict[str, bytes | dict | str]) -> Path:
    """A tar file of these members, in this order."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for name, value in members.items():
            data = value if isinstance(value, bytes) else value if isinstance(value, str) else json.dumps(value)
            data = data.encode() if isinstance(data, str) else data
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


SET = {
    "0001.jpg": IMAGES[0],
    "0001.json": ASKED | {"level": 2},
    "0002.10.png": IMAGES[2],
    "0002.2.png": IMAGES[1],
    "0002.json": ASKED | {"image": "elsewhere/x.png"},
    "0003.json": ASKED,
    "more/0001.png": IMAGES[3],
    "more/0001.txt": "How many?",
    "more/0001.cls": "3",
}


def shown(rows) -> list[tuple]:
    return [(row.id, row.problem, row.answer, [read_image(image) for image in row.images]) for row in rows]


EXPECTED = [
    ("0001", "<image>Which?", "7", [IMAGES[0]]),
    ("0002", "<image><image>Which?", "7", [IMAGES[1], IMAGES[2]]),
    ("0003", "Which?", "7", []),
    ("more/0001", "<image>How many?", "3", [IMAGES[3]]),
]


def test_a_tar_gives_its_samples(tmp_path):
    rows = list(load_rows(archive(tmp_path / "set.tar", SET)))
    assert shown(rows) == EXPECTED
    assert [dict(row.metadata) for row in rows] == [{"level": 2}, {}, {}, {}]
    # What a check leaves beside the images is no sample.
    cache = rows[0].images[0].parent / ".vlm_mhpo"
    cache.mkdir()
    (cache / "rows-0.json").write_text("{}")
    assert shown(load_rows(tmp_path / "set.tar")) == EXPECTED


def test_the_datasets_library_reads_the_same_rows(tmp_path):
    import datasets

    same_kind = {name: value for name, value in SET.items() if not name.startswith(("0003", "more"))}
    same_kind["0002.json"] = ASKED | {"level": 3}
    same_kind["0001.2.png"] = same_kind["0001.10.png"] = IMAGES[3]
    same_kind["0002.jpg"] = IMAGES[3]
    file = archive(tmp_path / "set.tar", dict(sorted(same_kind.items())))
    table = datasets.load_dataset("webdataset", data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    assert "__key__" in table.column_names
    table.save_to_disk(tmp_path / "saved")
    theirs, ours = list(load_rows(tmp_path / "saved")), list(load_rows(file))
    assert shown(theirs) == shown(ours) and len(ours) == 2
    assert [row.metadata for row in theirs] == [row.metadata for row in ours]


@pytest.mark.parametrize("source", ["{000..002}.tar", "*.tar", "."])
def test_shards_are_read_in_order(tmp_path, source):
    for number in range(3):
        members = {f"{number}.png": IMAGES[number], f"{number}.json": ASKED}
        archive(tmp_path / "wds" / f"{number:03d}.tar", members)
    expected = [(str(number), "<image>Which?", "7", [IMAGES[number]]) for number in range(3)]
    assert shown(load_rows(str(tmp_path / "wds" / source))) == expected


def test_a_folder_of_shards_has_splits_and_the_tables_that_img2dataset_writes_are_not_its_rows(tmp_path):
    for name in ("train-000", "train-001", "test-000"):
        archive(tmp_path / "wds" / f"{name}.tar", {f"{name}.png": IMAGES[0], f"{name}.json": ASKED})
        (tmp_path / "wds" / f"{name}_stats.json").write_text('{"count": 1}')
    assert [row.id for row in load_rows(f"{tmp_path / 'wds'}@train")] == ["train-000", "train-001"]
    assert [row.split for row in load_rows(tmp_path / "wds")] == ["test", "train", "train"]
    with pytest.raises(DataError, match="no split 'dev'; it has: test, train"):
        list(load_rows(f"{tmp_path / 'wds'}@dev"))


def test_a_shard_that_is_missing_is_named(tmp_path):
    archive(tmp_path / "000.tar", SET)
    with pytest.raises(DataError, match=r"001\.tar"):
        load_rows(str(tmp_path / "{000..001}.tar"))
    with pytest.raises(DataError, match=r"\{5\.\.1\} counts from 5 to 1"):
        load_rows(str(tmp_path / "{5..1}.tar"))
    with pytest.raises(DataError, match="100,000"):
        load_rows(str(tmp_path / "{0..100000}.tar"))


def test_the_json_says_which_images_are_shown_and_the_others_are_not_lost_in_silence(tmp_path):
    members = {
        "a.b.png": IMAGES[0],
        "a.q.png": IMAGES[1],
        "a.json": ASKED | {"images": ["a.q.png", "b.png"], "question": "See <image 2>, <image 1>."},
    }
    (row,) = load_rows(archive(tmp_path / "one.tar", members))
    assert [read_image(image) for image in row.images] == [IMAGES[0], IMAGES[1]]
    assert row.problem == "See <image>, <image>."
    worked = archive(tmp_path / "two.tar", members | {"a.worked.png": IMAGES[2]})
    (error,) = scan_rows(worked)
    assert (error.field, "ignore_columns=[worked.png]" in str(error)) == ("worked.png", True)
    (row,) = load_rows(worked, ignore_columns=["worked.png"])
    assert len(row.images) == 2


def test_chats_named_texts_and_columns_of_a_user_are_read(tmp_path):
    messages = [
        {"role": "user", "content": "<image>What?"},
        {"role": "assistant", "content": "A bar."},
        {"role": "user", "content": "How many?"},
    ]
    members = {
        "a.jpg": IMAGES[0],
        "a.json": {"messages": messages, "solution": "7"},
        "b.jpg": IMAGES[1],
        "b.question.txt": "Which?",
        "b.answer.txt": "7\n",
    }
    chat, texts = load_rows(archive(tmp_path / "set.tar", members))
    assert (chat.earlier_turns, chat.problem) == (
        (Turn("user", "<image>What?"), Turn("assistant", "A bar.")), "How many?")  # fmt: skip
    assert (texts.problem, texts.answer) == ("<image>Which?", "7")
    own = archive(tmp_path / "own.tar", {"a.jpg": IMAGES[0], "a.json": {"ask": "Which?", "final": "7"}})
    (row,) = load_rows(own, columns={"problem": "ask", "answer": "final"})
    assert shown([row]) == [("a", "<image>Which?", "7", [IMAGES[0]])]


@pytest.mark.parametrize(
    ("members", "field", "words"),
    [
        ({"a.json": "{", "a.jpg": IMAGES[0]}, "a.json", "cannot be read"),
        ({"a.json": "[" * 100_000, "a.jpg": IMAGES[0]}, "a.json", "cannot be read"),
        ({"a.json": "[1]", "a.jpg": IMAGES[0]}, "json", "no object"),
        ({"a.json": b"\xff\xfe\xff", "a.jpg": IMAGES[0]}, "a.json", "cannot be read"),
        ({"a.json": ASKED | {"x": "y" * 2**22}, "a.jpg": IMAGES[0]}, "a.json", "more than 4,194,304 bytes"),
        ({"a.json": ASKED, "a.mp4": b"x", "a.jpg": IMAGES[0]}, "video", "holds videos"),
        ({"a.json": {"question": "Which?"}, "a.jpg": IMAGES[0]}, "answer", "missing"),
        ({"a.txt": "A cat.", "a.jpg": IMAGES[0]}, "answer", "missing"),
    ],
)
def test_a_bad_sample_is_one_bad_row(tmp_path, members, field, words):
    good = {"z.jpg": IMAGES[1], "z.json": ASKED}
    error, row = scan_rows(archive(tmp_path / "set.tar", members | good))
    assert isinstance(error, RowError) and (error.field, words in str(error)) == (field, True), str(error)
    assert "'a'" in str(error) and row.id == "z"


@pytest.mark.parametrize("name", ["../a.jpg", "/a.jpg", "a\\b.jpg"])
def test_a_member_that_leaves_the_folder_is_refused_whole(tmp_path, name):
    archive(tmp_path / "wds" / "000.tar", {name: IMAGES[0], "a.json": ASKED})
    with pytest.raises(DataError, match="is not unpacked"):
        list(load_rows(str(tmp_path / "wds" / "{000..000}.tar")))
    with pytest.raises(DataError, match="is not unpacked"):
        list(load_rows(tmp_path / "wds"))
    assert [path.name for path in tmp_path.iterdir()] == ["wds"]


def test_folders_of_other_layouts_are_still_theirs(tmp_path):
    # One image file has the name of the table, and an archive of images lies beside a table.
    (tmp_path / "rows.png").write_bytes(IMAGES[0])
    (tmp_path / "rows.jsonl").write_text(json.dumps(ASKED | {"image": "rows.png"}))
    archive(tmp_path / "images.tar", {"x.png": IMAGES[0]})
    assert shown(load_rows(tmp_path)) == [(f"{tmp_path.name}/rows/1", "<image>Which?", "7", [IMAGES[0]])]
