"""The charts of a run as inline SVG: one function a chart, each None when the run lacks its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from vlm_mhpo.pages.curves import band, bold_over_thin, lines_of, positive, short_words, stack
from vlm_mhpo.pages.plotting import (
    ACCENT,
    GREYS,
    INK,
    MUTED,
    PAPER,
    Label,
    chart_style,
    ends,
    label_ends,
    log_axis,
    new_figure,
    share_axis,
    smooth,
    thin,
    to_svg,
)
from vlm_mhpo.pages.run_inside import draw_inside
from vlm_mhpo.records import metric_table as table
from vlm_mhpo.records.norms import percentile
from vlm_mhpo.records.nouns import Run, Series

CORRECT = "correct"


@dataclass(frozen=True, slots=True)
class Chart:
    """A drawn chart: key (an HTML id), title, caption in words and numbers, and its SVG element."""

    key: str
    title: str
    caption: str
    svg: str


class Change(NamedTuple):
    """What a curve did: 'first → last', and the whole caption."""

    short: str
    caption: str


Drawing = tuple[Figure, str] | None


def draw_charts(run: Run) -> tuple[tuple[Chart, ...], tuple[str, ...]]:
    """All charts that the run's metrics allow, and the titles of those that they do not allow."""
    drawers = {
        table.REWARDS: _reward,
        table.HELD_OUT: _accuracy,
        table.VERDICTS: _verdicts,
        table.LENGTHS: _length,
        table.SIGNAL: _signal,
        table.GRADIENT: _gradient,
        table.RATIOS: _ratio,
        table.DAMPING: _damping,
        table.INSIDE: draw_inside,
        table.DIVERGENCE: _entropy,
        table.TIMES: _time,
    }
    charts, missing = [], []
    for group, draw in drawers.items():
        with chart_style():
            drawing = draw(run)
        if drawing is None:
            missing.append(group.title)
        else:
            charts.append(Chart(group.key, group.title, drawing[1], to_svg(drawing[0], group.key)))
    return tuple(charts), tuple(missing)


def draw_reward_curve(ax: Axes, run: Run) -> Change | None:
    """Draw the mean reward of the sampled completions, each step thin and smoothed bold; None without it."""
    reward = run.series(table.REWARD)
    if reward is None:
        return None
    bold_over_thin(ax, reward)
    first, last, count = ends(reward)
    change = f"{first:.2f} → {last:.2f}"
    return Change(change, f"{change}, the means of the first and last {_plural(count, 'step')}.")


def draw_accuracy_points(ax: Axes, run: Run) -> Change | None:
    """Draw held-out accuracy (0..1), with 95 % bars where an evaluation file has them; None without any."""
    points, bars = _accuracy_points(run)
    if not points:
        return None
    steps = sorted(points)
    for step, (low, high) in sorted(bars.items()):
        ax.plot([step, step], [low, high], color=ACCENT, linewidth=3.5, alpha=0.25)
    ax.plot(steps, [points[s] for s in steps], color=ACCENT, marker="o", markersize=4, markeredgecolor=PAPER)
    share_axis(ax)
    bar_note = " Bars: 95\N{NO-BREAK SPACE}% interval." if bars else ""
    first, last = steps[0], steps[-1]
    low, high = _percent(points[first], 1), _percent(points[last], 1)
    return Change(f"{low} → {high}", f"{low} at step {first} → {high} at step {last}.{bar_note}")


def _accuracy_points(run: Run) -> tuple[dict[int, float], dict[int, tuple[float, float]]]:
    """Accuracy and interval by step: from metrics.jsonl, and from evaluations that decode as most of them do."""
    series = run.series(table.EVAL_ACCURACY)
    points = dict(zip(series.steps, series.values, strict=True)) if series else {}
    bars: dict[int, tuple[float, float]] = {}
    judged = [e for e in run.evaluations if e.accuracy is not None and e.step is not None]
    for evaluation in [e for e in judged if not e.temperature] or judged:
        points[evaluation.step] = evaluation.accuracy
        if evaluation.accuracy_low is not None and evaluation.accuracy_high is not None:
            bars[evaluation.step] = (evaluation.accuracy_low, evaluation.accuracy_high)
    return points, bars


