"""Rows make no request, leave no folder and break no build: a bad one is named by file, line and field."""

import ast
import http.client
import json
import os
import socket
import urllib.request
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import data_prep
from data_prep import DataError, RowError, load_rows, open_image, read_image
from data_prep.formats import hub
from data_prep.images.opening import ImageError, resolve_image_path
from data_prep.loading import scan_rows
from data_prep.prepare.parts import RowWriter, record_of
from data_prep.prepare.prepare import prepare
from data_prep.schema import KINDS, Row, make_row
from tests.builders import picture

# ---- no request ------------------------------------------------------------------------------------------------

ADDRESSES = (
    "http://example.org/a.png",
    "https://example.org/a.png",
    "HTTPS://user:password@example.org:8443/a.png",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::ffff:169.254.169.254]/a.png",
    "http://127.0.0.1:1/a.png",
    "//example.org/a.png",
    "ftp://example.org/a.png",
    "s3://bucket/a.png",
    "gs://bucket/a.png",
    "hf://datasets/org/name/a.png",
    "file:///etc/hostname",
    "file://example.org/share/a.png",
    "data:text/html;base64,PGI+",  # one of an image holds its bytes itself, and is read
    "zip://a.png::http://example.org/a.zip",
    "simplecache::https://example.org/a.png",
    "\\\\example.org\\share\\a.png",
    "git+ssh://example.org/a.png",
)
CELLS = {
    "path": lambda address: address,
    "list": lambda address: [address],
    "struct": lambda address: {"bytes": None, "path": address},
    "verl": lambda address: [{"image": address}],
}


def table_of(folder: Path, records: list[dict], suffix: str) -> Path:
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), file)
    else:
        file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("cell", CELLS)
def test_an_address_in_a_row_is_refused_and_never_asked_for(tmp_path, network_attempts, cell, suffix):
    records = [{"problem": "<image>?", "answer": "7", "images": CELLS[cell](address)} for address in ADDRESSES]
    before = len(network_attempts)
    found = list(scan_rows(table_of(tmp_path, records, suffix)))
    assert [type(row) for row in found] == [RowError] * len(ADDRESSES)
    assert {row.field for row in found} == {"images"}
    assert [row.row for row in found] == list(range(1, len(ADDRESSES) + 1))
    assert len(network_attempts) == before


def test_an_address_in_a_hub_table_is_refused_and_never_asked_for(monkeypatch, network_attempts):
    rows = {
        "image": [{"bytes": None, "path": address} for address in ADDRESSES],
        "problem": ["?"] * len(ADDRESSES),
        "answer": ["7"] * len(ADDRESSES),
    }
    features = {"image": datasets.Image(), "problem": datasets.Value("string"), "answer": datasets.Value("string")}
    table = datasets.Dataset.from_dict(rows, datasets.Features(features), split="train")
    monkeypatch.setattr(hub, "_load", lambda *_: table)
    before = len(network_attempts)
    found = list(scan_rows("org/name"))
    assert [type(row) for row in found] == [RowError] * len(ADDRESSES)
    assert len(network_attempts) == before


@pytest.mark.parametrize("address", ADDRESSES)
def test_an_address_is_no_data_source(address, network_attempts):
    before = len(network_attempts)
    with pytest.raises(DataError):
        list(load_rows(address))
    assert len(network_attempts) == before


def test_the_fixture_sees_and_stops_every_usual_way_out(network_attempts):
    before = len(network_attempts)
    ways = (
        lambda: socket.create_connection(("93.184.216.34", 80), timeout=1),
        lambda: raw.connect(("93.184.216.34", 80)),
        lambda: raw.connect_ex(("93.184.216.34", 80)),
        lambda: socket.getaddrinfo("example.org", 80),
        lambda: socket.gethostbyname("example.org"),
        lambda: urllib.request.urlopen("http://example.org", timeout=1),
        lambda: http.client.HTTPSConnection("example.org", timeout=1).request("GET", "/"),
    )
    with socket.socket() as raw:
        for way in ways:
            with pytest.raises(OSError, match="must not reach the network"):
                way()
    assert len(network_attempts) == before + len(ways)
    del network_attempts[before:]
    # Ranks and reward workers on this machine may talk to each other.
    with socket.create_server(("127.0.0.1", 0)) as server, socket.create_connection(server.getsockname()):
        pass


