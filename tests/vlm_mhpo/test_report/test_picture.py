"""The wide image for a README."""

import json
import shutil

import numpy as np
from PIL import Image

from vlm_mhpo.pages import run_picture as picture_module
from vlm_mhpo.pages import write_result_picture
from vlm_mhpo.records.run_folder import load_run

MAGENTA = (255, 0, 200)  # the held-out images of conftest, up to a few units of blue


def magenta_columns(path) -> np.ndarray:
    """Columns that show a held-out image, as shares 0..1 of the width."""
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB")).astype(int)
    hits = (np.abs(pixels - MAGENTA).max(axis=-1) < 8).any(axis=0)
    return np.flatnonzero(hits) / pixels.shape[1]


def test_curves_are_left_and_pictures_right(run_dir, tmp_path):
    out = write_result_picture(run_dir, tmp_path / "docs" / "result.png")
    with Image.open(out) as image:
        assert image.format == "PNG" and image.width > 2.5 * image.height
    columns = magenta_columns(out)
    assert columns.min() > 0.36 and columns.max() > 0.9


def test_the_same_folder_gives_the_same_picture(run_dir, tmp_path):
    first = write_result_picture(run_dir, tmp_path / "one.png").read_bytes()
    assert write_result_picture(run_dir, tmp_path / "two.png").read_bytes() == first


def test_fixed_problems_with_a_picture_are_chosen_first(run_dir):
    chosen = [entry.item.id for entry in picture_module._examples(load_run(run_dir))]
    assert chosen == ["a", "d", "c"]  # e was fixed too but is text only; b got worse


def test_a_wrong_answer_is_struck_and_a_right_one_ticked(run_dir):
    item = load_run(run_dir).evaluations[0].items
    rows = {entry.id: picture_module._answer_row("before", entry) for entry in item}
    assert (rows["a"][1], rows["a"][3]) == ("6", True)
    assert (rows["b"][1], rows["b"][3]) == ("7 ✓", False)


def test_a_run_without_an_evaluation_gives_its_whole_width_to_the_curves(run_dir, tmp_path):
    shutil.rmtree(run_dir / "eval")
    out = write_result_picture(run_dir, tmp_path / "result.png")
    assert magenta_columns(out).size == 0
    with Image.open(out) as image:
        pixels = np.asarray(image.convert("L"))
    assert (pixels[:, int(0.8 * pixels.shape[1]) :] < 200).any()


def test_a_run_without_metrics_gives_its_whole_width_to_the_pictures(run_dir, tmp_path):
    (run_dir / "metrics.jsonl").unlink()
    assert magenta_columns(write_result_picture(run_dir, tmp_path / "result.png")).min() < 0.1


def test_untrusted_text_does_not_stop_the_picture(run_dir, tmp_path, recwarn):
    path = run_dir / "eval/after.json"
    content = json.loads(path.read_text())
    for item in content["items"]:
        item |= {"problem": "$\\frac{1}{0 几何 \x00" * 40, "gold": "$"}
        item["completions"][0] |= {"extracted": None, "text": "\ud800 <b> $_ " * 500}
    path.write_text(json.dumps(content))
    assert write_result_picture(run_dir, tmp_path / "result.png").is_file()
    assert not [w for w in recwarn if "Glyph" in str(w.message)]
