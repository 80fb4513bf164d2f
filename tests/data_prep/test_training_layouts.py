"""Every layout that training data comes in gives exactly the row a person would copy out of it by hand."""

import json
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from data_prep import DataError, Row, RowError, load_rows, read_image
from data_prep.formats.dialects import DIALECTS, python_list
from data_prep.formats.table import TableFile, rows_of
from data_prep.loading import scan_rows
from data_prep.synthetic import generate
from tests.data_prep.training_rows import IMAGE_PART, LAYOUTS, TEXT_PART

PICTURES = tuple(row.images[0] for row in generate(["shapes"], 3, 0, "train"))
NAMES = ("a.png", "b.png", "c.png")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A folder with three images."""
    for name, picture in zip(NAMES, PICTURES, strict=True):
        (tmp_path / name).write_bytes(picture)
    return tmp_path


def write_table(folder: Path, suffix: str, *records) -> Path:
    """A table of `records`, in which ROOT stands for its folder."""
    path = folder / f"rows{suffix}"
    records = json.loads(json.dumps(records).replace("ROOT", str(folder)))
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pa.Table.from_pylist(records), path)
    elif suffix == ".json":
        path.write_text(json.dumps(records))
    else:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def the_error(folder: Path, record, **options) -> RowError:
    """The error of a one-row table, which names its file and line."""
    path = write_table(folder, ".jsonl", record)
    (error,) = scan_rows(path, **options)
    assert isinstance(error, RowError) and (error.file, error.row) == (path, 1)
    return error


# Each layout


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_gives_exactly_this_row(folder, name, suffix):
    record, expected = LAYOUTS[name]
    (row,) = load_rows(write_table(folder, suffix, record))
    expected = {"id": "rows/rows/1", "source": "rows"} | expected
    expected["images"] = tuple(folder / image for image in expected.get("images", ()))
    assert row == Row(**expected)


@pytest.mark.parametrize(
    ("format", "name"),
    [("trl", "TRL, messages with parts"), ("verl", "verl"), ("vlm_r1", "VLM-R1"), ("ms_swift", "ms-swift"),
     ("mm_eureka", "MM-Eureka"), ("clevr_math", "CLEVR-Math"), ("mmmu", "MMMU")],
)  # fmt: skip
def test_a_dialect_asked_for_by_name_reads_its_rows_and_refuses_others(folder, format, name):
    record = LAYOUTS[name][0]
    path = write_table(folder, ".jsonl", record, {"text": "Find x.", "gold": "5"})
    row, error = scan_rows(path, format=format)
    assert [row] == list(load_rows(write_table(folder, ".jsonl", record)))
    assert (error.row, f"every {format} row has" in str(error)) == (2, True)


def test_every_dialect_can_be_asked_for_by_name():
    assert set(DIALECTS) == {
        *(
            "trl",
            "verl",
            "vlm_r1",
            "ms_swift",
            "mm_eureka",
            "clevr_math",
            "mmmu",
            "mmmu_pro_vision",
            "query_history",
            "query_response",
        )
    }


def test_verl_rows_are_chosen_by_the_split_inside_them(folder):
    record = LAYOUTS["verl"][0]
    other = record | {"extra_info": {"split": "test", "index": 1}}
    path = write_table(folder, ".parquet", record, other)
    assert [row.split for row in load_rows(f"{path}@test")] == ["test"]


def test_a_table_that_holds_the_question_beside_its_messages_is_read_as_plain(folder):
    messages = [{"role": "user", "content": "Q in other words"}, {"role": "assistant", "content": "long"}]
    path = write_table(folder, ".jsonl", {"problem": "Q", "answer": "2", "messages": messages})
    assert [(row.problem, row.answer) for row in load_rows(path)] == [("Q", "2")]
    assert [row.problem for row in load_rows(path, format="ms_swift")] == ["Q in other words"]


# The hub's tables


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets.load_dataset` that serves what the test puts into it, by (name, configuration)."""
    served = {}
    monkeypatch.setattr(datasets, "load_dataset", lambda *names, split=None: served[names][split])
    return served