def _reward(run: Run) -> Drawing:
    """Mean reward and each reward function's mean."""
    figure, (ax,) = new_figure()
    change = draw_reward_curve(ax, run)
    if change is None:
        return None
    parts = run.family(table.REWARD_PART, moment="mean")
    parts = parts if len(parts) > 1 else {}  # the only part is the reward itself
    labels = [Label(smooth(run.metrics[table.REWARD.name]).values[-1], "reward", ACCENT)]
    labels += lines_of(ax, parts)
    label_ends(ax, labels)
    return figure, change.caption + " Thin: each step. Bold: moving average." + (" Grey: parts." if parts else "")


def _accuracy(run: Run) -> Drawing:
    """Held-out accuracy, with each source's accuracy in grey."""
    figure, (ax,) = new_figure()
    by_source = run.family(table.EVAL_PART)
    labels = lines_of(ax, by_source) if len(by_source) > 1 else []
    change = draw_accuracy_points(ax, run)
    if change is None:
        return None
    points, _ = _accuracy_points(run)
    label_ends(ax, [Label(points[max(points)], "all" if labels else "accuracy", ACCENT), *labels])
    return figure, change.caption + (" Grey: each source." if labels else "")


def _verdicts(run: Run) -> Drawing:
    """Share of each verdict over the steps, stacked: correct at the bottom, then by how often it came."""
    shares = run.family(table.VERDICT)
    if not shares:
        return None
    figure, (ax,) = new_figure()
    names = sorted(shares, key=lambda name: (name != CORRECT, -sum(shares[name].values), name))
    colors = [ACCENT if name == CORRECT else GREYS[i % len(GREYS)] for i, name in enumerate(names)]
    tops = stack(ax, {name: shares[name] for name in names}, colors)
    ax.set_ylim(0, 1)
    share_axis(ax)
    middles = [(low + high) / 2 for low, high in tops]
    colors = [ACCENT if name == CORRECT else MUTED for name in names]
    label_ends(ax, [Label(y, short_words(n), color) for y, n, color in zip(middles, names, colors, strict=True)])
    finals = ", ".join(f"{short_words(n)} {_percent(high - low)}" for n, (low, high) in zip(names, tops, strict=True))
    return figure, f"Moving average; at the end: {finals}."


def _length(run: Run) -> Drawing:
    """Mean completion length with its range, and the share that the token budget cut."""
    mean, low, high = (run.series(table.LENGTH, extent=extent) for extent in ("mean", "min", "max"))
    clipped = run.series(table.LENGTH_CUT)
    if mean is None:
        return None
    figure, axes = new_figure(1 + (clipped is not None), panel_height=2.05 if clipped is None else 1.35)
    has_band = band(axes[0], low, high)
    bold_over_thin(axes[0], mean)
    axes[0].set_title("tokens")
    label_ends(axes[0], [Label(smooth(mean).values[-1], "mean", ACCENT)])
    first, last, _ = ends(mean)
    caption = f"Mean {first:.1f} → {last:.1f} tokens." + (" Band: shortest to longest." if has_band else "")
    if clipped is not None:
        axes[1].set_title("share cut by the token budget")
        bold_over_thin(axes[1], clipped)
        share_axis(axes[1])
        axes[1].set_ylim(0, max(0.02, *clipped.values))
        caption += f" Cut by the budget: {_percent(ends(clipped)[1], 1)} at the end."
    return figure, caption


def _signal(run: Run) -> Drawing:
    """Share of groups whose rewards are all equal: their advantages are 0 and they teach nothing."""
    flat = run.series(table.FLAT_GROUPS)
    if flat is None:
        return None
    figure, (ax,) = new_figure()
    lines = _found({"all equal": flat, "tokens left out": run.series(table.IDLE_TOKENS)})
    label_ends(ax, lines_of(ax, lines, "all equal"))
    ax.set_ylim(0, 1)
    share_axis(ax)
    first, last, _ = ends(flat)
    caption = (
        f"Groups whose rewards are all equal have no advantage to learn from: {_percent(first)} → {_percent(last)}."
    )
    if idle := lines.get("tokens left out"):
        mean = sum(idle.values) / len(idle.values)
        caption += f" The updates left out {_percent(mean)} of all sampled tokens, which add exactly nothing."
    return figure, caption


