"""Readers over real rows of every layout, and bad files that must name file, line and field."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest
import sympy

from data_prep import DataError, RowError, load_rows, open_image, read_image
from data_prep.loading import scan_rows
from data_prep.synthetic import generate

DATA = Path(__file__).parents[1] / "data"
GEOMETRY3K, FORMALGEO = DATA / "geometry3k", DATA / "formalgeo7k"
SHARED = Path(os.environ.get("VLM_MHPO_SHARED_DATA") or Path(__file__).parents[3] / "shared" / "data")
PICTURE = next(iter(generate(["shapes"], 1, 0, "train"))).images[0]


def write_lines(path: Path, *records) -> Path:
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in records), encoding="utf-8")
    return path


# Geometry3K


def test_geometry3k_gives_the_text_of_the_right_choice_as_gold():
    rows = {row.id: row for row in load_rows(GEOMETRY3K)}
    assert {name: row.answer for name, row in rows.items()} == {
        "geometry3k/11": "80",
        "geometry3k/13": "9",
        "geometry3k/15": r"5 \sqrt { 3 }",
    }
    row = rows["geometry3k/11"]
    assert row.problem == r"<image>In $\odot X, A B=30, C D=30,$ and $m \widehat{C Z}=40$. Find $m\widehat{A B}$"
    assert (row.choices, row.kind, row.split) == (("30", "40", "60", "80"), "math", "train")


def test_geometry3k_takes_the_clean_diagram_and_falls_back_to_the_one_with_points():
    names = {row.id: row.images[0].name for row in load_rows(GEOMETRY3K)}
    assert names["geometry3k/11"] == "img_diagram.png"
    assert names["geometry3k/15"] == "img_diagram_point.png"


@pytest.mark.parametrize("folder", ["data/geometry3k", "data/geometry3k/train"])
def test_geometry3k_is_recognised_from_any_of_its_levels(folder):
    assert [row.id for row in load_rows(GEOMETRY3K / folder)] == ["geometry3k/11", "geometry3k/13", "geometry3k/15"]


@pytest.mark.parametrize(
    ("change", "field"),
    [({"answer": "E"}, "answer"), ({"answer": None}, "answer"), ({"choices": "30"}, "answer"),
     ({"answer": ""}, "answer"), ({"annotat_text": None}, "problem")],
)  # fmt: skip
def test_a_bad_geometry3k_problem_names_its_file_and_field(tmp_path, change, field):
    shutil.copytree(GEOMETRY3K / "data" / "geometry3k" / "train" / "11", tmp_path / "train" / "11")
    path = tmp_path / "train" / "11" / "data.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(RowError) as caught:
        list(load_rows(tmp_path))
    assert (caught.value.file, caught.value.field) == (path, field)


def test_a_geometry3k_problem_without_picture_or_without_json_is_one_bad_row(tmp_path):
    shutil.copytree(GEOMETRY3K / "data" / "geometry3k" / "train", tmp_path / "train")
    for name in ("img_diagram.png", "img_diagram_point.png"):
        (tmp_path / "train" / "11" / name).unlink()
    (tmp_path / "train" / "13" / "data.json").write_text("{")
    no_picture, no_json, good = scan_rows(tmp_path)
    assert no_picture.field == "images" and "11" in str(no_picture)
    assert "cannot be read" in str(no_json) and "13" in str(no_json)
    assert good.id == "geometry3k/15"


# formalgeo7k


@pytest.fixture(params=["as in FGeoDRL", "as released"])
def formalgeo_without_derived(request, tmp_path) -> Path:
    shutil.copytree(FORMALGEO, tmp_path / "set")
    shutil.rmtree(tmp_path / "set" / "derived")
    if request.param == "as released":
        (tmp_path / "set" / "datasets" / "problems").rename(tmp_path / "set" / "problems")
        (tmp_path / "set" / "datasets" / "images").rename(tmp_path / "set" / "diagrams")
    return tmp_path / "set"


def test_formalgeo_problems_and_derived_rows_say_the_same(formalgeo_without_derived):
    derived = {row.id: row for row in load_rows(FORMALGEO)}
    problems = {row.id: row for row in load_rows(formalgeo_without_derived)}
    assert sorted(problems) == ["formalgeo7k/1106", "formalgeo7k/1457", "formalgeo7k/2583", "formalgeo7k/2764"]
    for name, row in problems.items():
        other = derived[name]
        assert (row.problem, row.answer, row.split, row.kind) == (
            other.problem, other.answer, other.split, other.kind)  # fmt: skip
        assert row.images[0].read_bytes() == other.images[0].read_bytes()


def test_formalgeo_splits_are_chosen_by_name(formalgeo_without_derived):
    for source in (FORMALGEO, formalgeo_without_derived):
        answers = {row.id: row.answer for row in load_rows(f"{source}@test")}
        assert answers == {"formalgeo7k/2583": r"6 \sqrt{2}", "formalgeo7k/2764": r"\frac{5 \sqrt{3}}{2}"}
        with pytest.raises(DataError, match=r"no split 'dev'.*test"):
            list(load_rows(source, split="dev"))


def test_a_bad_formalgeo_answer_or_picture_names_file_and_field(formalgeo_without_derived):
    folder = next(formalgeo_without_derived.rglob("1106.json")).parent
    for number, change in ((1106, {"problem_answer": "__import__('os')"}), (1457, {"problem_img": "../../x.png"})):
        path = folder / f"{number}.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    bad_answer, bad_picture, *good = scan_rows(formalgeo_without_derived, split="train")
    assert (bad_answer.file, bad_answer.field) == (folder / "1106.json", "problem_answer")
    assert (bad_picture.file, bad_picture.field) == (folder / "1457.json", "images")
    assert good == []


def test_long_complex_and_tuple_golds_of_formalgeo_are_read_and_what_is_no_gold_is_counted(
    formalgeo_without_derived, capsys
):
    from rewards import verify
    from vlm_mhpo.config import DataConfig
    from vlm_mhpo.prompts.rows import read_rows

    folder = next(formalgeo_without_derived.rglob("1106.json")).parent
    problem = json.loads((folder / "1106.json").read_text())
    for list_of_split in formalgeo_without_derived.glob("split_*.txt"):
        list_of_split.unlink()
    sides = "+".join(f"sqrt({n}+{n}*pi)*sin({n})" for n in range(3, 30))
    golds = {
        1: (sides, {}),
        2: ("3+4*I", {}),
        3: ("(3, 4*sqrt(2))", {}),
        4: ("5", {"problem_text_en": ""}),
        5: ("x**2", {}),
        6: ("5", {"problem_text_en": None}),
    }
    for number, (gold, changes) in golds.items():
        path = folder / f"{number}.json"
        path.write_text(json.dumps(problem | {"problem_answer": gold} | changes))
    config = DataConfig(train=str(formalgeo_without_derived), on_bad_row="skip", max_bad_share=0.2)
    rows = {row.id: row for row in read_rows(config.train, config, None, None, skips_bad=True)}
    assert len(sides) > 400 and len(rows) == 8
    said = capsys.readouterr().out
    assert "2 of 10 rows" in said and "problem_answer" in said and "5.json" in said and "6.json" in said
    # A blank question is its image.
    assert rows["formalgeo7k/4"].problem == "<image>"
    exact = sympy.sympify(sides)  # other terms, in another order
    cases = [(1, sympy.latex(exact), sympy.latex(exact + 1)), (2, "4i + 3", "4 - 3i"), (3, "(3, \\sqrt{32})", "(3, 4)")]
    for number, right, wrong in cases:
        gold = rows[f"formalgeo7k/{number}"].answer
        judged = [verify(text, gold, template="bare", kind="math").correct for text in (right, wrong)]
        assert judged == [True, False], (number, gold)


# JSON Lines, JSON


def test_jsonl_reads_columns_aliases_and_text_only_rows(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PICTURE)
    path = write_lines(
        tmp_path / "rows.jsonl",
        {"problem": "1+1?", "answer": 2},
        {"prompt": "See <image>.", "image": "pictures/a.png", "solution": "<think>t</think><answer> 3 </answer>"},
        "",
        {"question": "Half?", "answer": 0.5, "solution": "One over two.", "precision": 1.0, "unit": "cm", "id": 17},
        {"problem": "Which?", "answer": "b", "options": ["a", "b"], "kind": "choice", "images": [], "split": "test"},
        {"problem": "Gold only in tags", "solution": "<answer>145°</answer>", "source": "geoqa"},
    )
    plain, tagged, half, which, gold = load_rows(path)
    assert (plain.problem, plain.answer, plain.images, plain.id) == ("1+1?", "2", (), "rows/rows/1")
    assert (tagged.problem, tagged.answer, tagged.solution) == (
        "See <image>.", "3", "<think>t</think><answer> 3 </answer>")  # fmt: skip
    assert open_image(tagged.images[0]).size == (112, 112)
    assert (half.id, half.answer, half.solution, half.precision, half.unit) == ("17", "0.5", "One over two.", 1, "cm")
    assert (which.choices, which.kind, which.images, which.split) == (("a", "b"), "choice", (), "test")
    assert (gold.answer, gold.solution, gold.source) == ("145°", None, "geoqa")


GOOD = {"problem": "Find x.", "answer": "7"}


@pytest.mark.parametrize(
    ("record", "field"),
    [
        ({"problem": "Find x."}, "answer"),
        (GOOD | {"answer": "  "}, "answer"),
        (GOOD | {"answer": None}, "answer"),
        (GOOD | {"answer": {"value": True}}, "answer"),
        (GOOD | {"answer": ["7", "8"]}, "answer"),
        (GOOD | {"answer": ["7", None]}, "answer"),
        (GOOD | {"answer": []}, "answer"),
        ({"problem": "Find x.", "solution": "it is 7"}, "answer"),
        ({"problem": "Find x.", "solution": "<answer>7</answer><answer>8</answer>"}, "answer"),
        ({"problem": "Find x.", "solution": "<answer>7"}, "answer"),
        ({"problem": "Find x.", "solution": "<answer></answer>"}, "answer"),
        ({"answer": "7"}, "problem"),
        (GOOD | {"problem": " "}, "problem"),
        ({"prompt": "a", "question": "b", "answer": "7"}, "problem"),
        ({"prompt": [{"role": "user", "content": "a"}] * 2, "answer": "7"}, "prompt"),
        (GOOD | {"problem": "<image> find x"}, "problem"),
        (GOOD | {"problem": "<image><image> find x", "images": ["a.png"]}, "problem"),
        (GOOD | {"images": ["missing.png"]}, "images"),
        (GOOD | {"images": ["../a.png"]}, "images"),
        (GOOD | {"images": ["http://example.invalid/a.png"]}, "images"),
        (GOOD | {"images": [{"path": "file:///etc/passwd", "bytes": None}]}, "images"),
        (GOOD | {"images": [None]}, "images"),
        (GOOD | {"images": [7]}, "images"),
        (GOOD | {"images": ["a.png"], "image": "a.png"}, "images"),
        (GOOD | {"choices": "abc"}, "choices"),
        (GOOD | {"kind": "essay"}, "kind"),
        (GOOD | {"precision": "two"}, "precision"),
        (GOOD | {"split": "a/b"}, "split"),
        (GOOD | {"solution": {"steps": 1}}, "solution"),
        (GOOD | {"answer": "\ud83d"}, "answer"),
        (["Find x.", "7"], None),
        ('{"problem": "Find x.", "answer"', None),
        ("[" * 100_000, None),
    ],
)
def test_a_bad_line_names_file_line_and_field_and_the_rest_is_still_read(tmp_path, record, field):
    (tmp_path / "a.png").write_bytes(PICTURE)
    path = write_lines(tmp_path / "rows.jsonl", GOOD, "", record, GOOD)
    first, error, last = scan_rows(path)
    assert (error.file, error.row, error.field) == (path, 3, field)
    assert str(error).startswith(f"{path}, line 3, field {field!r}: " if field else f"{path}, line 3: ")
    assert (first.answer, last.answer) == ("7", "7")
    with pytest.raises(RowError, match="line 3"):
        list(load_rows(path))


def test_a_line_that_is_no_utf8_is_one_bad_row(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"problem": "a", "answer": "1"}\n{"problem": "\xff", "answer": "1"}\n')
    good, bad = scan_rows(path)
    assert good.problem == "a" and (bad.row, "not JSON" in str(bad)) == (2, True)


def test_json_lists_and_json_lines_called_json_are_both_read(tmp_path):
    (tmp_path / "list.json").write_text(json.dumps([GOOD, GOOD], indent=2))
    write_lines(tmp_path / "lines.json", GOOD, GOOD)
    for name in ("list", "lines"):
        assert [row.id for row in load_rows(tmp_path / f"{name}.json")] == [f"{name}/{name}/1", f"{name}/{name}/2"]
    (tmp_path / "broken.json").write_text("[{")
    with pytest.raises(DataError, match=r"broken\.json is not a JSON list"):
        list(load_rows(tmp_path / "broken.json"))


def test_a_folder_of_tables_is_read_by_split(tmp_path):
    write_lines(tmp_path / "train.jsonl", GOOD, GOOD | {"answer": "8"})
    write_lines(tmp_path / "test.jsonl", GOOD | {"answer": "9"})
    assert [(row.split, row.answer) for row in load_rows(tmp_path)] == [("test", "9"), ("train", "7"), ("train", "8")]
    assert [row.answer for row in load_rows(f"{tmp_path}@train")] == ["7", "8"]
    with pytest.raises(DataError, match="no split 'dev'; it has: test, train"):
        list(load_rows(tmp_path, split="dev"))


def test_a_split_column_chooses_rows(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", GOOD | {"split": "train"}, GOOD | {"split": "test", "answer": "8"})
    assert [(row.answer, row.split) for row in load_rows(path, split="test")] == [("8", "test")]


def test_images_may_lie_below_another_root(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(PICTURE)
    (tmp_path / "tables").mkdir()
    path = write_lines(tmp_path / "tables" / "rows.jsonl", GOOD | {"images": ["a.png"]})
    (row,) = load_rows(path, image_root=tmp_path / "pictures")
    assert row.images[0].read_bytes() == PICTURE


# parquet


def test_parquet_takes_pictures_as_bytes_structs_and_paths(tmp_path):
    (tmp_path / "a.png").write_bytes(PICTURE)
    columns = {"problem": ["Find x."], "answer": ["7"]}
    for name, images in (("struct", [{"bytes": PICTURE, "path": "http://x.invalid/a.png"}]), ("bytes", [PICTURE]),
                         ("path", ["a.png"])):  # fmt: skip
        pyarrow.parquet.write_table(pa.table(columns | {"images": [images]}), tmp_path / f"{name}.parquet")
        (row,) = load_rows(tmp_path / f"{name}.parquet")
        assert read_image(row.images[0]) == PICTURE


def test_hub_style_shards_are_read_in_order(tmp_path):
    (tmp_path / "data").mkdir()
    for shard in (1, 0):
        table = pa.table({"problem": ["Find x."], "answer": [str(shard)]})
        pyarrow.parquet.write_table(table, tmp_path / "data" / f"train-0000{shard}-of-00002.parquet")
    assert [(row.answer, row.split) for row in load_rows(f"{tmp_path}@train")] == [("0", "train"), ("1", "train")]


def test_a_broken_or_newer_parquet_ends_in_one_sentence(tmp_path):
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"broken\.parquet cannot be read as parquet"):
        list(load_rows(tmp_path / "broken.parquet"))
    table = pa.table({"problem": ["a"], "answer": ["1"]}).replace_schema_metadata({"vlm_mhpo.schema_version": "99"})
    pyarrow.parquet.write_table(table, tmp_path / "newer.parquet")
    with pytest.raises(DataError, match="schema version 99"):
        list(load_rows(tmp_path / "newer.parquet"))


# Hub


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for `datasets.load_dataset` that serves what the test puts into it."""
    served = {}

    def load_dataset(name, split=None):
        return served[name] if split is None else served[name][split]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return served


