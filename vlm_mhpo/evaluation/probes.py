"""Rows without the help of their images: uniform grey ones of the same size, or those of another problem."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice

from PIL import Image

from data_prep import ImageSource, Row, open_image, read_image
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.benchmarks import Benchmark
from vlm_mhpo.runtime.seeding import derive_seed, permutation

GREY = (128, 128, 128)


def blank(rows: Sequence[Row], benchmark: Benchmark, seed: int) -> list[Row]:
    """The rows with uniform grey images of the sizes of their own.

    Raises:
        EvaluationError: a row shows a video.
    """
    _refuse_videos(rows, benchmark, "blank")
    return [replace(row, images=tuple(grey(open_image(image).size) for image in row.images)) for row in rows]


def grey(size: tuple[int, int]) -> bytes:
    """A uniform PNG of this width and height in pixels."""
    stream = io.BytesIO()
    Image.new("RGB", size, GREY).save(stream, format="PNG")
    return stream.getvalue()


def shuffled(rows: Sequence[Row], benchmark: Benchmark, seed: int) -> list[Row]:
    """The rows with images of other problems, as many as their own and none that they have themselves.

    The rows stand in a circle in an order drawn by `seed`; each takes the images that come next. Where every row
    has one image of its own this is a derangement.

    Raises:
        EvaluationError: no other problem has another image, or a row shows a video.
    """
    _refuse_videos(rows, benchmark, "shuffled")
    order = permutation(derive_seed(seed, "shuffled", benchmark.name), len(rows)).tolist()
    problems = [benchmark.problem(row) for row in rows]
    # Compared by content; a row that was dealt another's image holds its handle, not its bytes.
    circle = [(problems[index], image, _content(image)) for index in order for image in rows[index].images]
    changed, start = list(rows), 0
    for index in order:
        row = rows[index]
        own, start = {content for *_, content in circle[start : start + len(row.images)]}, start + len(row.images)
        following = chain(circle[start:], circle[:start])
        others = (image for problem, image, content in following if problem != problems[index] and content not in own)
        found = tuple(islice(others, len(row.images)))
        if len(found) < len(row.images):
            raise EvaluationError(
                f"{benchmark.name}: the probe `shuffled` finds {len(found)} images of other problems for the "
                f"{len(row.images)} of row {row.id}: raise --limit or leave the probe out"
            )
        changed[index] = replace(row, images=found)
    return changed


def _refuse_videos(rows: Sequence[Row], benchmark: Benchmark, probe: str) -> None:
    if shown := next((row for row in rows if row.videos), None):
        raise EvaluationError(
            f"{benchmark.name}: the probe `{probe}` has images to hide, and row {shown.id} shows a video: leave it out"
        )


def _content(image: ImageSource) -> bytes:
    return hashlib.sha256(read_image(image)).digest()


PROBES: dict[str, Callable[[Sequence[Row], Benchmark, int], list[Row]]] = {"blank": blank, "shuffled": shuffled}
