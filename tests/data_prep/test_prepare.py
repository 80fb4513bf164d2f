"""Prepared data: read back as it was, checked row by row, and never half there."""

import hashlib
import io
import json
import random
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from data_prep import DataError, load_rows
from data_prep.loading import scan_rows
from data_prep.prepare.checks import with_bytes
from data_prep.prepare.filters import answer_form_filter, image_filters, kind_filter, prompt_token_filter
from data_prep.prepare.prepare import prepare
from data_prep.schema import KINDS, RowError, make_row
from data_prep.synthetic import FAMILIES, generate

DATA = Path(__file__).parents[1] / "data"
FORMALGEO, GEOMETRY3K = DATA / "formalgeo7k", DATA / "geometry3k"


def text_row(name="t1", **changes):
    return make_row(**({"id": name, "problem": "1+1?", "answer": "2", "split": "train"} | changes))


TEXT = st.text(st.characters(codec="utf-8"), min_size=1, max_size=30).filter(
    lambda text: text.strip() and "<image>" not in text
)
PICTURES = [row.images[0] for row in generate(["shapes", "counting"], 2, 0, "train")]
ROWS = st.builds(
    make_row,
    id=TEXT,
    problem=TEXT,
    answer=TEXT,
    images=st.lists(st.sampled_from(PICTURES), max_size=3),
    kind=st.sampled_from(KINDS),
    choices=st.none() | st.lists(TEXT, min_size=1, max_size=4),
    precision=st.none() | st.integers(0, 9),
    unit=st.none() | TEXT,
    source=st.just("") | TEXT,
    split=st.sampled_from(["", "train", "heldout"]),
    solution=st.none() | TEXT,
)


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def noise_png(seed, width, height):
    return encoded(Image.frombytes("RGB", (width, height), random.Random(seed).randbytes(width * height * 3)), "PNG")


@pytest.fixture
def verifier(monkeypatch):
    """A stand-in for the rewards package that records its calls and refuses golds with a question mark."""
    calls = []

    def verify(completion, gold, **options):
        calls.append((completion, gold, options))
        return SimpleNamespace(correct="?" not in gold, reason="cannot be read")

    others = {"how_compared": lambda gold, **_: "value", "grader_version": lambda: "1"}
    monkeypatch.setitem(sys.modules, "rewards", SimpleNamespace(verify=verify, **others))
    return calls


def test_rows_come_back_equal_with_the_same_bytes(tmp_path):
    rows = [
        *generate(["shapes", "bars"], 300, 0, "train"),
        *generate(["triangles"], 3, 0, "heldout"),
        text_row(),
        text_row("t2", kind="choice", choices=["2", "3"], precision=0, unit="m²", source="Größe", solution="1+1\n"),
        text_row("t3", split="", unit=""),
    ]
    prepare(rows, tmp_path / "out", check_gold=False)
    assert {row.id: with_bytes(row) for row in load_rows(tmp_path / "out")} == {row.id: row for row in rows}
    assert [row.id for row in load_rows(f"{tmp_path / 'out'}@heldout")] == [row.id for row in rows[300:303]]


@settings(max_examples=15, deadline=None)
@given(st.lists(ROWS, min_size=1, max_size=20, unique_by=lambda row: row.id))
def test_any_valid_row_comes_back_equal(rows):
    with tempfile.TemporaryDirectory() as folder:
        prepare(rows, Path(folder) / "out", check_gold=False)
        assert {row.id: with_bytes(row) for row in load_rows(Path(folder) / "out")} == {row.id: row for row in rows}


def test_pictures_named_by_path_are_stored_as_their_bytes(tmp_path):
    rows = list(load_rows(FORMALGEO))
    prepare(rows, tmp_path / "out", check_gold=False)
    stored = {row.id: with_bytes(row) for row in load_rows(tmp_path / "out")}
    for row in rows:
        assert stored[row.id] == replace(row, images=tuple(path.read_bytes() for path in row.images))


