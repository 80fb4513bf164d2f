"""The audit finds what was planted, and on real diagrams exactly the pairs that are known."""

import io
import json
import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from data_prep import DataError
from data_prep.audit import as_text, audit
from data_prep.audit.run import histogram
from data_prep.images.hashes import nearest, perceptual_hash, pixel_hash
from tests.vlm_mhpo.test_evaluation.planted import plant_mathvista
from vlm_mhpo.commands.audit_page import open_rows, write_audit

REPOSITORY = Path(__file__).parents[2]
FORMALGEO = REPOSITORY / "tests" / "data" / "formalgeo7k"
SHARED = Path(os.environ.get("VLM_MHPO_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
# MathVista pid and formalgeo7k number of the same Geometry3K problem, from the `source` fields and MathVista's
# annotated logic forms; 815 and 2404 are two Geometry3K problems on one drawing.
KNOWN_COPIES = {
    **{"160": 2790, "236": 2595, "238": 2743, "300": 2537, "403": 2511, "408": 2748},
    **{"414": 2477, "684": 2736, "716": 2435, "990": 2611, "815": 2404},
}


def noise(seed, side=24):
    """A image unlike any other: random blocks."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8))


def saved(image, path, **options):
    image.save(path, **options)
    return path.name


def encoded(image, kind, **options):
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def table(path, rows):
    path.write_text("".join(json.dumps({"problem": "What is 1 + 1?", "answer": "2"} | row) + "\n" for row in rows))
    return path


def found(result, check):
    """(row, other row) of each offence of a check."""
    return [
        (offence.row.id, offence.other and offence.other.id)
        for defect in result.defects
        if defect.check == check
        for offence in defect.offences
    ]


def num_rows(result):
    return {(defect.check, defect.title): defect.num_rows for defect in result.defects if defect.num_rows}


def test_141_of_554_test_rows_on_a_picture_of_a_train_row_are_found_whatever_the_bytes(tmp_path):
    for seed in range(600 + 554 - 141):
        saved(noise(seed, side=12), tmp_path / f"{seed}.png")
    for seed in range(141):
        saved(noise(seed, side=12), tmp_path / f"{seed}.webp", lossless=True)
    pictures = [f"{seed}.webp" for seed in range(141)] + [f"{seed}.png" for seed in range(600, 600 + 413)]
    rows = [{"id": f"a{seed}", "image": f"{seed}.png", "split": "train"} for seed in range(600)]
    rows += [{"id": f"b{index}", "image": name, "split": "test"} for index, name in enumerate(pictures)]
    result = audit(table(tmp_path / "rows.jsonl", [row | {"problem": f"Find {row['id']}."} for row in rows]))
    assert num_rows(result) == {("splits_same_picture", "test also in train: the same image"): 141}
    assert found(result, "splits_same_picture") == [(f"b{n}", f"a{n}") for n in range(141)]
    assert next(f.num_checked for f in result.defects if f.check == "splits_same_picture") == 554


def test_each_bad_row_is_found_under_its_own_check(tmp_path):
    saved(noise(0), tmp_path / "good.png")
    (tmp_path / "broken.png").write_bytes((tmp_path / "good.png").read_bytes()[:60])
    rows = [
        {"id": "good", "image": "good.png"},
        {"id": "broken", "image": "broken.png", "problem": "Find x."},
        {"id": "missing", "image": "missing.png"},
        {"id": "two placeholders", "image": "good.png", "problem": "<image><image>Add."},
        {"id": "no answer", "answer": ""},
        {"id": "unverifiable", "problem": "Which letter?", "answer": "Q", "kind": "choice", "choices": ["1", "2"]},
    ]
    path = table(tmp_path / "rows.jsonl", rows)
    result = audit(path)
    assert {check: count for (check, _), count in num_rows(result).items()} == {
        "pictures": 2, "placeholders": 1, "unreadable": 1, "golds": 1}  # fmt: skip
    assert set(found(result, "pictures")) == {("broken", None), (f"{path}:3", None)}
    assert found(result, "placeholders") == [(f"{path}:4", None)]
    assert found(result, "unreadable") == [(f"{path}:5", None)]
    assert found(result, "golds") == [("unverifiable", None)]
    assert (result.num_rows, result.num_defects) == ((3,), 4)
    assert all(defect.num_checked == 6 for defect in result.defects[:4])


def test_rows_with_broken_pictures_are_not_taken_for_copies(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"broken")
    rows = table(tmp_path / "rows.jsonl", [{"id": "a", "image": "broken.png"}, {"id": "b", "image": "broken.png"}])
    result = audit(rows, against=[rows])
    assert {check: count for (check, _), count in num_rows(result).items()} == {"pictures": 2}
    assert result.unchecked == (f"2 rows of {rows} cannot be read and were not compared",)


def test_copies_contradictions_and_shared_pictures_inside_a_split(tmp_path):
    for name in "pq":
        saved(noise(ord(name)), tmp_path / f"{name}.png")
    rows = [
        {"id": "first", "image": "p.png", "problem": "Find $x$."},
        {"id": "copy", "image": "p.png", "problem": "find  x", "answer": "2"},
        {"id": "contradiction", "image": "p.png", "problem": "<image>Find x", "answer": "3"},
        {"id": "other question", "image": "p.png", "problem": "Find x + 1"},
        {"id": "other image", "image": "q.png", "problem": "Find x"},
        {"id": "other split", "image": "q.png", "problem": "Find x", "split": "test"},
        {"id": "other choices", "image": "q.png", "problem": "Find x", "choices": ["1", "2"]},
    ]
    result = audit(table(tmp_path / "rows.jsonl", rows))
    assert found(result, "duplicates") == [("copy", "first")]
    assert found(result, "contradictions") == [("contradiction", "first")]
    assert found(result, "shared_pictures") == [("other question", "first"), ("other choices", "other image")]
    assert found(result, "splits_same_picture") == [("other split", "other image")]


def test_a_question_counts_as_shared_only_where_its_words_tell(tmp_path):
    for seed in range(4):
        saved(noise(seed), tmp_path / f"{seed}.png")
    long = "A ladder of 5 m leans on a wall, its foot 3 m away. How high?"
    mine = [
        {"id": "short", "image": "0.png", "problem": "Find x."},
        {"id": "long", "image": "1.png", "problem": long},
        {"id": "long, other gold", "image": "1.png", "problem": long, "answer": "4"},
        {"id": "text", "problem": "Find  $1+1$"},
        {"id": "text, other numbers", "problem": "Find 1+2"},
    ]
    theirs = [
        {"id": "b0", "image": "2.png", "problem": "Find x."},
        {"id": "b1", "image": "3.png", "problem": long.upper()},
        {"id": "b2", "problem": "Find 1+1."},
    ]
    benchmark = table(tmp_path / "benchmark.jsonl", theirs)
    result = audit(table(tmp_path / "rows.jsonl", mine), against=[benchmark])
    assert found(result, "benchmark_same_question") == [("long", "b1"), ("text", "b2")]
    assert found(result, "benchmark_same_picture") == found(result, "benchmark_near_picture") == []
    # A question in words alone is a leak; beside other images it may be a pattern.
    severity = {f.check: f.severity for f in result.defects}
    assert severity["benchmark_same_question"] == "defect"
    pictured = audit(table(tmp_path / "pictured.jsonl", mine[:3]), against=[benchmark])
    assert pictured.num_defects == 1 and found(pictured, "contradictions") == [("long, other gold", "long")]
    assert result.sources[1] == str(benchmark) and result.num_rows == (5, 3)


def test_a_diagram_saved_again_is_nearly_the_same_picture_and_other_diagrams_are_not(tmp_path):
    paths = sorted((FORMALGEO / "datasets" / "images").glob("*.png"))
    assert len(paths) >= 3
    for path in paths:
        image = Image.open(path).convert("RGB")
        image.resize((image.width * 3 // 4, image.height * 3 // 4)).save(tmp_path / f"{path.stem}.jpg", quality=75)
    rows = [{"id": path.stem, "image": f"{path.stem}.jpg", "problem": f"Find {path.stem}."} for path in paths]
    result = audit(table(tmp_path / "rows.jsonl", rows), against=[FORMALGEO])
    near = found(result, "benchmark_near_picture")
    assert sorted(near) == sorted((path.stem, f"formalgeo7k/{path.stem}") for path in paths)
    assert found(result, "near_pictures") == []


@pytest.mark.skipif(not (SHARED / "mathvista").is_dir(), reason=f"no samples of MathVista below {SHARED}")
def test_mathvista_pictures_among_real_geometry_problems_are_found_all_and_alone(tmp_path):
    result = audit(SHARED / "formalgeo7k_geometry3k", against=[SHARED / "mathvista"])
    pairs = {(theirs.rpartition("/")[2], mine) for mine, theirs in found(result, "benchmark_near_picture")}
    assert pairs == {(pid, f"formalgeo7k/{number}") for pid, number in KNOWN_COPIES.items()}
    # The split itself shares no exact image, but drawings with other letters: each of these pairs was looked at.
    pairs = {tuple(name.rpartition("/")[2] for name in pair) for pair in found(result, "splits_near_picture")}
    assert pairs == {("2365", "815"), ("2410", "182"), ("2447", "1837"), ("2554", "1635"), ("2589", "1857"),
                     ("2718", "1535")}  # fmt: skip


def test_the_pixel_hash_sees_pixels_and_size_and_not_the_file_format():
    image = noise(1)
    again = Image.open(io.BytesIO(encoded(image, "WEBP", lossless=True))).convert("RGB")
    assert pixel_hash(again) == pixel_hash(image)
    changed = image.copy()
    changed.putpixel((3, 4), tuple(value ^ 1 for value in image.getpixel((3, 4))))
    assert pixel_hash(changed) != pixel_hash(image)
    # The same bytes as 2 x 8 and as 4 x 4 pixels.
    assert pixel_hash(Image.new("RGB", (2, 8))) != pixel_hash(Image.new("RGB", (4, 4)))


def test_blank_pictures_of_any_size_and_shade_have_one_perceptual_hash():
    sizes, shades = [(64, 64), (300, 200), (7, 999)], ["white", "#777", "#fafafa", "#101010"]
    assert len({perceptual_hash(Image.new("RGB", size, shade)) for size in sizes for shade in shades}) == 1


def test_the_nearest_hash_is_the_one_with_the_fewest_different_bits():
    random = np.random.default_rng(0)
    left, right = random.integers(0, 256, (40, 32), np.uint8), random.integers(0, 256, (30, 32), np.uint8)
    right[7] = left[5]
    right[7, 0] ^= 0b101
    places, distances = nearest([row.tobytes() for row in left], [row.tobytes() for row in right])
    expected = [[sum(bin(a ^ b).count("1") for a, b in zip(x, y, strict=True)) for y in right.tolist()]
                for x in left.tolist()]  # fmt: skip
    assert distances.tolist() == [min(row) for row in expected]
    assert [expected[index][place] for index, place in enumerate(places)] == distances.tolist()
    assert (places[5], distances[5]) == (7, 2)
    same = [row.tobytes() for row in (left[0], left[1], left[0])]
    assert nearest(same, same, same=True)[0].tolist()[::2] == [2, 0]


def test_histograms_count_every_value_in_round_bins():
    # 99 % of 1..100 lie up to 99.01: bins of 10 from 0; the last is open.
    spread = histogram("x", list(range(1, 101)))
    assert spread.bins == ((0, 9), *((low, 10) for low in range(10, 90, 10)), (90, 11))
    assert (spread.num_values, spread.lowest, spread.median, spread.highest) == (100, 1, 50.5, 100)
    assert histogram("x", [7, 7]).bins == ((7, 2),)
    # The far value does not stretch the bins.
    assert histogram("x", [1] * 150 + [3] * 50 + [10**6]).bins == ((1, 150), (2, 0), (3, 51))


def test_files_hold_every_offender_and_escape_what_rows_say(tmp_path):
    hostile = '<script>alert("x")</script><img src=http://example.org/x.png>'
    saved(noise(0), tmp_path / "p.png")
    rows = [{"id": f"{hostile}{n}", "image": "p.png", "problem": hostile, "answer": "2"} for n in range(40)]
    rows.append({"id": "bell\a\x1b[31m", "problem": "a", "answer": ""})
    result = audit(table(tmp_path / "rows.jsonl", rows))
    page = write_audit(result, tmp_path / "out")
    text = page.read_text()
    assert "<script" not in text and "<img src=http" not in text and "&lt;script&gt;" in text
    assert "default-src 'none'" in text and "prefers-color-scheme: dark" in text
    assert text.count('src="data:image/') >= 24
    record = json.loads((tmp_path / "out" / "audit.json").read_text())
    by_check = {defect["check"]: defect for defect in record["defects"]}
    assert len(by_check["duplicates"]["offences"]) == by_check["duplicates"]["num_rows"] == 39
    assert by_check["duplicates"]["offences"][0]["row"]["id"] == f"{hostile}1"
    assert all(line.isprintable() for line in as_text(result).splitlines())


def test_tokens_are_counted_where_a_counter_is_given(tmp_path):
    def count(row):
        if row.answer == "3":
            raise DataError("too odd")
        return len(row.problem)

    path = table(tmp_path / "rows.jsonl", [{"problem": "ab"}, {"problem": "abcd"}, {"answer": "3"}])
    result = audit(path, count_tokens=count)
    spread = next(histogram for histogram in result.histograms if histogram.name == "tokens of a prompt")
    assert (spread.num_values, spread.lowest, spread.highest) == (2, 2, 4)
    assert [offence.note for f in result.defects if f.check == "prompts" for offence in f.offences] == ["too odd"]
    assert "tokens of a prompt" not in {histogram.name for histogram in audit(path).histograms}


def test_a_source_without_rows_is_refused(tmp_path):
    with pytest.raises(DataError, match="no rows to audit"):
        audit(table(tmp_path / "rows.jsonl", []))


def test_the_command_fails_on_defects_only_when_strict(tmp_path):
    from vlm_mhpo.cli import app

    path = table(tmp_path / "rows.jsonl", [{"id": "a"}, {"id": "b"}])
    arguments = ["audit", str(path), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "duplicates" in (tmp_path / "out" / "audit.json").read_text() and "b and a" in done.stdout
    assert CliRunner().invoke(app, [*arguments, "--strict"]).exit_code == 1
    clean = table(tmp_path / "clean.jsonl", [{"id": "a"}])
    done = CliRunner().invoke(app, ["audit", str(clean), "--out", str(tmp_path / "out"), "--strict"])
    assert done.exit_code == 0, done.output


def test_a_benchmark_is_named_as_for_an_evaluation(tmp_path, monkeypatch):
    place = plant_mathvista(tmp_path, num_rows=2)
    image = (place / "images" / "1.png").read_bytes()
    (tmp_path / "mine.png").write_bytes(image)
    path = table(tmp_path / "rows.jsonl", [{"image": "mine.png", "problem": "Another question?", "answer": "3"}])
    for entry in ("mathvista=" + str(place), str(place), "mathvista"):
        if entry == "mathvista":
            (tmp_path / "data" / "benchmarks").mkdir(parents=True)
            place.rename(tmp_path / "data" / "benchmarks" / "mathvista")
            monkeypatch.chdir(tmp_path)
        found = audit(path, against=[entry], open_benchmark=open_rows)
        assert found.num_rows == (1, 2)
        assert [d.num_rows for d in found.defects if d.check == "benchmark_same_picture"] == [1]
        page = write_audit(found, tmp_path / "out", open_benchmark=open_rows)
        assert page.read_text().count('src="data:image/') == 2
