"""The comparison on paper: right numbers, balanced tables, nothing that a name or description could break."""

from __future__ import annotations

import base64
import json
import math
import re
import struct
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.vlm_mhpo.test_comparison.cases import run_with
from vlm_mhpo.pages.study_report import redraw, write_comparison
from vlm_mhpo.records.study import MEASURES

HOSTILE = "<script>alert('x')</script>|a&b_c%d#e$f{g}\\h~i^j\"k"
DESCRIPTION = '</p><img src=x onerror="alert(1)"> & {{ 7 * 7 }} {% raw %}'
TWO = {
    "grpo": {0: run_with(accuracy=0.25, drift=0.5), 1: run_with(accuracy=0.5, drift=0.5)},
    "mhpo": {0: run_with(accuracy=0.375, drift=0.25), 1: run_with(accuracy=0.625, drift=0.75)},
}


def write(runs, out: Path, **changes: str) -> Path:
    return write_comparison(
        runs, out, **({"baseline": "grpo", "title": "Objectives", "description": "Two seeds."} | changes)
    )


class Page(HTMLParser):
    """Tags, their attributes, and the cells of every table row."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[str] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.in_cell = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_cell = True

    def handle_endtag(self, tag: str) -> None:
        self.in_cell = self.in_cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.in_cell:
            self.rows[-1][-1] += data


def test_numbers_by_hand_are_in_every_format(tmp_path):
    page = write(TWO, tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text())
    # Two seeds, 1/8 on either side of 1/2: standard error 1/8; Student's point with one degree of freedom is 12.706.
    found = record["means"]["mhpo"]["accuracy"]
    assert (found["mean"], found["num_seeds"]) == (0.5, 2)
    assert (found["low"], found["high"]) == pytest.approx((0.5 - 12.706 / 8, 0.5 + 12.706 / 8), abs=1e-4)
    alike = {"mean": 0.125, "low": None, "high": None, "num_seeds": 2}
    assert record["paired_differences"]["mhpo"]["accuracy"] == alike
    drift = record["paired_differences"]["mhpo"]["drift"]
    assert (drift["mean"], drift["low"], drift["high"]) == pytest.approx((0.0, -12.706 / 4, 12.706 / 4), abs=1e-3)
    assert record["runs"]["grpo"]["1"]["accuracy"] == 0.5 and record["baseline"] == "grpo"
    mean, difference = "50.0 % [-108.8, 208.8]", "12.5 % (all 2 alike)"
    markdown = (tmp_path / "comparison.md").read_text()
    assert f"| mhpo | {mean} |" in markdown and f"| mhpo | {difference} |" in markdown
    assert "**" not in markdown
    assert r"mhpo & 50.0 \% [-108.8, 208.8] &" in (tmp_path / "comparison.tex").read_text()
    rows = Page(page.read_text()).rows
    assert ["mhpo", mean] in [row[:2] for row in rows] and ["mhpo", difference] in [row[:2] for row in rows]


def test_every_row_of_every_table_is_as_wide_as_its_head(tmp_path):
    write({HOSTILE: TWO["mhpo"], **TWO}, tmp_path)
    width = len(MEASURES) + 1
    assert [len(row) for row in Page((tmp_path / "comparison.html").read_text()).rows] == [width] * 7
    lines = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [width + 1] * 9
    latex = (tmp_path / "comparison.tex").read_text().splitlines()
    body = [line for line in latex if line.endswith(r"\\")]
    assert [len(re.findall(r"(?<!\\)&", line)) for line in body] == [width - 1] * 4
    assert latex[0] == rf"\begin{{tabular}}{{l{'r' * len(MEASURES)}}}" and latex[-1] == r"\end{tabular}"
    assert (latex[1], latex[3], latex[-2]) == (r"\toprule", r"\midrule", r"\bottomrule")


def test_latex_holds_no_bare_special_character(tmp_path):
    write({HOSTILE: TWO["mhpo"], "mhpo_symmetric": TWO["mhpo"], **TWO}, tmp_path)
    latex = (tmp_path / "comparison.tex").read_text()
    commands = r"\\(begin|end)\{tabular\}|\\(top|mid|bottom)rule|\\text[a-z]+\{\}"
    bare = re.sub(r"\{lr+\}|\\\\|\\[&%$#_{}]", "", re.sub(commands, "", latex))
    assert not re.findall(r"[%$#_{}\\~^]", bare)
    assert r"mhpo\_symmetric &" in latex


def test_hostile_names_and_descriptions_stay_text(tmp_path):
    page = write({HOSTILE: TWO["mhpo"], **TWO}, tmp_path, title=HOSTILE, description=DESCRIPTION)
    parsed = Page(page.read_text())
    assert "script" not in parsed.tags and parsed.tags.count("img") == 2
    assert not [name for name in parsed.attributes if name.startswith("on")]
    assert DESCRIPTION in parsed.text and parsed.text.count(HOSTILE) == 4
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["description"] == DESCRIPTION and HOSTILE in record["means"]
    table = [line for line in (tmp_path / "comparison.md").read_text().splitlines() if line.startswith("|")]
    assert not [line for line in table if "<" in line]


def test_a_hostile_baseline_stays_text(tmp_path):
    page = write({HOSTILE: TWO["mhpo"], **TWO}, tmp_path, baseline=HOSTILE)
    assert "script" not in Page(page.read_text()).tags


def test_the_page_needs_nothing_from_outside(tmp_path):
    page = write(TWO, tmp_path).read_text()
    assert not re.findall(r"https?://|<link|<script|@import|url\(", page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    files = [(tmp_path / f"{name}.png").read_bytes() for name in ("curves", "intervals")]
    assert [base64.b64decode(picture) for picture in pictures] == files


def test_bold_marks_exactly_the_differences_that_exclude_zero(tmp_path):
    # Drift differs by -0.9, -1 and -1.1, entropy by -1, 0 and 1.1; everything else is alike.
    runs = {
        "grpo": {seed: run_with(drift=2.0, entropy=1.0) for seed in range(3)},
        "mhpo": {seed: run_with(drift=1.1 - 0.1 * seed, entropy=1.05 * seed) for seed in range(3)},
    }
    page = write(runs, tmp_path).read_text()
    assert re.findall(r'<td class="far">([^<]*)<', page) == ["-1.00000 [-1.24841, -0.75159]"]
    markdown = (tmp_path / "comparison.md").read_text()
    assert re.findall(r"\*\*([^*]*)\*\*", markdown) == ["-1.00000 [-1.24841, -0.75159]"]


def test_a_report_is_drawn_anew_from_its_own_record(tmp_path):
    nan = {seed: run_with(norm_ratio=math.nan) for seed in (0, 1)}
    write({"grpo": TWO["grpo"], "mhpo": nan}, tmp_path / "a")
    write({"grpo": TWO["grpo"], "mhpo": nan}, tmp_path / "b")
    record = json.loads((tmp_path / "a" / "comparison.json").read_text())
    # Whatever an old program computed: only the runs count.
    record |= {"means": {}, "paired_differences": {"mhpo": "an old interval"}}
    (tmp_path / "a" / "comparison.json").write_text(json.dumps(record))
    assert redraw(tmp_path / "a") == tmp_path / "a" / "comparison.html"
    for file in (tmp_path / "b").iterdir():
        assert (tmp_path / "a" / file.name).read_bytes() == file.read_bytes(), file.name
    for _ in range(2):
        redraw(tmp_path / "a", "Corrected: a note.")
        description = json.loads((tmp_path / "a" / "comparison.json").read_text())["description"]
        assert description == "Two seeds. Corrected: a note."


RESULTS = Path(__file__).resolve().parents[3] / "measurements" / "results" / "objectives"


@pytest.mark.parametrize("setting", ["stress", "mild"])
def test_the_committed_reports_are_what_the_program_makes_of_their_runs(tmp_path, setting):
    (tmp_path / "comparison.json").write_bytes((RESULTS / setting / "comparison.json").read_bytes())
    redraw(tmp_path)
    # Images may differ with the version of matplotlib.
    for name in ("comparison.json", "comparison.md", "comparison.tex"):
        assert (tmp_path / name).read_text() == (RESULTS / setting / name).read_text(), name


def strict(text: str):
    def refuse(name: str):
        raise AssertionError(f"{name} is not JSON")

    return json.loads(text, parse_constant=refuse)


def test_what_json_cannot_hold_becomes_null(tmp_path):
    nan = {seed: run_with(norm_ratio=math.nan, entropy=math.nan) for seed in (0, 1)}
    write({"grpo": TWO["grpo"], "mhpo": nan}, tmp_path)
    record = strict((tmp_path / "comparison.json").read_text())
    assert record["runs"]["mhpo"]["0"]["entropy"] is None
    assert record["means"]["mhpo"]["entropy"] == {"mean": None, "low": None, "high": None, "num_seeds": 0}
    row = next(row for row in Page((tmp_path / "comparison.html").read_text()).rows if row[0] == "mhpo")
    assert row[1 + list(MEASURES).index("entropy")] == "-"
    assert "nan" not in (tmp_path / "comparison.md").read_text()
    assert "nan" not in (tmp_path / "comparison.tex").read_text()


def test_an_infinite_measure_of_one_seed_is_still_json(tmp_path):
    write({"grpo": {0: run_with(drift=math.inf)}}, tmp_path)
    assert strict((tmp_path / "comparison.json").read_text())["runs"]["grpo"]["0"]["drift"] is None


def test_the_same_input_gives_the_same_bytes(tmp_path):
    write(TWO, tmp_path / "a")
    write(TWO, tmp_path / "b")
    files = sorted(file.name for file in (tmp_path / "a").iterdir())
    assert files == [
        "comparison.html",
        "comparison.json",
        "comparison.md",
        "comparison.tex",
        "curves.png",
        "intervals.png",
    ]
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file


def test_one_seed_and_one_objective_are_enough(tmp_path):
    page = write({"grpo": {3: run_with()}}, tmp_path)
    record = json.loads((tmp_path / "comparison.json").read_text())
    assert record["paired_differences"] == {} and record["means"]["grpo"]["accuracy"]["num_seeds"] == 1
    assert "50.0 % (one seed)" in page.read_text() and "[" not in (tmp_path / "comparison.tex").read_text()


@pytest.mark.parametrize("curve", [((0, 0.25), (2, 0.5), (4, 0.75)), ((0, 0.25),), ((4, 0.5),), ((1, 0.2), (3, 0.4))])
def test_seeds_that_were_evaluated_at_other_steps_share_a_picture(tmp_path, curve):
    runs = {"grpo": {0: run_with(), 1: run_with(curve=curve), 2: run_with(curve=curve)}, "mhpo": TWO["mhpo"]}
    write(runs, tmp_path)
    head = (tmp_path / "curves.png").read_bytes()[:24]
    assert head[:8] == b"\x89PNG\r\n\x1a\n" and struct.unpack(">II", head[16:]) == (1260, 588)


def watch(monkeypatch, look) -> None:
    """Call `look` with the axes of every figure that is saved."""
    from matplotlib.figure import Figure

    save = Figure.savefig

    def seen(figure, *args, **kwargs):
        look(figure.axes)
        return save(figure, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", seen)


def test_every_objective_has_its_interval_and_the_baseline_its_rule(tmp_path, monkeypatch):
    panels = []
    watch(monkeypatch, lambda axes: panels.extend(axes) if len(axes) == 3 else None)
    # Two seeds: the interval runs 12.706 / 2 times their distance to either side of the middle.
    runs = {
        "grpo": {0: run_with(accuracy=0.5, norm_ratio=2.0), 1: run_with(accuracy=0.7, norm_ratio=4.0)},
        "mhpo": {0: run_with(accuracy=0.8, norm_ratio=1.0), 1: run_with(accuracy=0.9, norm_ratio=1.5)},
    }
    write(runs, tmp_path)
    accuracy, norm_ratio, _ = ([line.get_xdata() for line in panel.get_lines()] for panel in panels)
    for found, expected in ((accuracy, ([50, 70], 60, [80, 90], 85, 60)), (norm_ratio, ([2, 4], 3, [1, 1.5], 1.25, 3))):
        grpo, grpo_mean, mhpo, mhpo_mean, rule = expected
        for line, (one, other) in ((found[0], grpo), (found[2], mhpo)):
            half = 12.706 / 2 * (other - one)
            middle = (one + other) / 2
            assert list(line) == pytest.approx([middle - half, middle + half], rel=1e-3)
        assert (found[1][0], found[3][0], found[4][0]) == pytest.approx((grpo_mean, mhpo_mean, rule))


def test_the_line_of_an_objective_is_the_mean_of_the_seeds_that_have_the_step(tmp_path, monkeypatch):
    drawn = {}
    watch(
        monkeypatch,
        lambda axes: [
            drawn.update({line.get_label(): (line.get_xdata().tolist(), line.get_ydata().tolist())})
            for line in axes[0].get_lines()
            if len(axes) == 1
        ],
    )
    curves = {0: ((0, 0.0), (2, 0.5), (4, 1.0)), 1: ((0, 0.5), (4, 0.0))}
    write({"grpo": {seed: run_with(curve=curve) for seed, curve in curves.items()}}, tmp_path)
    assert drawn == {"grpo": ([0, 2, 4], [25.0, 50.0, 50.0])}
