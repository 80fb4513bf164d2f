"""Rows of tables hold handles: little memory, the same bytes in any process, and never another row's image."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import datasets
import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from data_prep import ImageLimits, load_rows, open_image, read_image
from data_prep.images import stored
from data_prep.images.opening import ImageError
from data_prep.images.stored import StoredImage
from data_prep.prepare.parts import RowWriter, record_of
from data_prep.schema import make_row
from tests.builders import picture


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    """A cache folder of the test's own, and no memory of what another test read."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(stored, "_groups_kept", stored._GroupsKept(stored.KEPT_BYTES))
    for kept in (stored._footer, stored._groups, stored._copied_column):
        kept.cache_clear()


def images_of(count: int, seed: int = 0) -> list[bytes]:
    return [picture(28, 28, seed=seed + index) for index in range(count)]


def table_at(path: Path, images: list[bytes], **options) -> Path:
    """A parquet file of one image a row; every third row has none, and every fourth has two."""
    cells = [[] if i % 3 == 2 else [{"bytes": image, "path": None}] * (2 if i % 4 == 3 else 1)
             for i, image in enumerate(images)]  # fmt: skip
    columns = {"problem": [f"Find {i}." for i in range(len(images))], "answer": ["7"] * len(images), "images": cells}
    pyarrow.parquet.write_table(pyarrow.table(columns), path, **options)
    return path


def read_all(rows) -> list[tuple[bytes, ...]]:
    return [tuple(read_image(image) for image in row.images) for row in rows]


def expected_of(images: list[bytes]) -> list[tuple[bytes, ...]]:
    return [() if i % 3 == 2 else (image,) * (2 if i % 4 == 3 else 1) for i, image in enumerate(images)]


@pytest.mark.parametrize("max_group_bytes", [stored.MAX_GROUP_BYTES, 1], ids=["by group", "by copy"])
@pytest.mark.parametrize("options", [{}, {"row_group_size": 7}, {"row_group_size": 1, "compression": "none"}])
def test_every_row_gives_its_own_images_in_any_order(tmp_path, monkeypatch, options, max_group_bytes):
    monkeypatch.setattr(stored, "MAX_GROUP_BYTES", max_group_bytes)
    images = images_of(50)
    rows = list(load_rows(table_at(tmp_path / "rows.parquet", images, **options)))
    assert {type(image) for row in rows for image in row.images} == {StoredImage}
    assert read_all(rows) == expected_of(images)
    order = np.random.default_rng(0).permutation(50).tolist()
    assert read_all([rows[index] for index in order]) == [expected_of(images)[index] for index in order]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda row: read_all([row])[0], rows * 4)) == expected_of(images) * 4