def test_the_manifest_counts_rows_and_sums_files(tmp_path):
    rows = [*generate(["shapes"], 3, 0, "train"), *generate(["bars"], 2, 0, "test")]
    rows.append(text_row("t", split="", kind="math"))
    report = prepare(rows, tmp_path / "out", check_gold=False)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["num_rows"] == report.num_rows == 6
    assert manifest["counts"] == {
        "split": {"": 1, "test": 2, "train": 3},
        "kind": {"math": 1, "number": 5},
        "source": {"": 1, "synthetic/bars": 2, "synthetic/shapes": 3},
    }
    assert {name: entry["rows"] for name, entry in manifest["files"].items()} == {
        "train.parquet": 3, "test.parquet": 2, "all.parquet": 1}  # fmt: skip
    for name, entry in manifest["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert (entry["sha256"], entry["bytes"]) == (hashlib.sha256(data).hexdigest(), len(data))


def test_every_gold_is_verified_against_itself_with_its_rows_settings(tmp_path, verifier):
    rows = [text_row(f"t{i}") for i in range(98)]
    rows += [text_row("odd", answer="2?"), text_row("c", kind="choice", choices=["2", "3"], precision=1, unit="cm")]
    report = prepare(rows, tmp_path / "out")
    assert [(refusal.id, "cannot be read" in refusal.reason) for refusal in report.refused] == [("odd", True)]
    assert json.loads((tmp_path / "out" / "refused.jsonl").read_text())["id"] == "odd"
    completion, gold, options = verifier[-1]
    assert completion.endswith("<answer>2</answer>") and gold == "2"
    row_settings = {"kind": "choice", "choices": ("2", "3"), "precision": 1, "unit": "cm"}
    assert options == {"template": "think_answer"} | row_settings


def test_our_verifier_accepts_every_gold_of_the_drawn_and_real_rows(tmp_path):
    rows = [*load_rows(FORMALGEO), *load_rows(GEOMETRY3K), *generate(tuple(FAMILIES), 40, 0, "train")]
    report = prepare(rows, tmp_path / "out", max_bad_share=1.0)
    assert (report.num_rows, report.refused) == (47, ())


def test_broken_pictures_and_bad_rows_are_refused_with_their_reasons(tmp_path):
    rows = [
        text_row("good"),
        text_row("broken", images=[b"\x89PNG\r\n\x1a\n broken"]),
        text_row("missing", images=[tmp_path / "missing.png"]),
        RowError("is blank", file="a.jsonl", row=3, field="answer"),
    ]
    report = prepare(rows, tmp_path / "out", check_gold=False, max_bad_share=0.75)
    assert report.num_rows == 1
    assert [refusal.id for refusal in report.refused] == ["broken", "missing", "a.jsonl:3"]
    assert "broken header" in report.refused[0].reason and "missing.png" in report.refused[1].reason


def test_bad_rows_of_a_scan_are_listed(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"problem": "a", "answer": "1"}\n{"problem": "b"}\n')
    report = prepare(scan_rows(path), tmp_path / "out", check_gold=False, max_bad_share=0.5)
    assert report.num_rows == 1 and "line 2, field 'answer'" in report.refused[0].reason


def test_too_many_bad_rows_leave_a_list_and_no_output(tmp_path):
    rows = [text_row(f"t{i}") for i in range(98)] + [text_row(f"b{i}", images=[b"x"]) for i in range(2)]
    with pytest.raises(DataError, match=r"2 of 100 rows are refused, over the limit of 1\.0%; the first, b0"):
        prepare(rows, tmp_path / "out", check_gold=False)
    # What was checked is kept for a run with another limit.
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.parts", "out.refused.jsonl"]
    assert prepare(rows, tmp_path / "out", check_gold=False, max_bad_share=0.02).num_resumed == 100
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.refused.jsonl"]
    assert len((tmp_path / "out.refused.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("rows", [[], [RowError("is blank")]])
def test_no_rows_left_is_an_error(tmp_path, rows):
    with pytest.raises(DataError):
        prepare(rows, tmp_path / "out", check_gold=False, max_bad_share=1.0)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_run_leaves_nothing_and_the_next_one_works(tmp_path):
    def interrupted():
        yield text_row()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        prepare(interrupted(), tmp_path / "out", check_gold=False)
    assert list(tmp_path.iterdir()) == []
    # What a killed process leaves: a staging folder that nothing cleaned up.
    (tmp_path / ".out.staging").mkdir()
    (tmp_path / ".out.staging" / "old.parquet").write_bytes(b"half")
    prepare([text_row()], tmp_path / "out", check_gold=False)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not (tmp_path / "out" / "old.parquet").exists()


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr("data_prep.prepare.prepare.ROWS_A_PART", 10)


def killed_after(rows, num_rows):
    """The rows until the process would be killed."""
    yield from rows[:num_rows]
    raise KeyboardInterrupt


def interrupt(rows, out, num_rows, **options):
    with pytest.raises(KeyboardInterrupt):
        prepare(killed_after(rows, num_rows), out, **options)
    assert not out.exists()


def test_an_interrupted_run_goes_on_where_it_stopped_and_ends_the_same(tmp_path, verifier, small_parts):
    rows = [*generate(["shapes"], 30, 0, "train"), text_row("odd", answer="2?"), text_row("t")]
    whole = prepare(rows, tmp_path / "whole", max_bad_share=0.1)
    verifier.clear()
    interrupt(rows, tmp_path / "out", 25, max_bad_share=0.1)
    # Two parts of ten rows are finished.
    assert len(verifier) == 20
    report = prepare(rows, tmp_path / "out", max_bad_share=0.1)
    assert (len(verifier), report.num_resumed) == (32, 20)
    assert (report.num_rows, report.refused, report.files) == (whole.num_rows, whole.refused, whole.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "whole"]


@pytest.mark.parametrize(
    "change",
    ["row", "picture", "filter", "damaged part", "damaged record", "missing record", "no gold check", "grader"],
)
def test_a_finished_part_is_made_again_when_anything_it_rests_on_changed(tmp_path, small_parts, verifier, change):
    picture = tmp_path / "a.png"
    picture.write_bytes(PICTURES[0])
    rows = [text_row(f"t{n}", images=[picture]) for n in range(20)]
    interrupt(rows, tmp_path / "out", 20)
    options, part = {}, tmp_path / ".out.parts" / "000000.parquet"
    if change == "row":
        rows[3] = replace(rows[3], answer="3")
    elif change == "picture":
        picture.write_bytes(PICTURES[1])
    elif change == "filter":
        options["filters"] = [kind_filter(["auto"])]
    elif change == "grader":
        sys.modules["rewards"].grader_version = lambda: "2"
    elif change == "damaged part":
        part.write_bytes(part.read_bytes()[:-1] + b"x")
    elif change == "damaged record":
        part.with_suffix(".json").write_text('{"identity"')
    elif change == "missing record":
        part.with_suffix(".json").unlink()
    else:
        options["check_gold"] = False
    report = prepare(rows, tmp_path / "out", **options)
    whole_run_changed = change in ("picture", "filter", "no gold check", "grader")
    assert report.num_resumed == (0 if whole_run_changed else 10)
    assert {row.id: row.answer for row in load_rows(tmp_path / "out")} == {row.id: row.answer for row in rows}
    assert with_bytes(next(load_rows(tmp_path / "out"))).images == (picture.read_bytes(),)


def test_filters_drop_rows_and_the_manifest_counts_them(tmp_path, verifier):
    rows = [
        text_row("wide", images=[noise_png(0, 40, 10)]),
        text_row("small", images=[noise_png(1, 8, 8)]),
        text_row("square", images=[noise_png(2, 20, 20), noise_png(3, 20, 20)]),
        text_row("one of two", images=[noise_png(4, 20, 20), noise_png(5, 20, 31)]),
        text_row("word", answer="yes"),
        text_row("number", kind="number"),
        text_row("odd", answer="2?", kind="number"),
    ]
    filters = [
        *image_filters(min_side=9, max_side=30),
        answer_form_filter(["integer"]),
        kind_filter(["auto"]),
    ]
    report = prepare(rows, tmp_path / "out", filters=filters)
    assert [row.id for row in load_rows(tmp_path / "out")] == ["square"]
    by_filter = {"min_side": 1, "max_side": 2, "answer_forms": 2, "kinds": 1}
    # The row that filters drop is no longer a bad one.
    assert (report.num_dropped, report.refused) == (by_filter, ())
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["num_dropped"] == by_filter
    assert manifest["filters"] == {"min_side": "9", "max_side": "30", "answer_forms": "integer", "kinds": "auto"}
    dropped = [json.loads(line) for line in (tmp_path / "out" / "dropped.jsonl").read_text().splitlines()]
    assert dropped[0] == {"id": "wide", "reason": "an image is 40 x 10 pixels", "filter": "max_side"}
    assert [row["id"] for row in dropped] == ["wide", "small", "one of two", "word", "number", "odd"]


def test_filters_that_leave_nothing_are_named(tmp_path):
    rows = [text_row("t1"), text_row("t2")]
    with pytest.raises(DataError, match=r"leave none of 2 rows \(dropped: max_prompt_tokens 2\)"):
        prepare(rows, tmp_path / "out", check_gold=False, filters=[prompt_token_filter(lambda row: 9, 8, "a model")])
    assert not (tmp_path / "out").exists()


def held_out(rows, out, share=0.3):
    """Ids of the held-out rows."""
    prepare(rows, out, check_gold=False, heldout=share)
    sides = {name: {row.id for row in load_rows(f"{out}@{name}")} for name in ("train", "heldout")}
    assert sides["train"] | sides["heldout"] == {row.id for row in rows} and not sides["train"] & sides["heldout"]
    return sides["heldout"]


def test_no_picture_is_in_both_train_and_heldout(tmp_path):
    pictures = [noise_png(seed, 12, 12) for seed in range(60)]
    again = [encoded(Image.open(io.BytesIO(picture)), "WEBP", lossless=True) for picture in pictures]
    rows = [text_row(f"a{n}", images=[picture], split="val") for n, picture in enumerate(pictures)]
    rows += [text_row(f"b{n}", images=[picture]) for n, picture in enumerate(again)]
    # Rows 50 to 59 form one chain through the images they share.
    rows += [text_row(f"c{n}", images=[pictures[n], again[n + 1]]) for n in range(50, 59)]
    out = held_out(rows, tmp_path / "out")
    assert {name[1:] for name in out if name[0] == "a"} == {name[1:] for name in out if name[0] == "b"}
    chain = {name for name in out if name[0] == "c" or int(name[1:]) >= 50}
    assert len(chain) in (0, 9 + 10 + 10)
    # 51 lots at 0.3: within three standard deviations of 15.3.
    assert 6 <= len({name[1:] for name in out} - {str(n) for n in range(51, 60)}) <= 25
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (manifest["heldout"], set(manifest["files"])) == (0.3, {"train.parquet", "heldout.parquet"})


def test_linked_rows_keep_their_side_in_any_order(tmp_path):
    pictures = [noise_png(seed, 12, 12) for seed in range(60)]
    rows = [text_row(f"a{n}", images=pictures[n : n + 2]) for n in range(0, 60, 3)]
    rows += [text_row(f"b{n}", images=[pictures[n + 2], pictures[n + 1]]) for n in range(0, 60, 3)]
    out = held_out(rows, tmp_path / "out")
    assert 0 < len(out) < 40 and held_out(rows[::-1], tmp_path / "reversed") == out


def test_a_picture_keeps_its_side_when_rows_come_and_go(tmp_path):
    rows = [text_row(f"a{n}", images=[noise_png(n, 12, 12)]) for n in range(40)]
    rows += [text_row(f"t{n}", problem=f"{n} + 1?") for n in range(40)]
    out = held_out(rows, tmp_path / "out")
    some = rows[::-1][:60]
    assert held_out(some, tmp_path / "some") == out & {row.id for row in some}
    # A larger share only adds.
    assert out < held_out(rows, tmp_path / "more", share=0.6)


def test_a_split_with_an_empty_side_is_refused(tmp_path):
    with pytest.raises(DataError, match="leaves no row for heldout"):
        prepare([text_row()], tmp_path / "out", check_gold=False, heldout=1e-9)
    with pytest.raises(DataError, match="leaves one side empty"):
        prepare([text_row()], tmp_path / "out", check_gold=False, heldout=1.0)
    assert not (tmp_path / "out").exists()


def test_the_command_filters_and_splits(tmp_path):
    from vlm_mhpo.cli import app

    arguments = ["prepare", "synthetic:shapes?num_rows=40", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--answer-forms", "integer", "--heldout", "0.4", "--max-side", "5000"])
    assert done.exit_code == 0, done.output
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["filters"] == {"max_side": "5000", "answer_forms": "integer"}
    assert set(manifest["counts"]["split"]) == {"train", "heldout"} and "heldout: " in done.stdout
    needs_model = CliRunner().invoke(app, [*arguments, "--max-prompt-tokens", "9"])
    assert needs_model.exit_code == 2 and "needs --model" in needs_model.output
    unknown = CliRunner().invoke(app, [*arguments, "--kinds", "numbr"])
    assert isinstance(unknown.exception, DataError) and "'numbr' is no kind" in str(unknown.exception)


def test_an_existing_folder_is_not_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match="exists already"):
        prepare([text_row()], tmp_path / "out", check_gold=False)


@pytest.mark.parametrize("damage", ["missing", "short", "manifest"])
def test_a_damaged_folder_is_refused_by_the_reader(tmp_path, damage):
    prepare([text_row(), text_row("t2", split="test")], tmp_path / "out", check_gold=False)
    path = tmp_path / "out" / "test.parquet"
    if damage == "missing":
        path.unlink()
    elif damage == "short":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        (tmp_path / "out" / "manifest.json").write_text("{}")
    with pytest.raises(DataError, match=r"test\.parquet is missing or not of|is not a manifest"):
        list(load_rows(tmp_path / "out"))