ROOT = Path(data_prep.__file__).parent.parent
NETWORK = {
    *("socket", "ssl", "http", "urllib.request", "urllib3", "requests", "httpx", "httpx2", "aiohttp", "ftplib"),
    *("smtplib", "httpcore2"),
    *("socketserver", "xmlrpc", "websockets", "paramiko", "boto3", "fsspec", "huggingface_hub", "datasets", "wandb"),
    *("qwen_vl_utils", "torch.hub"),
}
# Each file that may, with its reason.
ALLOWED = {
    "data_prep/formats/hub.py": {"datasets"},  # the one reader of the hub
    "data_prep/formats/saved.py": {"datasets"},  # only from_disk and from_file, which read this disk
    "vlm_mhpo/evaluation/judge/server.py": {"httpx2"},  # only with eval.judge, and only its address
    "vlm_mhpo/rollout/vllm/client.py": {"httpx2"},  # only with rollout.engine=vllm, and only its servers
    "vlm_mhpo/runtime/http.py": {"httpx2", "ssl"},  # opens the connections of those two
    "vlm_mhpo/faults/agreement.py": {"socket"},  # names the host of a rank that sees another folder
    "vlm_mhpo/runtime/ranks.py": {"socket"},  # names the host of a rank
    "vlm_mhpo/models/families/qwen_vl.py": {"qwen_vl_utils"},  # its rules for sizes; handed opened images alone
    "vlm_mhpo/prompts/videos.py": {"qwen_vl_utils"},  # its rules for frames; handed opened images alone, no name
    "vlm_mhpo/models/loading.py": {"huggingface_hub"},  # looks into the local cache
    "vlm_mhpo/records/recorder.py": {"wandb"},  # only with logging.wandb
    "rewards/workers/worker.py": {"socket"},  # its end of such a pair
    "rewards/workers/pool.py": {"socket"},  # a pair of connected sockets to its own child
    "vlm_mhpo/commands/monitor/access.py": {"http"},  # names of status codes
    "vlm_mhpo/commands/monitor/server.py": {"http", "socket"},  # names of status codes; listens for readers
}


def test_only_named_files_import_a_network_library():
    found: dict[str, set[str]] = {}
    for package in ("data_prep", "rewards", "vlm_mhpo"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom) and not node.level:
                    modules = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
                for module in modules:
                    if hit := {module, module.split(".")[0]} & NETWORK:
                        found.setdefault(str(path.relative_to(ROOT)), set()).update(hit)
    assert {
        path: names - ALLOWED.get(path, set()) for path, names in found.items() if names - ALLOWED.get(path, set())
    } == {}
    assert found.keys() >= {"data_prep/formats/hub.py"}


# ---- no way out of the folder ----------------------------------------------------------------------------------


@pytest.fixture
def image_root(tmp_path) -> Path:
    """A folder of images beside one that is nobody's business."""
    for folder in ("root/images", "outside"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "root/images/a.png").write_bytes(picture(28, 28, seed=1))
    (tmp_path / "outside/a.png").write_bytes(picture(28, 28, seed=2))
    return tmp_path / "root"


def swapped_file(root: Path) -> None:
    (root / "images/a.png").unlink()
    (root / "images/a.png").symlink_to(root.parent / "outside/a.png")


def swapped_folder(root: Path) -> None:
    (root / "images").rename(root / "moved")
    (root / "images").symlink_to(root.parent / "outside")


def swapped_root(root: Path) -> None:
    root.rename(root.parent / "moved")
    (root.parent / "outside/images").mkdir()
    (root.parent / "outside/a.png").rename(root.parent / "outside/images/a.png")
    root.symlink_to(root.parent / "outside")


def swapped_for_pipe(root: Path) -> None:
    (root / "images/a.png").unlink()
    os.mkfifo(root / "images/a.png")


@pytest.mark.parametrize("swap", [swapped_file, swapped_folder, swapped_root, swapped_for_pipe])
def test_what_is_swapped_in_after_the_check_is_not_opened(image_root, swap):
    path = resolve_image_path(image_root, "images/a.png")
    assert open_image(path).tobytes() == open_image(picture(28, 28, seed=1)).tobytes()
    swap(image_root)
    with pytest.raises(ImageError, match=r"cannot be read|not a regular file"):
        open_image(path)


