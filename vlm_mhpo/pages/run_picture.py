"""The wide image of a run for a README: learning curves, and held-out problems before and after."""

from __future__ import annotations

import textwrap
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.text import Text
from matplotlib.ticker import MaxNLocator

from vlm_mhpo.pages.gallery import Entry, choose_pair, compare
from vlm_mhpo.pages.images import open_picture
from vlm_mhpo.pages.plotting import ACCENT, INK, MUTED, PAPER, RULE, chart_style
from vlm_mhpo.pages.run_figures import draw_accuracy_points, draw_reward_curve
from vlm_mhpo.records.evaluation import EvalItem
from vlm_mhpo.records.nouns import Run
from vlm_mhpo.records.run_folder import load_run

NUM_EXAMPLES = 3
_WIDTH, _HEIGHT, _DPI = 13.0, 4.4, 130


def write_result_picture(run_dir: Path, out_png: Path) -> Path:
    """Write the image (PNG, 1690 x 572 pixels); the same folder gives the same bytes.

    Left: sampled reward and held-out accuracy against the step. Right: up to three held-out problems,
    with the gold answer, the answer before training (struck through when wrong) and after. A side
    that the run has nothing for leaves its place to the other one.

    Args:
        run_dir: the folder that the trainer wrote.
        out_png: the file to write; its folder is made.
    Returns:
        `out_png`.
    Raises:
        ReportError: the folder holds nothing to show, or a file in it is damaged.
    """
    run = load_run(run_dir)
    out_png = Path(out_png)
    out_png.parent.mkdir(parents=True, exist_ok=True)
    with chart_style():
        figure = Figure(figsize=(_WIDTH, _HEIGHT), dpi=_DPI, facecolor=PAPER)
        FigureCanvasAgg(figure)
        examples = _examples(run)
        has_curves = bool(run.metrics)
        split = 0.36 if examples else 0.97
        if has_curves:
            _draw_curves(figure, run, right=split)
        if examples:
            _draw_examples(figure, run, examples, left=split + 0.035 if has_curves else 0.03)
        figure.savefig(out_png, format="png", metadata={"Software": None})
    return out_png


def _draw_curves(figure: Figure, run: Run, right: float) -> None:
    """Reward over accuracy in the left part of the figure."""
    reward_ax, accuracy_ax = figure.subplots(2, 1, sharex=True)
    figure.subplots_adjust(left=0.045, right=right, top=0.92, bottom=0.08, hspace=0.28)
    curves = (
        (reward_ax, draw_reward_curve, "sampled reward"),
        (accuracy_ax, draw_accuracy_points, "held-out accuracy"),
    )
    for ax, draw, title in curves:
        change = draw(ax, run)
        ax.set_title(f"{title}   {change.short}" if change else f"{title}: not recorded", fontsize=10.5, color=INK)
        ax.yaxis.set_major_locator(MaxNLocator(nbins=4))
        ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    accuracy_ax.set_xlabel("step", loc="right", labelpad=1)


def _examples(run: Run) -> list[Entry]:
    """Up to three problems with an image and a completion: wrong-to-right first, of different sources if possible."""
    pair = choose_pair(run)
    entries = [e for e in compare(pair) if e.item.completions and e.item.images] if pair else []
    rank = {"fixed": 0, "right": 1, "wrong": 2, "broken": 3}
    seen: dict[tuple[str, str], int] = {}
    order = []
    for entry in entries:
        key = (entry.outcome, entry.item.source)
        seen[key] = seen.get(key, 0) + 1
        order.append((rank[entry.outcome], seen[key], len(order), entry))
    chosen: list[Entry] = []
    for *_, entry in sorted(order, key=lambda row: row[:3]):
        if len(chosen) == NUM_EXAMPLES:
            break
        if open_picture(run.folder, entry.item.images[0]) is not None:
            chosen.append(entry)
    return chosen


def _draw_examples(figure: Figure, run: Run, examples: list[Entry], left: float) -> None:
    """One column per problem: image, problem, gold, answer before, answer after."""
    gap = 0.025
    width = (0.985 - left - gap * (NUM_EXAMPLES - 1)) / NUM_EXAMPLES
    characters = int(width * _WIDTH * 72 / 5.2)
    figure.text(left, 0.9415, "held-out problems, before and after training", fontsize=10.5, va="bottom")
    lefts = [left + index * (width + gap) for index in range(len(examples))]
    pictures = [open_picture(run.folder, entry.item.images[0]) for entry in examples]
    axes = [figure.add_axes((x, 0.43, width, 0.48)) for x in lefts]
    for ax, picture in zip(axes, pictures, strict=True):
        _show_picture(ax, np.asarray(picture))
    top = min(ax.get_position().y0 for ax in axes) - 0.035
    for x, entry in zip(lefts, examples, strict=True):
        # The placeholder marks where the image stands in the text; here the image stands above it.
        problem = " ".join(entry.item.problem.replace("<image>", " ").split())
        lines = textwrap.wrap(problem, characters, max_lines=3, placeholder=" …")
        figure.text(x, top, "\n".join(lines), fontsize=9.5, va="top", linespacing=1.35)
        rows = [("gold", entry.item.shown_gold, INK, False)]
        rows += [_answer_row("before", entry.before)] if entry.before and entry.before.completions else []
        rows += [_answer_row("after", entry.item)]
        for row, (what, answer, color, struck) in enumerate(rows):
            y = top - 0.205 - 0.068 * row
            figure.text(x, y, what, fontsize=9.5, color=MUTED, va="center_baseline")
            text = figure.text(x + 0.045, y, _one_line(answer, characters - 10), fontsize=12, color=color)
            text.set_verticalalignment("center_baseline")
            if struck:
                _strike(figure, text)


def _show_picture(ax: Axes, pixels: np.ndarray) -> None:
    """A image without axes; a small one is enlarged without blur."""
    ax.imshow(pixels, interpolation="nearest" if max(pixels.shape[:2]) < 200 else "antialiased")
    ax.set_anchor("NW")
    ax.apply_aspect()  # now, so that its position is where the image really ends
    ax.grid(False)
    ax.set(xticks=[], yticks=[])
    for spine in ax.spines.values():
        spine.set(visible=True, color=RULE)


def _answer_row(what: str, item: EvalItem) -> tuple[str, str, str, bool]:
    """(label, answer, colour, struck) of an item's first completion."""
    first = item.completions[0]
    answer = first.extracted or first.text or "no answer"
    return what, answer + (" ✓" if first.correct else ""), ACCENT if first.correct else MUTED, not first.correct


def _one_line(text: str, limit: int) -> str:
    """A text on one line of at most `limit` characters."""
    line = " ".join(text.split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def _strike(figure: Figure, text: Text) -> None:
    """Draw a line through a text of the figure."""
    box = text.get_window_extent().transformed(figure.transFigure.inverted())
    middle = (box.y0 + box.y1) / 2
    figure.add_artist(Line2D((box.x0, box.x1), (middle, middle), color=text.get_color(), linewidth=1.1))