def hub_table(images, feature) -> datasets.Dataset:
    features = datasets.Features(images=feature, problem=datasets.Value("string"), answer=datasets.Value("string"))
    count = len(images)
    plain = {"images": images, "problem": ["<image>Find x."] * count, "answer": ["7"] * count}
    return datasets.Dataset.from_dict(plain, features=features)


@pytest.mark.parametrize("feature", [datasets.Image(), datasets.List(datasets.Image())])
def test_hub_pictures_come_as_the_bytes_they_were_stored_as(hub, feature):
    image = {"bytes": PICTURE, "path": None}
    table = hub_table([[image] if isinstance(feature, datasets.List) else image], feature)
    hub["hiyouga/geometry3k"] = datasets.DatasetDict(train=table, test=table)
    (row,) = load_rows("hiyouga/geometry3k@train")
    assert (tuple(map(read_image, row.images)), row.problem, row.answer) == ((PICTURE,), "<image>Find x.", "7")
    assert (row.split, row.source, row.id) == ("train", "hiyouga/geometry3k", "hiyouga/geometry3k/train/1")


def test_hub_rows_that_name_a_path_or_url_are_refused_without_a_look(hub):
    images = [{"bytes": None, "path": path} for path in ("/etc/hostname", "http://x.invalid/a.png", "a.png")]
    hub["org/name"] = datasets.DatasetDict(train=hub_table(images, datasets.Image()))
    errors = list(scan_rows("org/name"))
    assert [(error.field, error.row, "nothing is fetched" in str(error)) for error in errors] == [
        ("images", 1, True), ("images", 2, True), ("images", 3, True)]  # fmt: skip