def test_a_hub_set_is_read_in_its_dialect_with_a_configuration(hub):
    picture = {"bytes": PICTURES[0], "path": None}
    record = LAYOUTS["MMMU"][0] | {"image_1": picture, "image_2": {"bytes": PICTURES[1], "path": None}}
    features = datasets.Features(
        {name: datasets.Image() if name.startswith("image_") else datasets.Value("string") for name in record}
    )
    hub["MMMU/MMMU", "Math"] = {"validation": datasets.Dataset.from_list([record], features=features)}
    (row,) = load_rows("MMMU/MMMU:Math@validation")
    assert tuple(map(read_image, row.images)) == (PICTURES[1], PICTURES[0])
    assert (row.problem, row.source, row.split) == (
        LAYOUTS["MMMU"][1]["problem"], "MMMU/MMMU:Math", "validation")  # fmt: skip
    assert [row] == list(load_rows("MMMU/MMMU:Math@validation", format="mmmu"))
    with pytest.raises(RowError, match="every verl row has"):
        list(load_rows("MMMU/MMMU:Math@validation", format="verl"))


def test_pictures_inside_hub_messages_are_not_opened_either(hub):
    image = {"bytes": None, "path": "http://x.invalid/a.png"}
    part = datasets.Features({"type": datasets.Value("string"), "image": datasets.Image()})
    message = {"role": datasets.Value("string"), "content": datasets.List(part)}
    features = datasets.Features({"prompt": datasets.List(message), "solution": datasets.Value("string")})
    record = {"prompt": [{"role": "user", "content": [{"type": "image", "image": image}]}], "solution": "5"}
    table = datasets.Dataset.from_dict({"prompt": [record["prompt"]], "solution": ["5"]}, features=features)
    hub["org/name",] = {"train": table}
    (error,) = scan_rows("org/name@train")
    assert (error.field, "nothing is fetched" in str(error)) == ("images", True)


def test_hub_rows_that_name_pictures_find_them_below_a_given_folder(hub, folder):
    record = LAYOUTS["ViRL39K"][0]
    hub["TIGER-Lab/ViRL39K",] = {"train": datasets.Dataset.from_list([record])}
    (row,) = load_rows("TIGER-Lab/ViRL39K@train", image_root=folder)
    assert [image.name for image in row.images] == ["a.png", "c.png"]
    with pytest.raises(RowError, match="give their folder"):
        list(load_rows("TIGER-Lab/ViRL39K@train"))


# What is refused, with the place


