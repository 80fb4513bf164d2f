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


@pytest.mark.parametrize("table", ["train.jsonl", "train.json", "train.csv"])
def test_a_hub_folder_of_a_table_and_captioned_images_is_its_table(tmp_path, table):
    (tmp_path / "data").mkdir()
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "1.png").write_bytes(IMAGES[0])
    (tmp_path / "images" / "1.txt").write_text("A bar.")
    record = json.dumps(ASKED | {"image": "images/1.png"})
    text = {"train.jsonl": record, "train.json": f"[{record}]"}.get(
        table, "question,answer,image\nWhich?,7,images/1.png"
    )
    (tmp_path / "data" / table).write_text(text)
    (row,) = load_rows(tmp_path, image_root=tmp_path)
    assert shown([row]) == [(f"{tmp_path.name}/train/1", "<image>Which?", "7", [IMAGES[0]])]


def test_shards_where_a_hub_keeps_its_files_are_found(tmp_path):
    archive(tmp_path / "data" / "train-000.tar", {"a.png": IMAGES[0], "a.json": ASKED})
    (row,) = load_rows(tmp_path)
    assert (row.split, shown([row])) == ("train", [("a", "<image>Which?", "7", [IMAGES[0]])])


@pytest.mark.parametrize("kind", ["heic", "HEIF", "avif", "jp2", "jxl", "svg", "b.tga", "ppm"])
def test_an_image_that_is_not_opened_is_refused_by_name(tmp_path, kind):
    file = archive(tmp_path / "set.tar", {"a.png": IMAGES[0], "a.json": ASKED, f"a.{kind}": b"x"})
    (error,) = scan_rows(file)
    assert isinstance(error, RowError) and error.field == kind.lower() and "not opened" in str(error)
    (row,) = load_rows(file, ignore_columns=[kind.lower()])
    assert shown([row]) == [("a", "<image>Which?", "7", [IMAGES[0]])]


@pytest.mark.parametrize("name", ["a.{}.png", "{}.png", "images/a.{}.png", "file:///x/a.{}.png"])
def test_messages_name_the_images_of_their_sample(tmp_path, name):
    part = lambda index: {"type": "image", "image": name.format(index)}  # noqa: E731
    chat = [
        {"role": "user", "content": [part(2), {"type": "text", "text": "First?"}]},
        {"role": "assistant", "content": "A bar."},
        {"role": "user", "content": [part(1), {"type": "text", "text": "Second?"}]},
    ]
    members = {"a.1.png": IMAGES[1], "a.2.png": IMAGES[2], "a.json": {"messages": chat, "answer": "5"}}
    (row,) = load_rows(archive(tmp_path / "set.tar", members))
    assert (row.earlier_turns[0].text, row.problem) == ("<image>First?", "<image>Second?")
    assert [read_image(image) for image in row.images] == [IMAGES[2], IMAGES[1]]
    (error,) = scan_rows(archive(tmp_path / "three.tar", members | {"a.3.png": IMAGES[3]}))
    assert isinstance(error, RowError) and error.field == "3.png"


def test_messages_that_name_other_files_show_the_images_in_order(tmp_path):
    content = [{"type": "image_url", "image_url": {"url": "https://x.org/one.png"}}, {"type": "text", "text": "Which?"}]
    members = {"a.jpg": IMAGES[1], "a.json": {"messages": [{"role": "user", "content": content}], "answer": "5"}}
    (row,) = load_rows(archive(tmp_path / "set.tar", members))
    assert shown([row]) == [("a", "<image>Which?", "5", [IMAGES[1]])]


@pytest.mark.parametrize("source", ["train-{000..001}.tar", "train-*.tar", "."])
def test_the_name_of_a_shard_says_its_split_however_it_is_named(tmp_path, source):
    for number in range(2):
        members = {f"{number}.png": IMAGES[number], f"{number}.json": ASKED}
        archive(tmp_path / "wds" / f"train-{number:03d}.tar", members)
    rows = list(load_rows(str(tmp_path / "wds" / source)))
    assert [(row.id, row.split) for row in rows] == [("0", "train"), ("1", "train")]
    assert {row.source for row in rows} == {"wds" if source == "." else "train"}
    assert len(list(load_rows(f"{tmp_path / 'wds' / source}", split="train"))) == 2
    with pytest.raises(DataError, match="no split 'test'"):
        list(load_rows(f"{tmp_path / 'wds' / source}", split="test"))


def test_shards_that_are_only_numbered_have_the_folder_as_their_source(tmp_path):
    archive(tmp_path / "wds" / "000.tar", {"a.png": IMAGES[0], "a.json": ASKED})
    (row,) = load_rows(str(tmp_path / "wds" / "{000..000}.tar"))
    assert (row.source, row.split) == ("wds", "")


@pytest.mark.parametrize("chat", [False, True])
def test_samples_without_images_are_read(tmp_path, chat):
    asked = {"messages": [{"role": "user", "content": "Which?"}], "solution": "7"} if chat else ASKED
    expected = [("1", "Which?", "7", []), ("2", "Which?", "7", [])]
    file = archive(tmp_path / "flat.tar", {"1.json": asked, "2.json": asked})
    assert shown(load_rows(file)) == shown(load_rows(file, format="webdataset")) == expected
    one = archive(tmp_path / "one.tar", {"1.json": asked})
    assert shown(load_rows(one)) == shown(load_rows(one, format="webdataset")) == expected[:1]
    deep = archive(tmp_path / "deep.tar", {"x/1.json": asked, "y/2.json": asked})
    assert [row.id for row in load_rows(deep, format="webdataset")] == ["x/1", "y/2"]
    texts = archive(
        tmp_path / "texts.tar", {"1.txt": "Which?", "1.cls": "7", "2.question.txt": "Which?", "2.answer.txt": "7"}
    )
    assert shown(load_rows(texts)) == expected


def test_a_tar_of_one_sample_is_its_row(tmp_path):
    (row,) = load_rows(archive(tmp_path / "set.tar", {"1.json": ASKED, "1.jpg": IMAGES[0]}))
    assert shown([row]) == [("1", "<image>Which?", "7", [IMAGES[0]])]
    table = [ASKED | {"image": "rows.png"}]
    rows = load_rows(archive(tmp_path / "table.tar", {"rows.json": json.dumps(table), "rows.png": IMAGES[0]}))
    assert shown(rows) == [("table/rows/1", "<image>Which?", "7", [IMAGES[0]])]


@pytest.mark.parametrize("name", ["id", "qid", "question_id"])
def test_an_id_of_the_sample_itself_counts(tmp_path, name):
    (row,) = load_rows(archive(tmp_path / "set.tar", {"1.json": ASKED | {name: "mine"}, "1.jpg": IMAGES[0]}))
    assert row.id == "mine"


@pytest.mark.parametrize(("column", "given"), [("answer", "7"), ("answer", 7), ("ground_truth", "7")])
def test_a_text_that_contradicts_the_json_is_refused(tmp_path, column, given):
    members = {"1.json": {"question": "Which?", column: given}, "1.jpg": IMAGES[0]}
    (error,) = scan_rows(archive(tmp_path / "other.tar", members | {"1.answer.txt": "6"}))
    assert isinstance(error, RowError) and error.field == "answer.txt" and "'6'" in str(error)
    (row,) = load_rows(archive(tmp_path / "same.tar", members | {"1.answer.txt": "7\n"}))
    assert row.answer == "7"