def test_a_copy_lies_beside_the_data_or_in_the_users_cache_and_is_made_once(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MAX_GROUP_BYTES", 1)
    for folder in ("writable", "closed"):
        (tmp_path / folder).mkdir()
        rows = list(load_rows(table_at(tmp_path / folder / "rows.parquet", images_of(5, seed=len(folder)))))
        if folder == "closed":
            # A file in the place of the folder: permissions do not stop the user root.
            (tmp_path / folder / ".vlm_mhpo").write_text("")
        read_all(rows)
    copies = sorted(path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*.arrow"))
    assert copies == [("cache", "vlm_mhpo"), ("writable", ".vlm_mhpo")]
    monkeypatch.setattr(stored, "_copy", None)
    stored._copied_column.cache_clear()
    assert read_all(rows) == expected_of(images_of(5, seed=len("closed")))


def test_processes_that_want_the_same_copy_at_once_all_get_it(tmp_path, monkeypatch):
    images = images_of(60)
    rows = list(load_rows(table_at(tmp_path / "rows.parquet", images)))
    with ProcessPoolExecutor(4, mp_context=multiprocessing.get_context("fork"), initializer=only_copies) as processes:
        found = list(processes.map(read_all, [rows] * 4))
    assert found == [expected_of(images)] * 4
    assert len(list(tmp_path.rglob("*.arrow"))) == 1


def only_copies() -> None:
    stored.MAX_GROUP_BYTES = 1


def test_a_row_crosses_to_another_process_as_a_small_handle(tmp_path):
    images = [picture(280, 280, seed=index) for index in range(4)]
    rows = list(load_rows(table_at(tmp_path / "rows.parquet", images)))
    packed = pickle.dumps(rows)
    assert len(packed) < 0.2 * sum(map(len, images))
    script = (
        "import pickle, sys, hashlib, data_prep\n"
        "rows = pickle.load(sys.stdin.buffer)\n"
        "print(*[hashlib.md5(data_prep.read_image(image)).hexdigest() for row in rows for image in row.images])"
    )
    done = subprocess.run([sys.executable, "-c", script], input=packed, capture_output=True, check=True)
    import hashlib

    expected = [hashlib.md5(image).hexdigest() for row in expected_of(images) for image in row]
    assert done.stdout.decode().split() == expected


def test_equal_images_are_equal_wherever_they_lie(tmp_path):
    first, second = images_of(2)
    one, other = (
        next(load_rows(table_at(tmp_path / name, [data, second]))).images[0]
        for name, data in (("a.parquet", first), ("b.parquet", first))
    )
    assert one == other and hash(one) == hash(other)
    assert one != next(load_rows(table_at(tmp_path / "c.parquet", [second]))).images[0]


@pytest.mark.parametrize("max_group_bytes", [stored.MAX_GROUP_BYTES, 1], ids=["by group", "by copy"])
@pytest.mark.parametrize("seen_before", [True, False])
def test_a_table_that_changes_under_a_run_is_an_error_and_never_another_image(
    tmp_path, monkeypatch, max_group_bytes, seen_before
):
    monkeypatch.setattr(stored, "MAX_GROUP_BYTES", max_group_bytes)
    images = images_of(12)
    path = table_at(tmp_path / "rows.parquet", images)
    rows = list(load_rows(path))
    if seen_before:
        assert read_all(rows) == expected_of(images)
    table_at(path, images[::-1])
    with pytest.raises(
        ImageError, match=r"rows\.parquet, row 1, images.*changed since its rows were read; start again"
    ):
        open_image(rows[0].images[0])
    table_at(path, images[:1])
    with pytest.raises(ImageError, match=r"rows\.parquet, row 11, images.*changed since its rows were read"):
        open_image(rows[10].images[0])
    path.write_bytes(b"no table at all")
    with pytest.raises(ImageError, match=r"rows\.parquet, row 1, images"):
        open_image(rows[0].images[0])
    path.unlink()
    with pytest.raises(ImageError, match=r"rows\.parquet, row 1, images: cannot be read \(No such file"):
        open_image(rows[0].images[0])


def test_a_table_that_was_only_touched_or_written_anew_with_the_same_images_goes_on(tmp_path):
    images = images_of(6)
    path = table_at(tmp_path / "rows.parquet", images)
    rows = list(load_rows(path))
    os.utime(path, ns=(1, 1))
    assert read_all(rows) == expected_of(images)
    table_at(path, images, row_group_size=2)
    assert read_all(rows) == expected_of(images)


def test_a_damaged_copy_is_an_error_and_never_another_image(tmp_path, monkeypatch):
    monkeypatch.setattr(stored, "MAX_GROUP_BYTES", 1)
    images = images_of(4)
    rows = list(load_rows(table_at(tmp_path / "rows.parquet", images)))
    read_all(rows)
    (copy,) = tmp_path.rglob("*.arrow")
    whole = copy.read_bytes()
    at = whole.index(images[0]) + 40
    copy.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    stored._copied_column.cache_clear()
    with pytest.raises(ImageError, match=r"row 1, images"):
        read_image(rows[0].images[0])


def test_images_that_stand_deep_inside_a_row_are_handles_too(tmp_path):
    image = picture(28, 28)
    content = [{"type": "text", "text": "How many?", "image": None}, {"type": "image", "text": None, "image": image}]
    record = {"prompt": [{"role": "user", "content": content}], "answer": "7"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([record]), tmp_path / "rows.parquet")
    (row,) = load_rows(tmp_path / "rows.parquet")
    assert row.images[0].keys == ("prompt", 0, "content", 1, "image")
    assert read_image(row.images[0]) == image


def test_a_hub_table_is_mapped_and_its_rows_cross_to_other_processes(tmp_path, monkeypatch):
    images = images_of(5)
    features = datasets.Features(
        image=datasets.Image(), problem=datasets.Value("string"), answer=datasets.Value("string")
    )
    cells = {"image": [{"bytes": data, "path": None} for data in images], "problem": ["?"] * 5, "answer": ["7"] * 5}
    datasets.Dataset.from_dict(cells, features=features).save_to_disk(tmp_path / "hub")
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.load_from_disk(tmp_path / "hub"))
    rows = list(load_rows("org/name@train"))
    assert {type(row.images[0]) for row in rows} == {StoredImage}
    assert read_all(pickle.loads(pickle.dumps(rows))) == [(image,) for image in images]
    assert str(rows[1].images[0]) == "org/name, row 2, image"


def test_the_limit_of_bytes_holds_for_stored_images(tmp_path):
    (row,) = load_rows(table_at(tmp_path / "rows.parquet", images_of(1)))
    with pytest.raises(ImageError, match=r"rows\.parquet, row 1, images: larger than 10 bytes"):
        read_image(row.images[0], ImageLimits(max_bytes=10))


def test_what_prepare_writes_is_read_by_row_group_without_a_copy(tmp_path):
    images = [np.random.default_rng(index).bytes(300_000) for index in range(256)]
    with RowWriter(tmp_path / "train.parquet") as writer:
        writer.write(
            [record_of(make_row(id=str(i), problem="?", answer="7", images=[b])) for i, b in enumerate(images)]
        )
    rows = list(load_rows(tmp_path / "train.parquet"))
    for index in (255, 0, 128):
        assert read_image(rows[index].images[0]) == images[index]
    assert not list(tmp_path.rglob("*.arrow"))


# ---- memory ----------------------------------------------------------------------------------------------------

NUM_ROWS, ROW_BYTES = 1000, 200_000
MEASURE = """
import sys
from data_prep import load_rows, read_image
import pyarrow.parquet

def resident():  # bytes of memory of this process' own; pages of mapped files belong to the system's cache
    return 1024 * int(next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()[1])

before, peak, rows = resident(), 0, []
for row in load_rows(sys.argv[1]):
    rows.append([read_image(image) for image in row.images] if sys.argv[2] == "bytes" else row.images)
    peak = max(peak, resident())
if sys.argv[2] == "handles":
    assert all(len(read_image(images[0])) == 200_000 for images in rows[::-37])
print(resident() - before, peak - before)
"""


@pytest.fixture(scope="module")
def large_tables(tmp_path_factory) -> dict[str, Path]:
    """Tables of incompressible images: one row group of two huge pages, and groups of 50 rows (10 MB)."""
    folder = tmp_path_factory.mktemp("large")
    random = np.random.default_rng(0)
    cells = [[{"bytes": random.bytes(ROW_BYTES), "path": None}] for _ in range(NUM_ROWS)]
    table = pyarrow.table({"problem": ["<image>?"] * NUM_ROWS, "answer": ["7"] * NUM_ROWS, "images": cells})
    for name, size in (("one group", None), ("groups of 50", 50)):
        pyarrow.parquet.write_table(table, folder / f"{name}.parquet", row_group_size=size)
    return {path.stem: path for path in folder.glob("*.parquet")}


@pytest.mark.parametrize("name", ["one group", "groups of 50"])
def test_a_rank_holds_a_small_part_of_the_bytes(large_tables, name):
    held, peak = {}, {}
    for what in ("handles", "bytes"):
        command = [sys.executable, "-c", MEASURE, str(large_tables[name]), what]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        held[what], peak[what] = (int(value) / (NUM_ROWS * ROW_BYTES) for value in done.stdout.split())
    # The control: rows that hold bytes hold all of them.
    assert held["bytes"] > 0.95
    # One row group is kept at hand, of 10 of 200 MB; it is 16 MiB at the most, however long the file is.
    assert held["handles"] < 0.2
    # While rows are read, some groups are at hand, however long the file is; of one group it is a page, and pyarrow's
    # writer makes pages of up to 1024 values.
    assert peak["handles"] < (0.4 if name == "groups of 50" else 0.8 * peak["bytes"])


def test_rows_of_a_small_table_in_any_order_unpack_each_row_group_once(tmp_path, monkeypatch):
    encoded = images_of(24)
    table = pyarrow.table({"problem": ["?"] * 24, "answer": ["1"] * 24, "images": [[one] for one in encoded]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=4)
    rows, read, real = list(load_rows(tmp_path / "rows.parquet")), [], stored._group_column
    monkeypatch.setattr(stored, "_group_column", lambda *place: read.append(place[2]) or real(*place))
    order = [(7 * step) % 24 for step in range(48)]
    assert [read_image(rows[index].images[0]) for index in order] == [encoded[index] for index in order]
    assert sorted(read) == [0, 1, 2, 3, 4, 5]


def test_no_more_row_groups_are_kept_than_fit(tmp_path, monkeypatch):
    encoded = images_of(6)
    table = pyarrow.table({"problem": ["?"] * 6, "answer": ["1"] * 6, "images": [[one] for one in encoded]})
    pyarrow.parquet.write_table(table, tmp_path / "rows.parquet", row_group_size=1)
    rows, read, real = list(load_rows(tmp_path / "rows.parquet")), [], stored._group_column
    monkeypatch.setattr(stored, "_group_column", lambda *place: read.append(place[2]) or real(*place))
    monkeypatch.setattr(stored, "_groups_kept", stored._GroupsKept(1))
    assert [read_image(rows[index].images[0]) for index in (0, 0, 1, 0)] == [encoded[i] for i in (0, 0, 1, 0)]
    # The one that was read last is kept, whatever its size.
    assert read == [0, 1, 0]
