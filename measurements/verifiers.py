"""Scores the labelled responses of tests/data/labelled with our verifier and its peers, side by side.

Every response goes to every grader in turn, so that what else the machine does meets all alike; times are of a
grader's own work, once a response, without its start. Then come the cases made to hang a grader, where a peer that
needs more than the limit is killed and replaced. A peer is tried in each of its forms (see verifier_graders.py); the
form with more right verdicts is kept, and only that one meets the hang cases. "Wrong rewarded" is a share of the wrong
responses, "right refused" of the right ones. The labels follow this project's verdict rules, so a peer that decides
otherwise by design (drops units, rounds to six places) counts as wrong there; the *_test sets were held out while our
rules were written.

Usage: python measurements/verifiers.py [--every 1] [--hang-limit 5] [--out FILE] [--picture FILE]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from quickstart_seeds import environment
from verifier_graders import CHOICES_ONLY, GRADERS, Grader, Outcome

from rewards import Item, format_score
from vlm_mhpo.pages.plotting import ACCENT, GREYS, INK, MUTED, PAPER, chart_style
from vlm_mhpo.records.norms import percentile

ROOT = Path(__file__).resolve().parent.parent
LABELLED = ROOT / "tests" / "data" / "labelled"
ITEM_FIELDS = ("gold", "template", "kind", "choices", "precision", "unit")
# A peer's own limits end at 15 s; without one it would be a hang case.
LIMIT_S = 20.0
QUICK_S = 1.5
# Measures of a record, with the words of the table and the image.
SHARES = {"right": "right", "wrong_rewarded": "wrong answers rewarded", "right_refused": "right answers refused"}


@dataclass(frozen=True, slots=True)
class Case:
    """A labelled response: the file's name without its split ("math", "hacks"), and dev, test or neither ("")."""

    family: str
    split: str
    category: str
    item: Item
    correct: bool


@dataclass(frozen=True, slots=True)
class Graded:
    """One grader's outcome on one case."""

    case: Case
    outcome: Outcome

    @property
    def is_right(self) -> bool:
        """The verdict is there and is the label's."""
        return self.outcome.paid is self.case.correct


@dataclass(frozen=True, slots=True)
class Measured:
    """All of one grader: the form that was kept, the labelled cases by form, and the hang cases in the kept form."""

    name: str
    form: str
    forms: dict[str, list[Graded]]
    hangs: list[Graded]


