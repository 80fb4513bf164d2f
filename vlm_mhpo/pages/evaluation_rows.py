"""The rows of an evaluation as the page's script reads them: plain values, shrunk images, one JSON block."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from typing import Any

from vlm_mhpo.pages.gallery import OUTCOMES
from vlm_mhpo.pages.html import shorten
from vlm_mhpo.pages.images import PictureBudget, webp_uri
from vlm_mhpo.records.evaluation import Item, ItemCompletion
from vlm_mhpo.records.evaluation_folder import Evaluated
from vlm_mhpo.records.reading import clean_text

MAX_PICTURE_BYTES = 16_000_000
MAX_PICTURE_SIDE = 360  # pixels; the page shows 240 of them, finer screens more
MAX_TEXT_BYTES = 40_000_000  # of all completions together
TEXT_LIMITS = (6_000, 2_000, 800, 300)  # characters a completion; the first that keeps to MAX_TEXT_BYTES
# In JSON text these occur inside strings only. The first three could end the block or open a comment in it; the last
# two are line ends to JavaScript.
_ESCAPES = {ord(char): f"\\u{ord(char):04x}" for char in "<>&\u2028\u2029"}


@dataclass(frozen=True, slots=True)
class Gallery:
    """What the script shows.

    Attributes:
        benchmarks: their titles; a row names its benchmark by place.
        rows: plain JSON objects, in the order of the files.
        images: data URIs; a row names its images by place.
        notes: what was left out.
    """

    benchmarks: tuple[tuple[str, str], ...]
    rows: tuple[dict[str, Any], ...]
    pictures: tuple[str, ...]
    notes: tuple[str, ...]

    def block(self) -> dict[str, Any]:
        """The JSON value of the page's data block."""
        names = [{"name": name, "title": title} for name, title in self.benchmarks]
        return {"benchmarks": names, "outcomes": OUTCOMES, "rows": self.rows, "pictures": self.pictures}


def as_json(value: object) -> str:
    """JSON that can stand inside a <script> element."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), allow_nan=False).translate(_ESCAPES)


def gather(after: Evaluated, before: Evaluated | None) -> Gallery:
    """Every row with its outcome against the baseline, its completions side by side, and the images that fit."""
    limit = _text_limit(after, before)
    earlier = {(name, row.id): row for name, rows in (before.rows if before else {}).items() for row in rows}
    rows = [
        _row(index, row, earlier.get((benchmark.name, row.id)), limit)
        for index, benchmark in enumerate(after.results.benchmarks)
        for row in after.rows[benchmark.name]
    ]
    pictures, num_hidden = _place_pictures(after, rows)
    notes = []
    if num_hidden:
        notes.append(f"{num_hidden} images are not on the page: missing, damaged, or beyond its size.")
    if limit < TEXT_LIMITS[0]:
        notes.append(f"Completions are cut to {limit} characters, to keep the page's size.")
    if before and (missing := sum(row["before"] is None for row in rows)):
        notes.append(f"{missing} rows are not in the baseline's results; they count as unchanged.")
    titles = tuple((b.name, b.title or b.name) for b in after.results.benchmarks)
    return Gallery(titles, tuple(rows), tuple(pictures), tuple(notes))


def _text_limit(after: Evaluated, before: Evaluated | None) -> int:
    """Characters of a completion on the page: the largest of TEXT_LIMITS with which all of them fit."""
    lengths = [
        len(completion.text)
        for evaluated in (after, before)
        for rows in (evaluated.rows.values() if evaluated else ())
        for row in rows
        for completion in row.completions
    ]
    for limit in TEXT_LIMITS:
        if sum(min(length, limit) for length in lengths) <= MAX_TEXT_BYTES:
            return limit
    return TEXT_LIMITS[-1]


def _row(index: int, row: Item, before: Item | None, limit: int) -> dict[str, Any]:
    """One row for the script; `images` are paths until `_place_pictures` makes them places."""
    if before is None or before.right == row.right:
        outcome = "right" if row.right else "wrong"
    else:
        outcome = "fixed" if row.right else "broken"
    return {
        "benchmark": index,
        "id": row.id,
        "outcome": outcome,
        "question": row.question,
        "choices": row.choices or [],
        "gold": row.shown_gold,
        "kind": row.kind,
        "categories": row.categories,
        "images": list(dict.fromkeys(row.images)),
        "hidden": 0,
        "after": [_completion(completion, limit) for completion in row.completions],
        "before": None if before is None else [_completion(completion, limit) for completion in before.completions],
    }


def _completion(completion: ItemCompletion, limit: int) -> dict[str, Any]:
    """One completion for the script."""
    return {
        "text": shorten(completion.text, limit),
        "official": completion.official,
        "correct": completion.correct,
        "verdict": completion.verdict,
        "extracted": completion.extracted,
        "tokens": completion.num_tokens,
        "cut": completion.truncated,
        "judge": clean_text(completion.judge.verdict) if completion.judge else "",
    }


def _place_pictures(after: Evaluated, rows: list[dict[str, Any]]) -> tuple[list[str], int]:
    """The data URIs that fit, and how many images do not; the rows' paths become places among them."""
    budget = PictureBudget(after.folder, MAX_PICTURE_BYTES, webp_uri, MAX_PICTURE_SIDE)
    places: dict[str, int] = {}
    num_hidden = 0
    for row in _in_turn(rows):
        shown = []
        for path in row["images"]:
            uri = budget.uri(path)
            if uri is not None:
                shown.append(places.setdefault(uri, len(places)))
        row["hidden"] = len(row["images"]) - len(shown)
        row["images"] = shown
        num_hidden += row["hidden"]
    return list(places), num_hidden


def _in_turn(rows: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Changed rows before the others, and the benchmarks in turn, so that none takes all the room for images."""
    for wanted in (("fixed", "broken"), ("wrong", "right")):
        by_benchmark: dict[int, list[dict[str, Any]]] = {}
        for row in rows:
            if row["outcome"] in wanted:
                by_benchmark.setdefault(row["benchmark"], []).append(row)
        for turn in zip_longest(*by_benchmark.values()):
            yield from (row for row in turn if row is not None)
