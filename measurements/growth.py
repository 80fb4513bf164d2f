"""How the time and memory of a step grow with G, the image and the completions; a JSON and an image.

Around 4 prompts x 8 completions, 306 image tokens and 128-token completions one of the three is changed at a time: G
from 2 to 32, the image from 64 to 1,020 image tokens, the completions from 32 to 512 tokens. Every point is a fresh
process of the real trainer (float32, one thread, tiny Qwen2.5-VL) in which all completions use up their budget; time is
the median step, memory the highest resident set (on a GPU: what torch allocated) minus the one before the first step.
With --peer TRL's GRPOTrainer takes turns with it at every point (`trainer_sides.trl_settings`).

A straight line c0 + c1 G through the smallest and the middle value of G gives what the largest would cost if cost were
linear in G R and the prompt paid once; "over_linear" is the measured cost over that.

Usage: python measurements/growth.py [--rounds 5] [--peer] [--axes generations image completion] [--out FILE]
                                   [--picture FILE] [--model tiny]
On a GPU `--model 0.5b` grows a model of that size in bfloat16.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from shapes import REALISTIC, ROOT, Shape, prepare
from side_by_side import Side, alternate, apart, spread, use_one_thread, write_record
from trainer_sides import our_side, read_phases, trl_side

from vlm_mhpo.pages.plotting import ACCENT, GREYS, MUTED, PAPER, chart_style

WARMUP = 1
BASE = replace(REALISTIC, name="growth", num_prompts=4)


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that grows: the label of its panel, and (value on the axis, shape) of its points."""

    label: str
    points: tuple[tuple[int, Shape], ...]


def pictures(*sizes: tuple[int, int]) -> tuple[tuple[int, Shape], ...]:
    """Points with images of these many image tokens in width and height."""
    return tuple((w * h, replace(BASE, picture=(28 * w, 28 * h))) for w, h in sizes)


AXES = {
    "generations": Axis(
        "completions per prompt (G)", tuple((g, replace(BASE, num_generations=g)) for g in (2, 4, 8, 16, 32))
    ),
    "image": Axis("image tokens", pictures((8, 8), (12, 12), (18, 17), (24, 24), (34, 30))),
    "completion": Axis(
        "tokens of a completion", tuple((r, replace(BASE, max_completion_length=r)) for r in (32, 64, 128, 256, 512))
    ),
}


def main() -> None:
    """Measure every point, write the JSON and the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peer", action="store_true", help="measure TRL at every point, too")
    parser.add_argument("--model", choices=("tiny", "0.5b"), default="tiny")
    parser.add_argument("--axes", nargs="+", choices=AXES, default=list(AXES))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "growth.png")
    arguments = parser.parse_args()
    use_one_thread()
    results: dict[str, Any] = {}
    for name in arguments.axes:
        results[name] = [point(value, shape, arguments) for value, shape in AXES[name].points]
    if "generations" in results:
        results["over_linear"] = {
            side: over_linear(results["generations"], side) for side in results["generations"][0]["sides"]
        }
    write_record("growth", results, arguments.out)
    draw(results, arguments.picture)


def point(value: int, shape: Shape, arguments: argparse.Namespace) -> dict[str, Any]:
    """One point: times, memory and phases of each side."""
    print(f"{shape}", file=sys.stderr, flush=True)
    runs = {"ours": our_side} | ({"trl": trl_side} if arguments.peer else {})
    shape = replace(shape, model=arguments.model)
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        overrides = apart(prepare, shape, Path(folder))
        sides = {name: stack.enter_context(Side(run, overrides)) for name, run in runs.items()}
        steps = alternate({name: side.step for name, side in sides.items()}, arguments.rounds, WARMUP)
        phases = read_phases(Path(folder) / shape.name / "run", WARMUP)
    return {
        "value": value,
        "sides": {
            name: {
                "wall_s": spread([step["wall_s"] for step in each]),
                "cpu_s": spread([step["cpu_s"] for step in each]),
                "extra_peak_mb": (each[-1]["peak_bytes"] - sides[name].ready["held_bytes"]) / 1e6,
            }
            for name, each in steps.items()
        },
        "phases_wall_s": phases,
    }


def over_linear(points: Sequence[dict[str, Any]], side: str) -> dict[str, float]:
    """Measured over extrapolated cost of the last point, from the first and the middle one: processor time, memory."""

    def excess(read: Any) -> float:
        chosen = (points[0], points[len(points) // 2], points[-1])
        (x0, y0), (x1, y1), (x, y) = [(each["value"], read(each["sides"][side])) for each in chosen]
        return y / (y0 + (y1 - y0) / (x1 - x0) * (x - x0))

    return {
        "cpu_s": excess(lambda facts: facts["cpu_s"]["median"]),
        "extra_peak_mb": excess(lambda facts: facts["extra_peak_mb"]),
    }


def draw(results: dict[str, Any], file: Path) -> None:
    """Two rows of panels: processor seconds of a step, and memory; one column an axis, one line a side."""
    axes = {name: AXES[name] for name in AXES if name in results}
    rows = (
        ("processor seconds per step", lambda facts: facts["cpu_s"]["median"]),
        ("memory of a step, GB", lambda facts: facts["extra_peak_mb"] / 1e3),
    )
    with chart_style():
        canvas = Figure(figsize=(3.3 * len(axes), 4.6), dpi=130, facecolor=PAPER)
        FigureCanvasAgg(canvas)
        panels = canvas.subplots(2, len(axes), sharex="col", squeeze=False)
        for column, (name, axis) in enumerate(axes.items()):
            for row, (title, read) in enumerate(rows):
                panel = panels[row][column]
                for side in results[name][0]["sides"]:
                    xs = [each["value"] for each in results[name]]
                    ys = [read(each["sides"][side]) for each in results[name]]
                    color = ACCENT if side == "ours" else GREYS[2]
                    panel.plot(xs, ys, color=color, marker="o", markersize=3)
                    panel.annotate(
                        side.upper() if side == "trl" else side,
                        (xs[-1], ys[-1]),
                        xytext=(-4, 5),
                        textcoords="offset points",
                        ha="right",
                        color=color,
                    )
                panel.set_title(title, color=MUTED)
                panel.set_xlim(left=0)
                panel.set_ylim(bottom=0)
            panels[1][column].set_xlabel(axis.label)
        canvas.tight_layout()
        canvas.savefig(file, format="png", metadata={"Software": None})


if __name__ == "__main__":
    main()
