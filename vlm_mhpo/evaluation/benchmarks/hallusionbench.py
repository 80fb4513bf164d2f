"""HallusionBench: yes or no about figures and their changed copies; accuracy by question, pair and figure."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks.shared import axes, bare, pictured, question, verdict
from vlm_mhpo.evaluation.benchmarks.types import ALL, Benchmark, Judged, Official

_WORD = re.compile(r"\b(yes|no)\b", re.IGNORECASE)
_CHANGED = "2"  # the visual input of a changed figure


def prompt(row: Row) -> str:
    """The question alone."""
    return pictured(row, bare(question(row)))


def official(row: Row, response: str) -> Official:
    """The answer says yes or no as the gold does; without a figure to look at also one that says neither is right."""
    said = _said(extract(response).answer or "") or _said(response)
    is_blind = not _has_figure(row)
    return verdict(said == row.answer or (said is None and is_blind), said)


def _said(text: str) -> str | None:
    """The first word if it is yes or no, else the only one of both that the text holds."""
    words = [word.lower() for word in _WORD.findall(text)]
    first = _WORD.match(text.strip(" *#\n"))
    if first:
        return first[1].lower()
    return words[0] if len(set(words)) == 1 else None


def _has_figure(row: Row) -> bool:
    return not (row.metadata.get("category") == "VS" and row.metadata.get("figure_id") == "0")


def aggregate(judged: Sequence[Judged]) -> dict[str, float]:
    """Shares of question pairs (all, of unchanged figures, of changed ones) and of figures with every answer right."""

    def is_changed(row: Row) -> bool:
        return row.metadata["visual_input"] == _CHANGED

    shares = {
        "question_pairs": _all_right(judged, "question_id", lambda row: True),
        "figures": _all_right(judged, "figure_id", _has_figure),
        "easy_pairs": _all_right(judged, "question_id", lambda row: not is_changed(row)),
        "hard_pairs": _all_right(judged, "question_id", is_changed),
    }
    return {name: share for name, share in shares.items() if share is not None}


def _all_right(judged: Sequence[Judged], part: str, counts: Callable[[Row], bool]) -> float | None:
    groups: dict[tuple[object, ...], list[bool]] = defaultdict(list)
    for one in judged:
        if counts(one.row):
            names = ("category", "subcategory", "set_id", part)
            groups[(one.sample, *(one.row.metadata[name] for name in names))].append(one.correct)
    return sum(map(all, groups.values())) / len(groups) if groups else None


BENCHMARK = Benchmark(
    name="hallusionbench",
    title="HallusionBench",
    citation="arXiv:2310.14566",
    splits=(ALL, "image"),
    sources=("lmms-lab/HallusionBench@image", "lmms-lab/HallusionBench@non_image"),
    download="put HallusionBench.json of github.com/tianyi-lab/HallusionBench and the folders VD and VS of its images "
    "into {folder}",
    prompt=prompt,
    official=official,
    instruction="\nPlease answer yes or no.",
    deviation="GPT-4 compares each response with a reference sentence there, and nothing is added to the question; "
    "here yes or no is asked for and read",
    categories=axes("category", "subcategory", "visual_input"),
    problem=lambda row: "/".join(str(row.metadata[name]) for name in ("category", "subcategory", "set_id")),
    aggregate=aggregate,
    subsets={"image": (ALL, lambda row: bool(row.images))},
)
