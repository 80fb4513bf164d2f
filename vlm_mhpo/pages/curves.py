"""The shapes that charts are made of: a curve over its steps, grey lines with labels, a band, stacked areas."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes

from vlm_mhpo.pages.plotting import ACCENT, GREYS, MUTED, PAPER, Label, smooth, thin
from vlm_mhpo.records.nouns import Series


def bold_over_thin(ax: Axes, series: Series) -> None:
    """Each step as a thin line under its moving average."""
    raw, bold = thin(series), thin(smooth(series))
    if len(raw.steps) > 20:
        ax.plot(raw.steps, raw.values, color=ACCENT, linewidth=0.7, alpha=0.35)
    ax.plot(bold.steps, bold.values, color=ACCENT, linewidth=1.8, marker="o" if len(bold.steps) == 1 else None)


def lines_of(ax: Axes, lines: Mapping[str, Series], accent: str | None = None) -> list[Label]:
    """One smoothed grey line a name, the one named `accent` in the accent colour; the labels for their ends."""
    labels = []
    for index, (name, series) in enumerate(lines.items()):
        color = ACCENT if name == accent else GREYS[(2, 0, 4, 1, 3)[index % 5]]
        line = thin(smooth(series))
        ax.plot(line.steps, line.values, color=color, linewidth=1.4 if name == accent else 1.1)
        labels.append(Label(line.values[-1], short_words(name), ACCENT if name == accent else MUTED))
    return labels


def band(ax: Axes, low: Series | None, high: Series | None) -> bool:
    """A soft band between two metrics at the steps that have both; False when there is none."""
    if low is None or high is None or low.steps != high.steps:
        return False
    bottom, top = thin(low, "min"), thin(high, "max")
    ax.fill_between(bottom.steps, bottom.values, top.values, color=ACCENT, alpha=0.14, linewidth=0)
    return True


def stack(ax: Axes, parts: Mapping[str, Series], colors: list[str]) -> list[tuple[float, float]]:
    """Stacked moving averages, a step without a part counting as 0; (bottom, top) of each part at the last step."""
    steps = tuple(sorted({step for series in parts.values() for step in series.steps}))
    layers = []
    for series in parts.values():
        by_step = dict(zip(series.steps, series.values, strict=True))
        layers.append(thin(smooth(Series(steps, tuple(by_step.get(step, 0.0) for step in steps)))))
    x = layers[0].steps
    ax.stackplot(x, *(layer.values for layer in layers), colors=colors, edgecolor=PAPER, linewidth=0.4)
    ax.set_xlim(x[0], x[-1] if x[-1] > x[0] else x[0] + 1)
    bounds, bottom = [], 0.0
    for layer in layers:
        bounds.append((bottom, bottom + layer.values[-1]))
        bottom += layer.values[-1]
    return bounds


def positive(series: Series | None) -> Series | None:
    """The points above 0 (a log axis has no others), or None when there are none."""
    pairs = [(s, v) for s, v in zip(series.steps, series.values, strict=True) if v > 0] if series else []
    return Series(*(tuple(column) for column in zip(*pairs, strict=True))) if pairs else None


def short_words(name: str) -> str:
    """A metric's name as a short label."""
    words = name.replace("_", " ")
    return words if len(words) <= 18 else words[:17] + "…"