def main() -> None:
    """Grade, print the table, write the JSON and the image."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=1, help="take every n-th case (for a trial run)")
    parser.add_argument("--hang-limit", type=float, default=5.0, help="seconds after which a grader is killed")
    parser.add_argument("--out", type=Path, default=ROOT / "measurements" / "results" / "verifiers.json")
    parser.add_argument("--picture", type=Path, default=ROOT / "docs" / "verifiers.png")
    parser.add_argument("--families", nargs="+", default=["math", "choices", "text", "extraction", "hacks"])
    parser.add_argument("--no-hangs", action="store_true", help="leave out the cases that try to hang a grader")
    arguments = parser.parse_args()
    labelled = [case for family in arguments.families for case in read_cases(family)][:: arguments.every]
    hangs = [] if arguments.no_hangs else read_cases("hangs")[:: arguments.every]
    records = [record(measured, arguments.hang_limit) for measured in measure(labelled, hangs, arguments.hang_limit)]
    result = {
        "command": " ".join(["python", "measurements/verifiers.py", *without_places(sys.argv[1:])]),
        "cases": {"labelled": len(labelled), "right": sum(case.correct for case in labelled), "hangs": len(hangs)},
        "hang_limit_s": arguments.hang_limit,
        "format": judge_formats(),
        "graders": records,
        "environment": environment(),
    }
    for path in (arguments.out, arguments.picture):
        path.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(result, indent=1) + "\n")
    draw(records, arguments.picture)
    print(table(result))


def without_places(arguments: Sequence[str]) -> list[str]:
    """A command line without where its results went."""
    places = [index for index, each in enumerate(arguments) if each in ("--out", "--picture")]
    return [each for index, each in enumerate(arguments) if index not in places and index - 1 not in places]


def read_cases(family: str) -> list[Case]:
    """The cases of a family, all its splits."""
    cases = []
    for file in sorted(LABELLED.glob(f"{family}*.jsonl")):
        split = file.stem.removeprefix(family).strip("_")
        for row in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            fields = {name: row[name] for name in ITEM_FIELDS}
            choices = fields.pop("choices")
            item = Item(completion_of(row), choices=tuple(choices) if choices else None, **fields)
            cases.append(Case(family, split, row["category"], item, row["correct"]))
    return cases


def completion_of(row: dict[str, Any]) -> str:
    """The completion; a long one is stored as [head, piece, times, tail]."""
    if "completion" in row:
        return row["completion"]
    head, piece, times, tail = row["repeat"]
    return head + piece * times + tail


def measure(labelled: Sequence[Case], hangs: Sequence[Case], hang_limit_s: float) -> list[Measured]:
    """All graders on all cases."""
    with ExitStack() as stack:
        graders = [
            stack.enter_context(closing(Grader(name, form))) for name, forms in GRADERS.items() for form in forms
        ]
        results = alternate(graders, labelled, LIMIT_S, "labelled")
        best = {
            name: max((g for g in graders if g.name == name), key=lambda grader: right_share(results[grader]) or 0.0)
            for name in GRADERS
        }
        hung = alternate([g for g in best.values() if g.name != CHOICES_ONLY], hangs, hang_limit_s, "hangs")
    return [
        Measured(name, kept.form, {g.form: results[g] for g in graders if g.name == name}, hung.get(kept, []))
        for name, kept in best.items()
    ]


def alternate(
    graders: Sequence[Grader], cases: Sequence[Case], limit_s: float, what: str
) -> dict[Grader, list[Graded]]:
    """Every case to every grader that it is for; who comes first goes round."""
    results: dict[Grader, list[Graded]] = {grader: [] for grader in graders}
    for index, case in enumerate(cases):
        turn = index % len(graders)
        for grader in (*graders[turn:], *graders[:turn]):
            if grader.name != CHOICES_ONLY or case.item.choices:
                results[grader].append(Graded(case, grader.grade(case.item, limit_s)))
        if index % 50 == 49:
            print(f"{what}: {index + 1} of {len(cases)}", file=sys.stderr, flush=True)
    return results


def share(results: Iterable[Graded], of: Callable[[Graded], bool]) -> float | None:
    """Percent of the results for which `of` holds; None if there are none."""
    flags = [of(graded) for graded in results]
    return 100 * sum(flags) / len(flags) if flags else None


def right_share(results: Iterable[Graded]) -> float | None:
    """Percent of the results whose verdict is the label's."""
    return share(results, lambda graded: graded.is_right)


def shares(results: Sequence[Graded]) -> dict[str, Any]:
    """The three shares in percent, and the number of cases."""
    wrong = [graded for graded in results if not graded.case.correct]
    right = [graded for graded in results if graded.case.correct]
    return {
        "cases": len(results),
        "right": right_share(results),
        "wrong_rewarded": share(wrong, lambda graded: graded.outcome.paid is True),
        "right_refused": share(right, lambda graded: graded.outcome.paid is not True),
    }


def record(measured: Measured, hang_limit_s: float) -> dict[str, Any]:
    """All figures of a grader: shares in percent, times in milliseconds, counts of hang cases."""
    results, hangs = measured.forms[measured.form], measured.hangs
    times = [1000 * graded.outcome.seconds for graded in results]
    return {
        "name": measured.name,
        "form": measured.form,
        "right_by_form": {key: right_share(graded) for key, graded in measured.forms.items()},
        **shares(results),
        "no_verdict": sum(graded.outcome.paid is None for graded in results),
        "median_ms": statistics.median(times),
        "p99_ms": percentile(times, 0.99),
        "by_split": grouped(results, lambda case: case.split or "all other"),
        "by_family": grouped(results, lambda case: case.family),
        "by_category": grouped(results, lambda case: f"{case.family}/{case.category}"),
        "hangs": {
            "cases": len(hangs),
            "right_within_1.5_s": sum(is_right_within(graded, QUICK_S) for graded in hangs),
            "right_within_limit": sum(is_right_within(graded, hang_limit_s) for graded in hangs),
            "wrong_rewarded": sum(graded.outcome.paid is True and not graded.case.correct for graded in hangs),
            "longest_s": max((graded.outcome.wall_seconds for graded in hangs), default=None),
        },
    }