def test_a_hub_set_with_several_splits_asks_for_one(hub):
    table = hub_table([], datasets.Image())
    hub["org/name"] = datasets.DatasetDict(train=table, test=table)
    with pytest.raises(DataError, match="train, test; choose one, as in 'org/name@train'"):
        list(load_rows("org/name"))


def test_an_unreachable_hub_is_one_sentence():
    script = (
        "from data_prep import load_rows, DataError\n"
        "try: list(load_rows('org/not-here@train'))\n"
        "except DataError as error: print(error)"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "'org/not-here' is no path on this disk" in done.stdout and "check the name and the network" in done.stdout


# load_rows


@pytest.mark.parametrize("source", ["no", "./org/name", "data/train.jsonl", "a/b/c", Path("org/name"), "x.jsonl@a"])
def test_a_path_that_does_not_exist_is_refused_at_once(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="there is no such file or folder"):
        load_rows(source)


def test_unknown_formats_layouts_and_empty_lists_are_refused_at_once(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    for call in (
        lambda: load_rows(tmp_path),
        lambda: load_rows(tmp_path / "notes.txt"),
        lambda: load_rows([]),
        lambda: load_rows(FORMALGEO, format="parket"),
        lambda: load_rows(FORMALGEO, format="geometry3k"),
    ):
        with pytest.raises(DataError):
            call()


def test_a_list_chains_its_sources_and_doubled_ids_are_told_apart(tmp_path):
    path = write_lines(tmp_path / "rows.jsonl", *({"id": name} | GOOD for name in ("a", "a#2", "a", "b")))
    rows = list(load_rows([path, str(path)]))
    ids = [row.id for row in rows]
    assert ids[:4] == ["a", "a#2", "a#3", "b"]
    assert len(set(ids)) == 8


def test_an_at_sign_in_a_real_path_is_not_a_split(tmp_path):
    path = write_lines(tmp_path / "rows@home.jsonl", GOOD)
    assert [row.answer for row in load_rows(str(path))] == ["7"]


# The shared samples, where they are


needs_shared = pytest.mark.skipif(
    not SHARED.is_dir(), reason="the real-row samples are not here (set VLM_MHPO_SHARED_DATA)"
)


@needs_shared
@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("formalgeo7k_geometry3k@train", 300),
        ("formalgeo7k_geometry3k@test", 100),
        ("geometry3k_original@train", 7),
        ("geometry3k_recombined", 27),
    ],
)
def test_every_shared_row_loads_and_every_picture_opens(source, count):
    rows = list(load_rows(str(SHARED / source)))
    assert len(rows) == count and all(row.answer.strip() for row in rows)
    for row in rows:
        assert min(open_image(row.images[0]).size) > 20


@needs_shared
def test_our_latex_of_every_shared_formalgeo_answer_is_the_one_sympy_printed(tmp_path):
    source = SHARED / "formalgeo7k_geometry3k"
    for name in ("datasets", "split_train.txt", "split_test.txt"):
        (tmp_path / name).symlink_to(source / name)
    ours = {row.id: row.answer for row in load_rows(tmp_path)}
    assert ours == {row.id: row.answer for row in load_rows(source)}
    assert len(ours) == 400