def test_an_image_root_that_is_itself_a_link_works(image_root):
    (image_root.parent / "link").symlink_to(image_root)
    path = resolve_image_path(image_root.parent / "link", "images/a.png")
    assert open_image(path).size == (28, 28)


@pytest.mark.parametrize("source", ["/", ".", "", "/dev/null", "/dev/zero", "/proc/self/mem", "a\0b", "\ud800"])
def test_no_path_makes_the_opener_hang_or_crash(source):
    with pytest.raises(ImageError):
        open_image(Path(source))


def test_a_diagram_of_geometry3k_that_is_a_link_out_is_one_bad_row(tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_bytes(picture(28, 28))
    problem = tmp_path / "data" / "train" / "7"
    problem.mkdir(parents=True)
    record = {"annotat_text": "Find x.", "choices": ["1", "2", "3", "4"], "answer": "A"}
    (problem / "data.json").write_text(json.dumps(record))
    (problem / "img_diagram.png").symlink_to(secret)
    (found,) = scan_rows(tmp_path / "data")
    assert isinstance(found, RowError) and "through a link" in str(found) and "data.json" in str(found)


# ---- the schema holds ------------------------------------------------------------------------------------------

TEXT = st.text(st.characters(codec="utf-8"), max_size=30)
FILLED = TEXT.filter(str.strip)
QUESTION = FILLED.filter(lambda text: "<image>" not in text)
PLAIN = TEXT | st.integers(-(2**63), 2**63) | st.booleans() | st.floats(allow_nan=False, allow_infinity=False)
PICTURES = tuple(picture(width, 14, seed=width) for width in (14, 21, 28))
ROWS = st.builds(
    make_row,
    id=FILLED,
    problem=QUESTION,
    answer=FILLED,
    images=st.lists(st.sampled_from(PICTURES), max_size=3),
    kind=st.sampled_from(KINDS),
    choices=st.none() | st.lists(FILLED, min_size=1, max_size=4),
    precision=st.none() | st.integers(0, 100),
    unit=st.none() | TEXT,
    source=TEXT,
    split=st.sampled_from(["", "train", "test-1.b"]),
    solution=st.none() | FILLED,
    metadata=st.dictionaries(TEXT, PLAIN | st.lists(PLAIN, max_size=3), max_size=3),
)
BATCHES = st.lists(ROWS, min_size=20, max_size=20, unique_by=lambda row: row.id)


def written_as(folder: Path, rows: list[Row], suffix: str) -> Path:
    """The rows in one file, the images inside (parquet) or beside it (JSON Lines)."""
    file = folder / f"rows{suffix}"
    if suffix == ".parquet":
        with RowWriter(file) as writer:
            writer.write([record_of(row) for row in rows])
        return file
    lines = []
    for row in rows:
        names = [f"{PICTURES.index(image)}.png" for image in row.images]
        for name, image in zip(names, row.images, strict=True):
            (folder / name).write_bytes(image)
        lines.append(json.dumps(record_of(row) | {"images": names, "metadata": dict(row.metadata)}) + "\n")
    file.write_text("".join(lines))
    return file


def check_round_trip(folder: Path, rows: list[Row], suffix: str) -> None:
    found = [
        replace(row, images=tuple(map(read_image, row.images))) for row in load_rows(written_as(folder, rows, suffix))
    ]
    assert found == rows


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_rows_come_back_as_they_were_written(tmp_path, suffix):
    @settings(max_examples=5)
    @given(BATCHES)
    def check(rows):
        check_round_trip(tmp_path, rows, suffix)

    check()


@pytest.mark.full
@pytest.mark.parametrize("suffix", [".parquet", ".jsonl"])
def test_five_thousand_rows_come_back_as_they_were_written(tmp_path, suffix):
    @settings(max_examples=250)
    @given(BATCHES)
    def check(rows):
        check_round_trip(tmp_path, rows, suffix)

    check()


GOOD = {"id": "r", "problem": "Find x.", "answer": "7"}
CHAT = {"role": "user", "content": "Find x."}
BAD_RECORDS = [
    ("{", None),
    ("[1]", None),
    ("7", None),
    ("null", None),
    ("\"text\"", None),
    ('{"problem": "Find x.", "answer": "\\ud800"}', "answer"),
    ("[" * 100_000, None),
    ('{"problem": "Find x.", "answer": ' + "9" * 5000 + "}", None),
    ({}, "problem"),
    ({"problem": "Find x."}, "answer"),
    ({"answer": "7"}, "problem"),
    (GOOD | {"answer": ""}, "answer"),
    (GOOD | {"answer": ["7", "8"]}, "answer"),
    (GOOD | {"answer": [["7"]]}, "answer"),
    (GOOD | {"equivalent_answers": [{}]}, "equivalent_answers"),
    (GOOD | {"answer": {"value": 7}}, "answer"),
    (GOOD | {"problem": " "}, "problem"),
    (GOOD | {"problem": 5}, "problem"),
    (GOOD | {"problem": "<image>"}, "problem"),
    (GOOD | {"problem": "<image> and <image>?", "images": ["a.png"]}, "problem"),
    (GOOD | {"images": ["gone.png"]}, "images"),
    (GOOD | {"images": ["../a.png"]}, "images"),
    (GOOD | {"images": [7]}, "images"),
    (GOOD | {"images": [None]}, "images"),
    (GOOD | {"images": {"path": None, "bytes": None}}, "images"),
    (GOOD | {"image": "a.png", "images": ["a.png"]}, "images"),
    (GOOD | {"kind": "essay"}, "kind"),
    (GOOD | {"kind": 3}, "kind"),
    (GOOD | {"choices": "ABCD"}, "choices"),
    (GOOD | {"choices": [[]]}, "choices"),
    (GOOD | {"precision": -1}, "precision"),
    (GOOD | {"precision": "two"}, "precision"),
    (GOOD | {"precision": 101}, "precision"),
    (GOOD | {"precision": 2**70}, "precision"),
    (GOOD | {"unit": ["cm"]}, "unit"),
    (GOOD | {"split": "../up"}, "split"),
    (GOOD | {"source": 5}, "source"),
    (GOOD | {"solution": " "}, "solution"),
    (GOOD | {"id": " "}, "id"),
    (GOOD | {"id": ["r"]}, "id"),
    (GOOD | {"video": "a.mp4"}, "video"),
    ({"prompt": [CHAT, CHAT], "answer": "7"}, "prompt"),
    ({"prompt": [{"role": "judge", "content": "?"}], "answer": "7"}, "prompt"),
    ({"prompt": "Find x.", "question": "Find y.", "answer": "7"}, "problem"),
]  # fmt: skip


def test_every_bad_row_names_its_file_line_and_field(tmp_path):
    assert len(BAD_RECORDS) >= 40
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    file = tmp_path / "rows.jsonl"
    lines = [record if isinstance(record, str) else json.dumps(record) for record, _ in BAD_RECORDS]
    file.write_text("\n".join([*lines, json.dumps(GOOD)]) + "\n")
    *found, last = scan_rows(file)
    assert isinstance(last, Row)
    assert [(type(row), row.file, row.row) for row in found] == [
        (RowError, file, number) for number in range(1, len(BAD_RECORDS) + 1)
    ]
    assert [row.field for row in found] == [field for _, field in BAD_RECORDS]
    assert all(str(row).startswith(f"{file}, line {row.row}") and "\n" not in str(row) for row in found)


@pytest.mark.parametrize(("num_bad", "is_built"), [(0, True), (2, True), (3, False)])
def test_more_than_one_bad_row_in_a_hundred_stops_the_build(tmp_path, num_bad, is_built):
    whole = picture(28, 28)
    rows = [
        make_row(id=str(i), problem="?", answer="7", images=[whole[:60] if i < num_bad else whole]) for i in range(200)
    ]
    if is_built:
        assert len(prepare(rows, tmp_path / "out", check_gold=False).refused) == num_bad
    else:
        with pytest.raises(DataError, match=r"3 of 200 rows are refused, over the limit of 1\.0%"):
            prepare(rows, tmp_path / "out", check_gold=False)
        assert not (tmp_path / "out").exists()