def _gradient(run: Run) -> Drawing:
    """Gradient norm before clipping on a log axis, with its median and 99th percentile."""
    norm, largest = run.series(table.GRAD_NORM), run.series(table.GRAD_NORM_MAX)
    drawn = positive(norm)
    if norm is None or drawn is None:
        return None
    figure, (ax,) = new_figure()
    log_axis(ax)
    if (peaks := positive(largest)) is not None:
        peaks = thin(peaks, "max")
        ax.plot(peaks.steps, peaks.values, color=GREYS[0], linewidth=0.7)
    line = thin(drawn, "max")
    ax.plot(line.steps, line.values, color=ACCENT, linewidth=0.9)
    quantiles = {n: value for n in (50, 99) if (value := percentile(norm.values, n / 100)) > 0}
    for value in quantiles.values():
        ax.axhline(value, color=INK, linewidth=0.8, dashes=(4, 3))
    label_ends(ax, [Label(value, f"p{n} {value:.3g}", INK) for n, value in quantiles.items()])
    p50, p99 = percentile(norm.values, 0.5), percentile(norm.values, 0.99)
    caption = f"Log scale. Median {p50:.3g}, 99th percentile {p99:.3g}, largest {max(norm.values):.3g}."
    if largest is not None:
        caption += f" Grey: the largest update of a step, at most {max(largest.values):.3g}."
    return figure, caption


def _ratio(run: Run) -> Drawing:
    """Ratio of current to sampling policy with its range: its log in nats if that was recorded, else on a log axis."""
    extents = ("mean", "min", "max")
    is_log = bool(objectives := [*run.family(table.LOG_RATIO, extent="mean")])
    if is_log:
        mean, low, high = (run.series(table.LOG_RATIO, objective=objectives[0], extent=extent) for extent in extents)
    else:
        mean, low, high = (positive(run.series(table.RATIO, extent=extent)) for extent in extents)
    if mean is None:
        return None
    figure, (ax,) = new_figure()
    if not is_log:
        log_axis(ax)
    outer = band(ax, low, high)
    middle = (positive(run.series(table.RATIO_QUANTILE, quantile=share)) for share in ("p05", "p95"))
    inner = not is_log and band(ax, *middle)
    line = thin(mean)
    ax.plot(line.steps, line.values, color=ACCENT)
    label_ends(ax, [Label(line.values[-1], "mean", ACCENT)])
    caption = "Log of current over sampling policy, nats." if is_log else "Current over sampling policy, log scale."
    caption += f" Mean at the last step: {mean.values[-1]:.2g}."
    if outer and low is not None and high is not None:
        caption += f" Band: smallest to largest token ({min(low.values):.3g} to {max(high.values):.3g} over the run)."
    return figure, caption + (" Darker band: 5th to 95th percentile." if inner else "")


def _damping(run: Run) -> Drawing:
    """What the objective does to tokens: the means of MHPO's parts and its dead zone, or the share that is clipped."""
    means = run.family(table.MHPO_PART, extent="mean")
    zones = {"all": "", "advantage > 0": "_positive", "advantage < 0": "_negative"}
    clips = {"low": "low", "high": "high", "both": "region"}
    panels = {
        "means over tokens": means,
        "share of |advantage| in the dead zone": _found(
            {title: run.series(table.DEAD_ZONE, sign=sign) for title, sign in zones.items()}
        ),
        "share of tokens clipped": _found(
            {title: run.series(table.CLIPPED, side=side) for title, side in clips.items()}
        ),
    }
    panels = {title: lines for title, lines in panels.items() if lines}
    if not panels:
        return None
    figure, axes = new_figure(len(panels), panel_height=2.05 if len(panels) == 1 else 1.35)
    parts = []
    for ax, (title, lines) in zip(axes, panels.items(), strict=True):
        ax.set_title(title)
        accent = next((name for name in ("multiplier", "all", "both") if name in lines), None)
        label_ends(ax, lines_of(ax, lines, accent), gap=0.16)
        if lines is means:
            parts += [f"{short_words(name)} {series.values[-1]:.3g}" for name, series in means.items()]
        else:
            share_axis(ax)
            parts += [f"{title} {_percent(lines[accent].values[-1], 2)}"] if accent else []
    return figure, f"At the last step: {', '.join(parts)}."


