"""The chart of what is inside the ratio: token histograms by the sign of the advantage, late in the run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm_mhpo.pages.plotting import ACCENT, INK, Label, label_ends, new_figure
from vlm_mhpo.records.histograms import EDGES, NUM_BINS, SIGNS, quantile
from vlm_mhpo.records.nouns import Run

TITLES = {
    "log_ratio": "log of the ratio r, nats",
    "multiplier": "gradient multiplier M",
    "mhpo/psi": "modulated log-ratio psi, nats",
    "mhpo/zeta": "hazard zeta",
}
COLORS = {"positive": ACCENT, "negative": INK}
TICKS = (-10, -1, -0.1, -0.01, 0, 0.01, 0.1, 1, 10)
# Neighbouring bins that are drawn as one: the recorded ones are finer than a chart can show.
BINS_A_BAR = 6


def draw_inside(run: Run) -> tuple[Figure, str] | None:
    """Histograms of each recorded quantity, on bins that are linear around 0 and geometric away from it."""
    shown = {
        name: run.histograms[name] for name in TITLES if any(any(c) for c in run.histograms.get(name, {}).values())
    }
    if not shown:
        return None
    figure, axes = new_figure(len(shown), panel_height=1.35)
    parts = []
    for ax, (name, by_sign) in zip(axes, shown.items(), strict=True):
        ax.set_title(TITLES[name])
        _draw_histogram(ax, by_sign)
        both = [sum(counts) for counts in zip(*by_sign.values(), strict=True)]
        low, middle, high = (quantile(both, share) for share in (0.01, 0.5, 0.99))
        parts.append(f"{name.removeprefix('mhpo/').replace('_', '-')} {middle:.3g} ({low:.3g} to {high:.3g})")
    axes[-1].set_xticks([place(value) for value in TICKS], [f"{value:g}" for value in TICKS])
    return figure, f"Tokens of the last tenth of the steps; median and 1st to 99th percentile: {', '.join(parts)}."


def _draw_histogram(ax: Axes, by_sign: Mapping[str, Sequence[int]]) -> None:
    """One outline a sign, each as a share of its own tokens."""
    labels = []
    for sign in SIGNS:
        counts = by_sign.get(sign, ())
        if not any(counts):
            continue
        bars = [sum(counts[start : start + BINS_A_BAR]) / sum(counts) for start in range(0, NUM_BINS, BINS_A_BAR)]
        edges = [*range(0, NUM_BINS, BINS_A_BAR), NUM_BINS]
        ax.stairs(bars, edges, color=COLORS[sign], fill=sign == "positive", alpha=0.45 if sign == "positive" else 1)
        labels.append(
            Label(
                max(bars) * (1 if sign == "positive" else 0.6),
                f"A {'>' if sign == 'positive' else '<'} 0",
                COLORS[sign],
            )
        )
    ax.set_yticks([])
    label_ends(ax, labels, gap=0.2)


def place(value: float) -> int:
    """The bin that a value falls into: its place on the axis."""
    return sum(edge <= value for edge in EDGES)