def chat(*contents, **columns):
    """A ms-swift record with these user turns."""
    return {"messages": [{"role": "user", "content": content} for content in contents], "solution": "5", **columns}


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        (chat("<image><image>x", images=["a.png"]), "problem", "2 <image> placeholder(s) for 1 image(s)"),
        (chat("<image>x"), "problem", "1 <image> placeholder(s) for 0 image(s)"),
        (
            chat([IMAGE_PART, TEXT_PART], images=["a.png", "b.png"]),
            "problem",
            "1 <image> placeholder(s) for 2 image(s)",
        ),
        (chat("a", "b"), "messages", "turns user, user"),
        (chat(), "messages", "turns none"),
        (chat([{"type": "video", "video": "a.mp4"}]), "videos", "does not exist"),
        (chat([{"type": "audio", "audio": "a.mp3"}]), "messages", "neither"),
        (chat([{"type": "video", "video": "a.mp4"}], videos=["a.mp4"]), "videos", "so do the messages"),
        (chat([{"type": "text", "text": None}]), "messages", "neither"),
        (chat(5), "messages", "neither"),
        (chat("x", videos=["a.mp4"]), "videos", "videos"),
        (chat("x") | {"messages": "hello"}, "messages", "no JSON list"),
        (chat("x") | {"messages": "[" * 100_000}, "messages", "no JSON list"),
        (chat("x") | {"messages": {"role": "user"}}, "messages", "not a list"),
        (chat("x") | {"messages": ["hello"]}, "messages", "where a message should be"),
        (chat("x") | {"messages": [{"role": "tool", "content": "x"}]}, "messages", "'tool'"),
        (chat("x") | {"messages": [{"role": ["user"], "content": "x"}]}, "messages", "the roles are"),
        (chat("x") | {"solution": None}, "answer", "missing"),
        (chat("x") | {"solution": "Two\nlines"}, "answer", "missing"),
        (chat("x") | {"solution": "<answer>5</answer> or <answer>6</answer>"}, "answer", "different answers"),
        (chat([{"type": "image", "image": "a.png"}, TEXT_PART], images=["a.png"]), "images", "so do the messages"),
        (chat([{"type": "image", "image": "missing.png"}, TEXT_PART]), "images", "does not exist"),
        (LAYOUTS["verl"][0] | {"reward_model": {"style": "rule"}}, "reward_model", "no ground_truth"),
        (LAYOUTS["verl"][0] | {"reward_model": "5"}, "reward_model", "not an object"),
        (LAYOUTS["verl"][0] | {"extra_info": {"split": "a/b"}}, "split", "a/b"),
        (LAYOUTS["MMMU"][0] | {"options": "__import__('os').system('x')"}, "options", "no list"),
        (LAYOUTS["MMMU"][0] | {"options": "[__import__('os').getcwd()]"}, "options", "cannot be read"),
        (LAYOUTS["MMMU"][0] | {"options": "['a', ['b']]"}, "options", "cannot be read"),
        (LAYOUTS["MMMU"][0] | {"options": "['a"}, "options", "no list"),
        (LAYOUTS["MMMU"][0] | {"answer": "?"}, "answer", "hidden"),
        (LAYOUTS["MMMU"][0] | {"question": "<image 5>?"}, "image_5", "<image 5>"),
        ({"problem": "x", "solution": "it is 7"}, "answer", "neither <answer>"),
        ({"problem": "x", "answer": "\\boxed{}"}, "answer", "empty"),
        ({"question": "x", "answer": "She has some.\n####"}, "answer", "blank"),
        ({"problem": "x", "answer": float("nan")}, "answer", "missing"),
    ],
)
def test_a_bad_row_names_file_line_and_field(folder, record, field, words):
    error = the_error(folder, record)
    assert (error.field, words in str(error)) == (field, True), str(error)


@pytest.mark.parametrize(
    "reference",
    ["http://x.invalid/a.png", "https://x.invalid/a.png", "s3://x/a.png", "ftp://x/a.png", "data:text/html;base64,AA==",
     "file:///etc/hostname", "file://a.png", "file:a.png", "file://ROOT/../a.png", "file://ROOT", "ROOT/../../a.png",
     "/etc/hostname", "~/a.png", "//host/a.png", "zip://a.png::http://x.invalid/a.zip", "file://ROOT/missing.png"],
)  # fmt: skip
@pytest.mark.parametrize("place", ["column", "message"])
def test_no_row_reaches_the_network_or_leaves_its_folder(folder, monkeypatch, reference, place):
    def refuse(*_):
        raise AssertionError("a row reached for the network")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setattr("socket.getaddrinfo", refuse)
    record = chat("<image>x", images=[reference]) if place == "column" else chat(
        [{"type": "image_url", "image_url": {"url": reference}}, TEXT_PART])  # fmt: skip
    assert the_error(folder, record).field == "images"


def test_absolute_and_file_references_count_only_below_the_image_root(folder):
    (folder / "tables").mkdir()
    record = chat("<image><image>x", images=[f"file://{folder}/a.png", f"{folder}/b.png"])
    path = write_table(folder / "tables", ".jsonl", record)
    with pytest.raises(RowError, match="nothing is fetched"):
        list(load_rows(path))
    (row,) = load_rows(path, image_root=folder)
    assert [image.read_bytes() for image in row.images] == list(PICTURES[:2])