def is_right_within(graded: Graded, limit_s: float) -> bool:
    """Right, and the caller had it after at most `limit_s` seconds."""
    return graded.is_right and graded.outcome.wall_seconds <= limit_s


def grouped(results: Sequence[Graded], key: Callable[[Case], str]) -> dict[str, dict[str, Any]]:
    """The shares of each group of cases, in the order of the files."""
    groups: dict[str, list[Graded]] = {}
    for graded in results:
        groups.setdefault(key(graded.case), []).append(graded)
    return {name: shares(group) for name, group in groups.items()}


def judge_formats() -> dict[str, int]:
    """Our format_score on its labelled cases; no peer judges these forms."""
    rows = [json.loads(line) for line in (LABELLED / "format.jsonl").read_text(encoding="utf-8").splitlines()]
    right = sum(format_score(completion_of(row), row["template"]) is row["format_ok"] for row in rows)
    return {"cases": len(rows), "right": right}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown: one row a grader, then the share of right verdicts by family and split."""
    limit = f"{result['hang_limit_s']:g}"
    head = ("grader", *(f"{words} %" for words in SHARES.values()), "median ms", "p99 ms")
    head = (*head, "hangs right in 1.5 s", f"in {limit} s")
    rows = []
    for each in result["graders"]:
        hangs = each["hangs"]
        hung = [f"{hangs[key]}/{hangs['cases']}" for key in ("right_within_1.5_s", "right_within_limit")]
        rows.append(
            [each["name"], *(figure(each[key]) for key in SHARES), f"{each['median_ms']:.3g}", f"{each['p99_ms']:.3g}"]
            + (hung if hangs["cases"] else ["", ""])
        )
    groups = [("by_family", name) for name in result["graders"][0]["by_family"]]
    groups += [("by_split", name) for name in result["graders"][0]["by_split"]]
    parts = [
        [each["name"], *(figure(each[kind].get(name, {}).get("right")) for kind, name in groups)]
        for each in result["graders"]
    ]
    formats = result["format"]
    return "\n\n".join(
        (
            markdown(head, rows),
            markdown(("right %, by set", *(name for _, name in groups)), parts),
            f"Format judged right by us: {formats['right']} of {formats['cases']}.",
        )
    )


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows))


def figure(percent: float | None) -> str:
    """A percentage with one decimal, or nothing."""
    return "" if percent is None else f"{percent:.1f}"


def draw(records: Sequence[dict[str, Any]], file: Path) -> None:
    """Horizontal bars, one panel a share, one bar a grader; those that judge choices alone are left out."""
    shown = [each for each in records if each["name"] != CHOICES_ONLY][::-1]
    with chart_style():
        canvas = Figure(figsize=(9.6, 0.9 + 0.36 * len(shown)), dpi=130, facecolor=PAPER)
        FigureCanvasAgg(canvas)
        panels = canvas.subplots(1, len(SHARES), sharey=True)
        canvas.subplots_adjust(left=0.2, right=0.97, top=1 - 0.42 / canvas.get_figheight(), bottom=0.08, wspace=0.16)
        for ax, (key, words) in zip(panels, SHARES.items(), strict=True):
            values = [each[key] or 0.0 for each in shown]
            colors = [ACCENT if each["name"] == "ours" else GREYS[0] for each in shown]
            ax.barh([each["name"] for each in shown], values, color=colors, height=0.62)
            for row, value in enumerate(values):
                ax.text(value, row, f" {value:.1f} %", va="center", fontsize=9, color=INK)
            ax.set_title(f"{words} {'↑' if key == 'right' else '↓'}", fontsize=9.5, color=MUTED)
            ax.set_xlim(0, 122)  # one scale for all panels, with room for the figure beside a full bar
            ax.set_xticks([])
            ax.grid(False)
            ax.spines["bottom"].set_visible(False)
            ax.tick_params(axis="y", labelcolor=INK, labelsize=9.5)
        canvas.savefig(file, format="png", metadata={"Software": None})


if __name__ == "__main__":
    main()