def _found(lines: Mapping[str, Series | None]) -> dict[str, Series]:
    """The lines that the run has."""
    return {title: series for title, series in lines.items() if series is not None}


def _entropy(run: Run) -> Drawing:
    """Policy entropy, and what was recorded of divergence: to the reference, to the sampler, and numerically."""
    divergences = _found(
        {
            "to reference": run.series(table.KL),
            "to sampler": run.series(table.KL_TO_SAMPLER),
            "last minibatch": run.series(table.KL_LAST_MINIBATCH),
            "log-p error": run.series(table.SAMPLING_GAP, size="mean"),
        }
    )
    entropy = run.series(table.ENTROPY)
    panels = ([("entropy, nats per token", entropy)] if entropy else []) + (
        [("divergence, nats per token", divergences)] if divergences else []
    )
    if not panels:
        return None
    figure, axes = new_figure(len(panels), panel_height=2.05 if len(panels) == 1 else 1.35)
    for ax, (title, content) in zip(axes, panels, strict=True):
        ax.set_title(title)
        if isinstance(content, Series):
            bold_over_thin(ax, content)
            label_ends(ax, [Label(smooth(content).values[-1], "entropy", ACCENT)])
        else:
            label_ends(ax, lines_of(ax, content, "to sampler"), gap=0.16)
    parts = ["Entropy {:.3f} → {:.3f}".format(*ends(entropy)[:2])] if entropy else []
    parts += [f"{name} {ends(series)[1]:.2g}" for name, series in divergences.items()]
    return figure, ", ".join(parts) + " at the end."


def _time(run: Run) -> Drawing:
    """Seconds of each stage of a step, stacked; what step_time holds beyond the stages is 'other'."""
    stages, total = run.family(table.STAGE_TIME), run.series(table.STEP_TIME)
    if not stages and total is None:
        return None
    figure, (ax,) = new_figure()
    stages = dict(sorted(stages.items(), key=lambda pair: -sum(pair[1].values)))
    if total is not None:
        known = [dict(zip(s.steps, s.values, strict=True)) for s in stages.values()]
        rest = (
            max(0.0, value - sum(k.get(step, 0.0) for k in known))
            for step, value in zip(total.steps, total.values, strict=True)
        )
        stages["other" if stages else "step"] = Series(total.steps, tuple(rest))
    colors = [ACCENT, *(GREYS[i % len(GREYS)] for i in range(len(stages)))][: len(stages)]
    tops = stack(ax, stages, colors)
    labels = [
        Label((low + high) / 2, name, ACCENT if color == ACCENT else MUTED)
        for (low, high), name, color in zip(tops, stages, colors, strict=True)
    ]
    label_ends(ax, labels)
    seconds = {name: sum(s.values) for name, s in stages.items()}
    whole = sum(seconds.values()) or 1.0
    num_steps = len({step for s in stages.values() for step in s.steps})
    shares = ", ".join(f"{name} {_percent(value / whole)}" for name, value in seconds.items())
    return figure, f"{whole / num_steps:.2f} s a step on average: {shares}."


def _percent(share: float, decimals: int = 0) -> str:
    """0.789 as '79 %', with a space that does not break."""
    return f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def _plural(count: int, noun: str) -> str:
    """'1 step', '22 steps'."""
    return f"{count} {noun}" + ("" if count == 1 else "s")