def test_a_bad_row_does_not_end_the_reading(folder):
    path = write_table(folder, ".jsonl", chat("a"), chat("a", "b"), chat("c"))
    first, error, last = scan_rows(path)
    assert (first.problem, error.row, last.problem) == ("a", 2, "c")


STRANGE = (
    None, True, 5, -1.5, float("inf"), "", " ", "x", "<image>", "\\boxed{", "<answer>", "#### ", "['a']", "['a', 5]",
    "\0", '[{"role": 1}]', "[{", "file://", "file:///", [], [None], [5], ["x"], [["x"]], [{}], {}, {"x": 5},
    {"bytes": "x"}, {"path": 5}, {"ground_truth": []}, {"split": []}, [{"role": "user"}],
    [{"role": "user", "content": [5]}], [{"role": "user", "content": [{"type": "image", "image": {"bytes": 5}}]}],
    [{"from": "human", "value": ["x"]}],
    [{"role": "user", "content": [{"type": "text", "text": ["x"]}]}], [{"role": {}, "content": {}}], "A" * 5000,
)  # fmt: skip


@pytest.mark.parametrize("name", LAYOUTS)
def test_whatever_a_column_holds_it_is_a_row_or_a_row_error(name):
    record, file = LAYOUTS[name][0], TableFile(Path("rows.jsonl"), "rows", "")
    columns = [*record, "id", "split", "choices", "precision", "unit", "kind", "metadata", "extra_info", "videos"]
    records = [record | {column: value} for column in columns for value in STRANGE]
    results = list(rows_of(enumerate(records), file, None, Path("no such folder")))
    assert len(results) == len(records) and all(isinstance(result, Row | RowError) for result in results)


# MMMU's lists


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[]", []),
        ("[ ]", []),
        (str(["a", 'b"c', "it's", "a\\b", "two\nlines", "é", ""]), ["a", 'b"c', "it's", "a\\b", "two\nlines", "é", ""]),
        (json.dumps(["a", 'b"c', "a\\b", "é", "$x$"]), ["a", 'b"c', "a\\b", "é", "$x$"]),
        ("['a',]", ["a"]),
        ("[1, -2.5, '3']", ["1", "-2.5", "3"]),
        (r"['\frac{1}{2}']", [r"\frac{1}{2}"]),
        (str(["\x07", "\u200b", "\U0001f600"]), ["\x07", "\u200b", "\U0001f600"]),
    ],
)
def test_a_list_in_pythons_notation_is_read_without_running_it(text, items):
    assert python_list(text, "options") == items


@pytest.mark.parametrize("text", ["", "a", "['a'", "['a' 'b']", "[a]", "[,]", "['a'", "[" + "'a'," * 10_000 + "]"])
def test_what_is_no_flat_list_is_refused(text):
    with pytest.raises(RowError):
        python_list(text, "options")


def test_hostile_lists_and_solutions_are_decided_in_linear_time(folder):
    hostile = ["['" + "\\" * 19_000 + "]", "[" + "'" * 19_000 + "]", "[" + "1" * 19_000 + "x]"]
    solutions = ["\\boxed{" * 100_000, "<answer>" * 100_000, "\n#### " * 100_000, "<<" * 100_000 + "\n#### 5"]
    start = time.process_time()
    for text in hostile:
        with pytest.raises(RowError):
            python_list(text, "options")
    for text in solutions:
        for column in ("answer", "solution"):
            list(scan_rows(write_table(folder, ".jsonl", {"problem": "x", column: text})))
    assert time.process_time() - start < 5


def test_an_unknown_format_names_those_there_are(folder):
    with pytest.raises(DataError, match=r"use auto or one of .*verl.*ms_swift"):
        load_rows(write_table(folder, ".jsonl", chat("a")), format="swift")
