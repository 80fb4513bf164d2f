"""Blank images say nothing but their size, and shuffled ones are always those of another problem."""

import io

import pytest
from PIL import Image

from tests.builders import picture
from tests.vlm_mhpo.test_evaluation.cases import BENCHMARK, row
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.evaluation.probes import blank, shuffled


def opened(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded))


def test_blank_pictures_are_grey_and_of_the_same_size():
    rows = [row("a", images=[picture(30, 50, seed=1), picture(20, 20, seed=2)]), row("b")]
    changed = blank(rows, BENCHMARK, seed=0)
    assert [opened(image).size for image in changed[0].images] == [(30, 50), (20, 20)]
    assert [opened(image).getcolors() for image in changed[0].images] == [[(1500, (128,) * 3)], [(400, (128,) * 3)]]
    assert changed[1] == rows[1]
    assert (changed[0].problem, changed[0].answer) == (rows[0].problem, rows[0].answer)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("num_rows", [2, 3, 17])
def test_one_picture_a_row_is_a_derangement(num_rows, seed):
    rows = [row(f"p{index}", images=[picture(28, 28, seed=index)]) for index in range(num_rows)]
    changed = shuffled(rows, BENCHMARK, seed)
    taken = [one.images[0] for one in changed]
    assert all(image != own.images[0] for image, own in zip(taken, rows, strict=True))
    assert sorted(taken) == sorted(own.images[0] for own in rows)
    assert [one.id for one in changed] == [one.id for one in rows]
    assert shuffled(rows, BENCHMARK, seed) == changed


def test_another_seed_deals_otherwise():
    rows = [row(f"p{index}", images=[picture(28, 28, seed=index)]) for index in range(20)]
    assert shuffled(rows, BENCHMARK, 0) != shuffled(rows, BENCHMARK, 1)


def test_variants_and_equal_pictures_are_no_other_problem():
    same = picture(28, 28, seed=9)
    rows = [
        row("a/1", images=[picture(28, 28, seed=1)]),
        row("a/2", images=[picture(28, 28, seed=2)]),
        row("b", images=[same]),
        row("c", images=[same]),
        row("d", images=[picture(28, 28, seed=3), picture(28, 28, seed=4)]),
        row("text only"),
    ]
    for seed in range(10):
        changed = shuffled(rows, BENCHMARK, seed)
        assert [len(one.images) for one in changed] == [1, 1, 1, 1, 2, 0]
        own_problem = {image: one.id.partition("/")[0] for one in rows for image in one.images}
        for one, before in zip(changed, rows, strict=True):
            assert not set(one.images) & set(before.images)
            assert all(own_problem[image] != one.id.partition("/")[0] for image in one.images)


def test_a_single_problem_cannot_be_shuffled():
    rows = [row("a/1", images=[picture(28, 28, seed=1)]), row("a/2", images=[picture(28, 28, seed=2)])]
    with pytest.raises(EvaluationError, match="0 images of other problems for the 1 of row a/"):
        shuffled(rows, BENCHMARK, 0)
