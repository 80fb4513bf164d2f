"""How charts look: one style, curves that stay light, labels at the lines, SVG that follows the page's colours.

Charts are drawn with the colours below; in the SVG each becomes a CSS variable of the page, so one
drawing serves light and dark. Nothing here touches pyplot or matplotlib's global state for longer
than a call. The same input gives the same bytes: fixed hash salt, no date, no creator.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from typing import NamedTuple

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from vlm_mhpo.records.nouns import Series

INK, MUTED, RULE, ACCENT, PAPER = "#1c1d20", "#6a6d75", "#dfe0e3", "#0b6b8a", "#fdfdfc"
GREYS = ("#a9abb2", "#c3c5ca", "#8e9098", "#d6d7db", "#777a82")
CSS_VARIABLES = {INK: "--ink", MUTED: "--muted", RULE: "--rule", ACCENT: "--accent", PAPER: "--paper"} | {
    grey: f"--grey{index}" for index, grey in enumerate(GREYS, start=1)
}
MAX_POINTS = 500  # a curve of a long run is binned to this many points, so the page stays small

_STYLE = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "text.color": INK,
    "text.parse_math": False,  # names and problems are untrusted: a lone $ would be an error
    "axes.edgecolor": RULE,
    "axes.facecolor": "none",
    "axes.labelcolor": MUTED,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.titlecolor": MUTED,
    "axes.titlepad": 5.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "xtick.color": RULE,
    "xtick.labelcolor": MUTED,
    "ytick.color": RULE,
    "ytick.labelcolor": MUTED,
    "ytick.major.size": 0.0,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "figure.facecolor": "none",
    "savefig.facecolor": "auto",
    "svg.fonttype": "none",
    "svg.hashsalt": "vlm-mhpo-report",
}


class Label(NamedTuple):
    """A text at the right end of a line: its height in data units, text and colour."""

    y: float
    text: str
    color: str


@contextmanager
def chart_style() -> Iterator[None]:
    """The report's style for the block, whatever the user's matplotlibrc says."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        # A problem in Chinese draws boxes in a font without its characters; a warning a glyph helps nobody.
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


def new_figure(num_panels: int = 1, width: float = 4.8, panel_height: float = 2.05) -> tuple[Figure, list[Axes]]:
    """A figure (inches) of stacked panels over one step axis, with room for labels at the right."""
    height = 0.45 + panel_height * num_panels
    figure = Figure(figsize=(width, height))
    axes = figure.subplots(num_panels, 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(left=0.1, right=0.76, top=1 - 0.24 / height, bottom=0.33 / height, hspace=0.3)
    for ax in axes:
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
    return figure, list(axes)


def share_axis(ax: Axes) -> None:
    """Label the y axis of shares 0..1 in percent."""
    ax.yaxis.set_major_formatter(FuncFormatter(lambda share, _: f"{round(100 * share, 6):g}\N{NO-BREAK SPACE}%"))


def log_axis(ax: Axes) -> None:
    """A logarithmic y axis with plain numbers (matplotlib's own labels need the math parser, which is off here)."""
    ax.set_yscale("log")
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=6))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
    ax.tick_params(axis="y", which="minor", length=0)


def thin(series: Series, how: str = "mean") -> Series:
    """At most MAX_POINTS points: each bin of neighbouring steps by its mean, min or max ('mean', 'min', 'max')."""
    size = math.ceil(len(series.steps) / MAX_POINTS)
    if size <= 1:
        return series
    pick = {"mean": lambda values: sum(values) / len(values), "min": min, "max": max}[how]
    starts = range(0, len(series.steps), size)
    return Series(
        tuple(series.steps[min(s + size // 2, len(series.steps) - 1)] for s in starts),
        tuple(pick(series.values[s : s + size]) for s in starts),
    )


def smooth(series: Series) -> Series:
    """Centred moving average over about a twentieth of the run; the window shrinks at both ends."""
    half = len(series.values) // 40
    values = series.values
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return Series(series.steps, tuple(sum(window) / len(window) for window in windows))


def ends(series: Series) -> tuple[float, float, int]:
    """Mean of the first and of the last tenth of a series, and how many points a tenth is (at least 1)."""
    count = max(1, len(series.values) // 10)
    return sum(series.values[:count]) / count, sum(series.values[-count:]) / count, count


def label_ends(ax: Axes, labels: Sequence[Label], gap: float = 0.115) -> None:
    """Write labels right of the axes at their heights, pushed apart to at least `gap` (share of the axes' height)."""
    to_share = ax.transData + ax.transAxes.inverted()
    x = ax.get_xlim()[1]
    placed = sorted(((float(to_share.transform((x, label.y))[1]), label) for label in labels), key=lambda pair: pair[0])
    heights = [min(max(height, 0.0), 1.0) for height, _ in placed]
    for lower, upper in pairwise(range(len(heights))):
        heights[upper] = max(heights[upper], heights[lower] + gap)
    if heights and heights[-1] > 1.0:  # the top ran over: push back down from the top
        heights[-1] = 1.0
        for lower, upper in reversed(list(pairwise(range(len(heights))))):
            heights[lower] = min(heights[lower], heights[upper] - gap)
    for height, (_, label) in zip(heights, placed, strict=True):
        ax.text(1.03, height, label.text, color=label.color, va="center", transform=ax.transAxes, clip_on=False)


def to_svg(figure: Figure, key: str) -> str:
    """A figure as an inline <svg> element: colours as CSS variables, ids prefixed by `key`, no size of its own."""
    buffer = io.StringIO()
    with chart_style():
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style type=\"text/css\">.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r"(<svg[^>]*?) width=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r"(<svg[^>]*?) height=\"[^\"]*\"", r"\1", svg, count=1)
    svg = re.sub(r" xmlns(:xlink)?=\"[^\"]*\"", "", svg)
    svg = svg.replace("<svg ", '<svg aria-hidden="true" ', 1)
    svg = re.sub(r'(\bid="|url\(#|xlink:href="#)', rf"\1{key}-", svg)
    for color, variable in CSS_VARIABLES.items():
        svg = svg.replace(color, f"var({variable})")
    return svg.strip()
