"""Charts: the numbers in their captions, bytes that repeat, colours that follow the page."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest

from vlm_mhpo.pages.plotting import (
    MAX_POINTS,
    Label,
    chart_style,
    ends,
    label_ends,
    new_figure,
    smooth,
    thin,
)
from vlm_mhpo.pages.run_figures import draw_charts
from vlm_mhpo.records.errors import ReportError
from vlm_mhpo.records.norms import percentile
from vlm_mhpo.records.nouns import Run, RunFacts, Series
from vlm_mhpo.records.run_folder import load_run


def run_of(folder, **metrics: Series) -> Run:
    return Run(folder, RunFacts(), metrics, (), (), ())


def captions(run_dir) -> dict[str, str]:
    return {chart.key: chart.caption.replace("\N{NO-BREAK SPACE}", " ") for chart in draw_charts(load_run(run_dir))[0]}


def test_every_chart_is_drawn_from_a_full_run(run_dir):
    charts, missing = draw_charts(load_run(run_dir))
    assert missing == ()
    keys = "reward accuracy verdicts length signal gradient ratio damping inside entropy time"
    assert [chart.key for chart in charts] == keys.split()
    assert all(chart.svg.startswith("<svg") and chart.svg.endswith("</svg>") for chart in charts)


def test_captions_say_the_numbers_of_the_run(run_dir):
    said = captions(run_dir)
    assert said["reward"].startswith("0.10 → 0.65, the means of the first and last 1 step.")
    assert said["accuracy"].startswith("40.0 % at step 0 → 60.0 % at step 12.")
    assert said["verdicts"] == "Moving average; at the end: correct 50 %, wrong 30 %, no answer 20 %."
    assert said["length"].startswith("Mean 8.0 → 8.0 tokens. Band: shortest to longest. Cut by the budget: 12.5 %")
    # grad_norm is 1..12: median 6.5, 99th percentile 11.89 by the linear rule.
    gradient = "Log scale. Median 6.5, 99th percentile 11.9, largest 12."
    assert said["gradient"] == gradient + " Grey: the largest update of a step, at most 24."
    assert "Band: smallest to largest token (-0.5 to 0.75 over the run)." in said["ratio"]
    assert said["damping"] == "At the last step: multiplier 0.27, share of |advantage| in the dead zone 1.00 %."
    # 2 s a step: 1 s update, 0.5 s sample, and 0.5 s that no stage claims.
    assert said["time"] == "2.00 s a step on average: update 50 %, sample 25 %, other 25 %."


def test_what_was_not_recorded_is_listed_instead_of_drawn(tmp_path):
    charts, missing = draw_charts(run_of(tmp_path, reward=Series((1, 2), (0.1, 0.2))))
    assert [chart.key for chart in charts] == ["reward"]
    assert len(missing) == 10


def test_another_objective_shows_its_own_ratio_and_clipping(tmp_path):
    metrics = {"grpo/log_ratio_mean": Series((1,), (0.1,)), "clip_ratio/region_mean": Series((1,), (0.125,))}
    said = {chart.key: chart.caption for chart in draw_charts(run_of(tmp_path, **metrics))[0]}
    assert said["ratio"].startswith("Log of current over sampling policy, nats. Mean at the last step: 0.1.")
    assert "share of tokens clipped 12.50" in said["damping"]


def test_sources_with_a_slash_in_their_names_have_their_lines(tmp_path):
    names = ("eval/accuracy", "eval/synthetic/shapes/accuracy", "eval/hub/other/accuracy")
    (chart,) = draw_charts(run_of(tmp_path, **{name: Series((1,), (0.5,)) for name in names}))[0]
    assert chart.caption.endswith("Grey: each source.")
    assert "synthetic/shapes" in chart.svg and "hub/other" in chart.svg


def test_a_ratio_without_its_log_is_drawn_on_a_log_axis(tmp_path):
    parts = {"mean": 1.0, "min": 0.5, "max": 2.0, "p05": 0.9, "p95": 1.1}
    metrics = {f"ratio_{part}": Series((1, 2), (value, value)) for part, value in parts.items()}
    (chart,) = draw_charts(run_of(tmp_path, **metrics))[0]
    assert "(0.5 to 2 over the run). Darker band" in chart.caption


@pytest.mark.parametrize("num_steps", [1, 2, 3])
def test_a_run_of_few_steps_is_drawn(run_dir, num_steps):
    lines = (run_dir / "metrics.jsonl").read_text().splitlines(keepends=True)
    (run_dir / "metrics.jsonl").write_text("".join(lines[:num_steps]))
    assert len(draw_charts(load_run(run_dir))[0]) == 11


def test_metrics_of_zeros_are_drawn_where_a_log_axis_allows(tmp_path):
    zeros = Series((1, 2), (0.0, 0.0))
    charts, missing = draw_charts(run_of(tmp_path, grad_norm=zeros, reward=zeros, step_time=zeros))
    assert [chart.key for chart in charts] == ["reward", "time"]
    assert "Gradient norm" in missing


def test_the_same_run_gives_the_same_svg(run_dir):
    assert draw_charts(load_run(run_dir)) == draw_charts(load_run(run_dir))


def test_svg_names_no_address_no_fixed_colour_and_no_id_of_another_chart(run_dir):
    charts, _ = draw_charts(load_run(run_dir))
    everything = "".join(chart.svg for chart in charts)
    assert "http" not in everything
    assert not re.findall(r"#[0-9a-fA-F]{6}\b", everything)
    ids = re.findall(r'\bid="([^"]*)"', everything)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|xlink:href=")#([^")]*)', everything)) <= set(ids)


def test_a_hostile_reward_name_is_escaped_in_the_svg(tmp_path):
    metrics = {"reward": Series((1,), (0.5,))}
    metrics |= {f"rewards/{name}/mean": Series((1,), (0.5,)) for name in ("<script>x", "$\\frac$", "_hidden")}
    charts, _ = draw_charts(run_of(tmp_path, **metrics))
    assert "<script" not in charts[0].svg
    assert "&lt;script&gt;x" in charts[0].svg
    assert "$\\frac$" in charts[0].svg and "hidden" in charts[0].svg


def test_a_long_series_is_binned_without_losing_its_mean_or_its_extremes():
    values = tuple(float(v) for v in np.random.default_rng(0).normal(size=4 * MAX_POINTS))
    series = Series(tuple(range(len(values))), values)
    assert len(thin(series).values) == MAX_POINTS
    assert np.mean(thin(series).values) == pytest.approx(np.mean(values))
    assert max(thin(series, "max").values) == max(values)
    assert min(thin(series, "min").values) == min(values)
    short = Series((1, 2), (3.0, 4.0))
    assert thin(short) is short


def test_smoothing_leaves_a_straight_line_straight_inside():
    series = Series(tuple(range(200)), tuple(float(v) for v in range(200)))
    assert smooth(series).values[5:-5] == pytest.approx(series.values[5:-5])


def test_ends_are_the_means_of_the_first_and_last_tenth():
    series = Series(tuple(range(20)), (1.0, 3.0, *[99.0] * 16, 5.0, 6.0))
    assert ends(series) == (2.0, 5.5, 2)


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.99, 1.0])
def test_percentile_is_numpys(share):
    values = [5.0, 1.0, 9.0, 2.5, 7.0]
    assert percentile(values, share) == pytest.approx(np.quantile(values, share))


def test_labels_of_close_lines_are_pushed_apart_inside_the_axes():
    with chart_style():
        _, (ax,) = new_figure()
        ax.set_ylim(0, 1)
        label_ends(ax, [Label(y, str(y), "black") for y in (0.99, 0.98, 0.97, 0.5)], gap=0.1)
    heights = {text.get_text(): text.get_position()[1] for text in ax.texts}
    assert heights["0.5"] == pytest.approx(0.5)
    assert [heights[k] for k in ("0.97", "0.98", "0.99")] == pytest.approx([0.8, 0.9, 1.0])


def test_the_chart_of_the_inside_tells_median_and_spread_of_the_last_tenth(run_dir: Path):
    # 20 steps; only the last two count. Bin 211 is around 0; 0.2651 lies in bin 212 + floor(log(2651) / log(step)).
    step = (20 / 1e-4) ** (1 / 210)
    on_policy = 212 + int(math.log(2651) / math.log(step))
    late = {"positive": {"first": on_policy, "counts": [90]}, "negative": {"first": on_policy - 60, "counts": [10]}}
    early = {"positive": {"first": 400, "counts": [10**6]}, "negative": {"first": 0, "counts": []}}
    rows = [
        {"step": n, "grad_norm": [1.0], "histograms": {"multiplier": late if n > 18 else early}} for n in range(1, 21)
    ]
    (run_dir / "updates.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    charts, missing = draw_charts(load_run(run_dir))
    (chart,) = (each for each in charts if each.key == "inside")
    # A tenth of the tokens lies 60 bins lower: 0.2651 / step^60 = 0.0081; the median is 0.265, to 3 %.
    numbers = [float(text) for text in re.findall(r"\d+\.\d+", chart.caption)]
    assert numbers == pytest.approx([0.2651, 0.2651 / step**60, 0.2651], rel=0.035)
    assert "gradient multiplier M" in chart.svg and "Inside the ratio" not in missing


def test_histograms_beyond_the_bins_are_refused_by_line(run_dir: Path):
    row = {"step": 1, "histograms": {"multiplier": {"positive": {"first": 420, "counts": [1] * 10}}}}
    (run_dir / "updates.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ReportError, match=r"updates\.jsonl, line 1"):
        load_run(run_dir)
