"""Held-out problems before and after training: which changed, and which of them a page shows."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from vlm_mhpo.records.evaluation import EvalItem, Evaluation
from vlm_mhpo.records.nouns import Run

# Outcome keys in the order of the page, with their words. One evaluation alone gives only the last two.
OUTCOMES = {
    "fixed": "wrong → right",
    "broken": "right → wrong",
    "wrong": "still wrong",
    "right": "right",
}
_MIN_EACH = 12  # of a large gallery, places kept for every outcome, so that none hides the others


@dataclass(frozen=True, slots=True)
class Pair:
    """The two evaluations that a page compares; `before` is None when there is only one."""

    before: Evaluation | None
    after: Evaluation


@dataclass(frozen=True, slots=True)
class Entry:
    """One problem of the gallery; `before` is None when only the later evaluation has it."""

    outcome: str
    item: EvalItem
    before: EvalItem | None


def choose_pair(run: Run) -> Pair | None:
    """eval/before and eval/after by name, else the first and last step that were judged alike; None without any.

    An evaluation of a model that is of no step of this run is only shown when there is no other.
    """
    by_name = {evaluation.name: evaluation for evaluation in run.evaluations}
    if "after" in by_name:
        return Pair(by_name.get("before"), by_name["after"])
    if not run.evaluations:
        return None
    of_run = [evaluation for evaluation in run.evaluations if evaluation.step is not None]
    if not of_run:
        return Pair(None, run.evaluations[-1])
    last = of_run[-1]
    alike = [e for e in of_run if (e.num_samples, e.temperature) == (last.num_samples, last.temperature)]
    first = by_name.get("before", alike[0])
    return Pair(first if first.step is not None and first.step < last.step else None, last)


def compare(pair: Pair) -> tuple[Entry, ...]:
    """Each problem of the later evaluation with its outcome, in the order of the file."""
    earlier = {item.id: item for item in pair.before.items} if pair.before else {}
    entries = []
    for item in pair.after.items:
        before = earlier.get(item.id)
        if before is None or before.right == item.right:
            outcome = "right" if item.right else "wrong"
        else:
            outcome = "fixed" if item.right else "broken"
        entries.append(Entry(outcome, item, before))
    return tuple(entries)


def select(entries: Sequence[Entry], limit: int) -> tuple[Entry, ...]:
    """At most `limit` entries, by outcome in the order of OUTCOMES, in the order of the file within each.

    Each outcome is sure of up to a fifth of the places (at most _MIN_EACH); what is left goes to the
    outcomes in order. Problems whose images were not kept are left out: nobody can judge them.
    """
    groups: dict[str, list[Entry]] = defaultdict(list)
    some_kept = any(entry.item.images for entry in entries)
    for entry in entries:
        if not _lost_its_pictures(entry.item, some_kept):
            groups[entry.outcome].append(entry)
    sure = min(_MIN_EACH, limit // 5)
    counts = {outcome: min(sure, len(groups[outcome])) for outcome in OUTCOMES}
    places = limit - sum(counts.values())
    for outcome in OUTCOMES:
        more = min(places, len(groups[outcome]) - counts[outcome])
        counts[outcome] += more
        places -= more
    return tuple(chain.from_iterable(groups[outcome][: counts[outcome]] for outcome in OUTCOMES))


def _lost_its_pictures(item: EvalItem, some_kept: bool) -> bool:
    """True when the problem has images but the run folder does not; a guess where num_images is not recorded."""
    return not item.images and (some_kept if item.num_images is None else item.num_images > 0)
