"""The comparison as images: learning curves with bands, and means with their intervals side by side."""

from __future__ import annotations

import io
from collections import defaultdict

from matplotlib import colormaps
from matplotlib.figure import Figure

from vlm_mhpo.records.statistics import over_runs
from vlm_mhpo.records.study import MEASURES, Runs, Table

# What the second image shows, and the factor to the unit of its axis.
SHOWN = {"accuracy": 100.0, "norm_ratio": 1.0, "drift": 1.0}


def draw_curves(runs: Runs) -> bytes:
    """PNG of held-out accuracy over the steps: mean line and Student's 95 % band of each variant; one seed has none."""
    figure = Figure(figsize=(9, 4.2), layout="constrained")
    axis = figure.subplots()
    for index, (name, by_seed) in enumerate(runs.items()):
        # Step by step: a seed may have evaluations that another has not.
        heights = defaultdict(list)
        for step, accuracy in (point for run in by_seed.values() for point in run.curve):
            heights[step].append(accuracy)
        steps = sorted(heights)
        points = [over_runs(heights[step]) for step in steps]
        style = {"color": colormaps["tab10"](index % 10), "linestyle": ("-", "--", ":")[index // 10 % 3]}
        axis.plot(steps, [100 * p.mean for p in points], label=plain(name), linewidth=1.8, **style)
        lows, highs = [100 * p.low for p in points], [100 * p.high for p in points]
        axis.fill_between(steps, lows, highs, color=style["color"], alpha=0.12, linewidth=0)
    axis.set(xlabel="step", ylabel="held-out accuracy, %")
    axis.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside right upper", frameon=False, fontsize=8)
    return png(figure)


def draw_intervals(means: Table, baseline: str) -> bytes:
    """PNG of mean and 95 % interval of the measures in SHOWN, one line a variant, a rule at the baseline."""
    figure = Figure(figsize=(9, 1.1 + 0.26 * len(means)), layout="constrained")
    axes = figure.subplots(1, len(SHOWN), sharey=True)
    for axis, (measure, factor) in zip(axes, SHOWN.items(), strict=True):
        for height, cells in enumerate(means.values()):
            cell = cells[measure]
            axis.plot([factor * cell.low, factor * cell.high], [height, height], color="0.3", linewidth=1.4)
            axis.plot(factor * cell.mean, height, "o", color="tab:red", markersize=4.5)
        if baseline in means:
            axis.axvline(factor * means[baseline][measure].mean, color="0.75", linewidth=0.8, zorder=0)
        axis.set_title(MEASURES[measure] + (", %" if factor == 100.0 else ""), fontsize=9, wrap=True)
        axis.tick_params(labelsize=8)
        axis.locator_params(axis="x", nbins=4)
        axis.spines[["top", "right", "left"]].set_visible(False)
    axes[0].set_yticks(range(len(means)), [plain(name) for name in means])
    axes[0].invert_yaxis()
    return png(figure)


def plain(name: str) -> str:
    """A name without the dollar signs that matplotlib would read as mathematics."""
    return name.replace("$", r"\$")


def png(figure: Figure) -> bytes:
    """The encoded figure; the same bytes for the same figure."""
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=140, metadata={"Software": None})
    return stream.getvalue()
