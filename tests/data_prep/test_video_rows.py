"""Rows with videos: how tables, chats and samples name them, what `prepare` and the audit make of them."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet
import pytest
from PIL import Image

from data_prep import Row, RowError, load_rows, scan_rows
from data_prep.audit.collect import collect
from data_prep.formats.table import TableFile, row_from_record
from data_prep.prepare.prepare import prepare
from data_prep.schema import make_row
from data_prep.videos.opening import contact_sheet, read_video
from tests.video_files import grey_frames, noisy_frames, video

CLIP, OTHER = video(noisy_frames(8, seed=1)), video(noisy_frames(8, seed=2))


def png(level: int) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(grey_frames(level + 1)[level]).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture
def folder(tmp_path) -> Path:
    (tmp_path / "a.mp4").write_bytes(CLIP)
    (tmp_path / "b.mp4").write_bytes(OTHER)
    for level in range(3):
        (tmp_path / f"{level}.png").write_bytes(png(level))
    return tmp_path


def read(folder: Path, **columns) -> Row:
    return row_from_record({"answer": "7", **columns}, TableFile(folder / "rows.jsonl", "rows", ""), 1, folder)


@pytest.mark.parametrize(
    ("columns", "videos"),
    [
        ({"videos": ["a.mp4", "b.mp4"]}, ["a.mp4", "b.mp4"]),
        ({"video": "a.mp4"}, ["a.mp4"]),
        ({"video": ["a.mp4", "b.mp4"]}, ["a.mp4", "b.mp4"]),
        ({"videos": [{"video": "a.mp4", "fps": 2}]}, ["a.mp4"]),
        ({"videos": [{"path": "a.mp4"}]}, ["a.mp4"]),
        ({"video": ["0.png", "1.png"]}, [("0.png", "1.png")]),
        ({"videos": [["0.png", "1.png"], "a.mp4"]}, [("0.png", "1.png"), "a.mp4"]),
        ({"videos": [{"frames": ["0.png", "1.png"]}]}, [("0.png", "1.png")]),
        ({"videos": []}, []),
        ({"videos": None, "video": ""}, []),
    ],
)
def test_a_column_of_videos_is_read(folder, columns, videos):
    row = read(folder, problem="Which?", **columns)
    found = [tuple(frame.name for frame in v) if isinstance(v, tuple) else v.name for v in row.videos]
    assert found == videos
    assert row.problem == "<video>" * len(videos) + "Which?"


@pytest.mark.parametrize(
    ("columns", "field", "words"),
    [
        ({"videos": ["../a.mp4"]}, "videos", "climbs out"),
        ({"videos": ["/etc/hosts"]}, "videos", "absolute path"),
        ({"videos": ["https://example.org/a.mp4"]}, "videos", "nothing is fetched"),
        ({"video": "c.mp4"}, "video", "does not exist"),
        ({"videos": "a.mp4", "video": "b.mp4"}, "videos", "beside 'video'"),
        ({"videos": [5]}, "videos", "int"),
        ({"videos": [[]]}, "videos", "nor some images"),
        ({"videos": [["0.png", "9.png"]]}, "videos", "does not exist"),
        ({"videos": [[["0.png"]]]}, "videos", "list"),
        ({"videos": ["a.mp4"], "problem": "<video><video>?"}, "problem", r"2 <video> placeholder"),
        ({"clip": "a.mp4"}, "clip", "names a video, and no column of that name is read"),
    ],
)
def test_what_is_no_video_is_a_row_error_of_its_column(folder, columns, field, words):
    with pytest.raises(RowError, match=words) as caught:
        read(folder, **{"problem": "Which?", **columns})
    assert caught.value.field == field


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.mp4"
    outside.write_bytes(CLIP)
    (folder / "link.mp4").symlink_to(outside)
    with pytest.raises(RowError, match="through a link"):
        read(folder, problem="?", videos=["link.mp4"])


def test_where_images_and_videos_stand_is_what_the_text_says(folder):
    row = read(folder, problem="See <video>, then <image>, then <video>.", videos=["a.mp4", "b.mp4"], images=["0.png"])
    assert row.problem == "See <video>, then <image>, then <video>."
    row = read(folder, problem="?", videos=["a.mp4"], images=["0.png"])
    assert row.problem == "<image><video>?"
    assert read(folder, problem="What does the tag <video> do?").problem == "What does the tag <video> do?"


def test_a_chat_shows_videos(folder):
    parts = [{"type": "text", "text": "First "}, {"type": "video", "video": "a.mp4"}, {"type": "text", "text": "then "},
             {"type": "image", "image": "0.png"}, {"type": "video", "video": ["0.png", "1.png"]}]  # fmt: skip
    row = read(folder, messages=[{"role": "user", "content": parts}], solution="<answer>7</answer>")
    assert row.problem == "First <video>then <image><video>"
    assert [row.videos[0].name, *(frame.name for frame in row.videos[1])] == ["a.mp4", "0.png", "1.png"]
    said = [{"role": "user", "content": "?"}, {"role": "assistant", "content": [{"type": "video", "video": "a.mp4"}]}]
    with pytest.raises(RowError, match="only a user shows images"):
        read(folder, messages=[*said, {"role": "user", "content": "?"}], solution="<answer>7</answer>")


def test_a_sample_of_a_webdataset_has_its_videos(tmp_path):
    members = {"x.mp4": CLIP, "x.json": json.dumps({"question": "Which?", "answer": "7"}).encode(),
               "y.0.mp4": CLIP, "y.1.mp4": OTHER, "y.txt": b"Which?", "y.cls": b"3"}  # fmt: skip
    with tarfile.open(tmp_path / "set.tar", "w") as archive:
        for name, data in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    rows = {row.id: row for row in load_rows(tmp_path / "set.tar", format="webdataset")}
    assert [read_video(video) for video in rows["x"].videos] == [CLIP]
    assert [read_video(video) for video in rows["y"].videos] == [CLIP, OTHER]


def test_prepared_rows_hold_their_videos(folder, tmp_path_factory):
    rows = [
        make_row(id="file", problem="?", answer="7", videos=[folder / "a.mp4"]),
        make_row(id="frames", problem="<video><image>?", answer="7", images=[png(0)], videos=[(png(1), png(2))]),
        make_row(id="text", problem="What is 3 + 4?", answer="7"),
        make_row(id="broken", problem="?", answer="7", videos=[CLIP[:700]]),
    ]
    out = tmp_path_factory.mktemp("out") / "set"
    report = prepare(rows, out, max_bad_share=0.5)
    assert [refusal.id for refusal in report.refused] == ["broken"]
    assert report.num_with_images == 2
    found = {row.id: row for row in load_rows(out)}
    assert list(found) == ["file", "frames", "text"]
    assert [read_video(video) for video in found["file"].videos] == [CLIP]
    assert [read_video(video) for video in found["frames"].videos] == [(png(1), png(2))]
    assert found["text"].videos == () and found["frames"].problem == "<video><image>?"
    again = prepare(load_rows(out), tmp_path_factory.mktemp("again") / "set")
    tables = [pyarrow.parquet.read_table(folder / "all.parquet") for folder in (out, again.out_dir)]
    assert tables[0].equals(tables[1])


def test_rows_on_the_same_video_go_to_the_same_side(tmp_path):
    clips = [video(noisy_frames(4, seed=seed)) for seed in range(8)]
    rows = [
        make_row(id=f"{index}/{turn}", problem=f"Question {turn}?", answer="7", videos=[clip])
        for index, clip in enumerate(clips)
        for turn in range(2)
    ]
    prepare(rows, tmp_path / "set", heldout=0.5)
    sides = {row.id: row.split for row in load_rows(tmp_path / "set")}
    assert len({*sides.values()}) == 2
    assert all(sides[f"{index}/0"] == sides[f"{index}/1"] for index in range(8))


def test_the_audit_opens_videos_and_knows_them_again(tmp_path):
    rows = [
        make_row(id="a", problem="?", answer="7", videos=[CLIP]),
        make_row(id="b", problem="Another?", answer="7", videos=[CLIP]),
        make_row(id="broken", problem="?", answer="7", videos=[b"GIF89a"]),
    ]
    found = collect(rows, "set", 0, gold_is_checked=False)
    assert [offence.row.id for offence in found.pictures] == ["broken"]
    a, b, _ = found.records
    assert a.pictures == b.pictures and len(a.pictures) == 1
    assert contact_sheet(OTHER).size == contact_sheet(CLIP).size == (128, 96)


def test_a_bad_video_is_named_by_its_line(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "?", "answer": "7", "video": "no.mp4"}) + "\n")
    (error,) = scan_rows(tmp_path / "rows.jsonl")
    assert isinstance(error, RowError) and (error.row, error.field) == (1, "video")


def test_a_table_of_datasets_with_videos_is_read_undecoded(tmp_path):
    import datasets

    table = datasets.Dataset.from_dict(
        {"question": ["Which?"], "answer": ["7"], "video": [{"bytes": CLIP, "path": None}]},
        features=datasets.Features(
            {"question": datasets.Value("string"), "answer": datasets.Value("string"), "video": datasets.Video()}
        ),
    )
    table.save_to_disk(str(tmp_path / "saved"))
    (row,) = load_rows(tmp_path / "saved")
    assert [read_video(video) for video in row.videos] == [CLIP] and row.problem == "<video>Which?"
