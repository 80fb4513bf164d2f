"""Procedural visual math: images drawn from a seed, so that a run needs no download and every answer is certain.

A row is a pure function of (seed, split, family, difficulty, index, retry). The same bytes come out for the same
seed with the same Pillow; `image_digest` looks at pixels only, so it does not depend on how they were packed.
"""

import random
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from data_prep.images.hashes import pixel_hash
from data_prep.images.opening import open_image
from data_prep.schema import DataError, Row, make_row
from data_prep.synthetic import bars, counting, shapes, triangles
from data_prep.synthetic.canvas import Drawing, png_bytes

FAMILIES: dict[str, Callable[[random.Random, int], Drawing]] = {
    "shapes": shapes.draw,
    "counting": counting.draw,
    "bars": bars.draw,
    "triangles": triangles.draw,
}
DIFFICULTIES = (1, 2, 3)
_MAX_RETRIES = 100


@dataclass(frozen=True, slots=True)
class Datasets:
    """Rows for reinforcement learning, for evaluation and for the cold start; no image is in two of them."""

    train: tuple[Row, ...]
    heldout: tuple[Row, ...]
    sft: tuple[Row, ...]


def image_digest(data: bytes) -> str:
    """Hexadecimal digest of an image's size and RGB pixels, whatever file format holds them."""
    return pixel_hash(open_image(data))


def generate(
    families: Sequence[str],
    num_rows: int,
    seed: int,
    split: str,
    difficulty: int = 1,
    exclude: Collection[str] = (),
) -> Iterator[Row]:
    """Draw rows, taking the families in turn.

    Args:
        families: names from `FAMILIES`.
        num_rows: how many, >= 0.
        seed: any whole number.
        split: part of the seed: two splits are two independent draws.
        difficulty: 1 to 3.
        exclude: digests (`image_digest`) of images that must not come out again; those are redrawn.
    Raises:
        DataError: an unknown family or difficulty, at once; no new image found, while drawing.
    """
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        raise DataError(f"unknown synthetic family {', '.join(map(repr, unknown))}; use {', '.join(FAMILIES)}")
    if difficulty not in DIFFICULTIES:
        raise DataError(f"synthetic difficulty {difficulty!r} is not one of {DIFFICULTIES}")
    if num_rows < 0:
        raise DataError(f"num_rows is {num_rows}; it must be >= 0")
    return (
        _draw_row(families[index % len(families)], index, seed, split, difficulty, exclude) for index in range(num_rows)
    )


def draw_datasets(
    families: Sequence[str], *, num_train: int, num_heldout: int, num_sft: int, seed: int, difficulty: int = 1
) -> Datasets:
    """Three sets that share no image; arguments as in `generate`."""
    seen: set[str] = set()
    drawn: dict[str, tuple[Row, ...]] = {}
    for split, num_rows in (("train", num_train), ("sft", num_sft), ("heldout", num_heldout)):
        rows = tuple(generate(families, num_rows, seed, split, difficulty, exclude=frozenset(seen)))
        seen |= {image_digest(image) for row in rows for image in row.images}
        drawn[split] = rows
    return Datasets(**drawn)


def _draw_row(family: str, index: int, seed: int, split: str, difficulty: int, exclude: Collection[str]) -> Row:
    for retry in range(_MAX_RETRIES):
        # A string seed goes through SHA-512 inside `random`, so it is the same in every process.
        rng = random.Random(f"{family}/{difficulty}/{seed}/{split}/{index}/{retry}")
        drawing = FAMILIES[family](rng, difficulty)
        if not exclude or pixel_hash(drawing.image.convert("RGB")) not in exclude:
            break
    else:
        raise DataError(f"no new image of {family!r} in {_MAX_RETRIES} draws; ask for fewer rows or more families")
    return make_row(
        id=f"synthetic/{family}/{difficulty}/{seed}/{split}/{index}",
        images=[png_bytes(drawing.image)],
        problem=drawing.problem,
        answer=drawing.answer,
        kind="number",
        source=f"synthetic/{family}",
        split=split,
        solution=f"<think>{drawing.reasoning}</think><answer>{drawing.answer}</answer>",
    )
