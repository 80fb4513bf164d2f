"""Drawn problems: the same for a seed, disjoint over splits, and right by an independent reading."""

import hashlib
import io
import re
import subprocess
import sys

import pytest

from data_prep import DataError, load_rows, open_image
from data_prep.synthetic import FAMILIES, draw_datasets, generate, image_digest

EVERY = tuple(FAMILIES)
SIGNS = {"plus": "+", "minus": "-", "times": "*"}


def drawn(families=EVERY, num_rows=60, seed=0, split="train", **options):
    return list(generate(families, num_rows, seed, split, **options))


def test_the_same_seed_gives_the_same_bytes_in_another_process():
    script = (
        "import hashlib; from data_prep.synthetic import generate, FAMILIES\n"
        "rows = generate(tuple(FAMILIES), 12, 5, 'train', 2)\n"
        "print(hashlib.sha256(repr([(r.id, r.images, r.problem, r.solution) for r in rows]).encode()).hexdigest())"
    )
    rows = drawn(num_rows=12, seed=5, difficulty=2)
    here = hashlib.sha256(repr([(r.id, r.images, r.problem, r.solution) for r in rows]).encode()).hexdigest()
    there = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert there.stdout.strip() == here


def test_a_row_does_not_depend_on_how_many_are_drawn():
    assert drawn(num_rows=7) == drawn(num_rows=60)[:7]


@pytest.mark.parametrize("change", [{"seed": 1}, {"split": "heldout"}, {"difficulty": 2}])
def test_another_seed_split_or_difficulty_draws_other_pictures(change):
    first, second = drawn(), drawn(**change)
    same = sum(a.images == b.images for a, b in zip(first, second, strict=True))
    assert same <= 2
    assert not {row.id for row in first} & {row.id for row in second}


@pytest.mark.parametrize("family", EVERY)
def test_train_heldout_and_sft_share_no_picture(family):
    sets = draw_datasets([family], num_train=150, num_heldout=60, num_sft=60, seed=3)
    digests = [{image_digest(row.images[0]) for row in rows} for rows in (sets.train, sets.heldout, sets.sft)]
    assert [len(rows) for rows in (sets.train, sets.heldout, sets.sft)] == [150, 60, 60]
    assert not digests[0] & digests[1] and not digests[0] & digests[2] and not digests[1] & digests[2]


def test_an_excluded_picture_is_drawn_anew():
    row = drawn(num_rows=1)[0]
    other = drawn(num_rows=1, exclude={image_digest(row.images[0])})[0]
    assert other.id == row.id and other.images != row.images


def test_the_digest_looks_at_pixels_not_at_the_file():
    data = drawn(num_rows=1)[0].images[0]
    image = open_image(data)
    packed = io.BytesIO()
    image.save(packed, "WEBP", lossless=True)
    assert image_digest(packed.getvalue()) == image_digest(data)
    image.putpixel((0, 0), (1, 2, 3))
    image.save(changed := io.BytesIO(), "PNG")
    assert image_digest(changed.getvalue()) != image_digest(data)


def recomputed(problem: str, reasoning: str) -> int:
    """The answer, worked out by hand-written rules from the question and the numbers in the reasoning."""
    numbers = [int(number) for number in re.findall(r"\d+", reasoning)]
    if match := re.fullmatch(r"What is red (plus|minus|times) blue\?", problem):
        a, b = numbers
        assert reasoning == f"{a} {SIGNS[match[1]]} {b}"
        return {"plus": a + b, "minus": a - b, "times": a * b}[match[1]]
    if problem.startswith("How many ") or problem == "What is the total of all bars?":
        return sum(numbers)
    if problem.startswith("What is the value of bar "):
        (value,) = numbers
        return value
    if problem.startswith("How much taller is bar "):
        high, low = numbers
        assert high > low
        return high - low
    if problem == "What is the angle x in degrees?" and reasoning.startswith("180"):
        straight, first, second = numbers
        assert (straight, 0 < first < 140, 0 < second < 140) == (180, True, True)
        return 180 - first - second
    if problem == "What is the angle x in degrees?":
        straight, apex, two = numbers
        assert (straight, two) == (180, 2) and (180 - apex) % 2 == 0
        return (180 - apex) // 2
    assert problem == "What is the length x?"
    first, square_one, second, square_two, square = numbers
    assert square_one == square_two == 2
    assert square == (first**2 + second**2 if "+" in reasoning else first**2 - second**2)
    root = round(square**0.5)
    assert root * root == square
    return root


@pytest.mark.parametrize("difficulty", [1, 2, 3])
@pytest.mark.parametrize("family", EVERY)
def test_the_answer_follows_from_the_worked_solution(family, difficulty):
    questions = set()
    for row in drawn([family], 150, difficulty=difficulty):
        match = re.fullmatch(r"<think>(.+)</think><answer>(-?\d+)</answer>", row.solution)
        problem = row.problem.removeprefix("<image>")
        assert match[2] == row.answer == str(recomputed(problem, match[1]))
        assert (row.kind, row.source, row.split) == ("number", f"synthetic/{family}", "train")
        questions.add(problem)
    assert len(questions) > 1


def cells_with(image, colour) -> list[tuple[int, int]]:
    """Cells (column, row) of 28 x 28 pixels whose outermost ring is all of one colour."""
    found = []
    for row in range(4):
        for column in range(4):
            left, top = 28 * column, 28 * row
            ring = [image.getpixel((left + i, top + j)) for i in range(28) for j in (0, 27)]
            ring += [image.getpixel((left + j, top + i)) for i in range(28) for j in (0, 27)]
            if all(colour(*pixel) for pixel in ring):
                found.append((column, row))
    return found


def is_red(red, green, blue):
    return red > 180 and green < 80 and blue < 80


def is_blue(red, green, blue):
    return blue > 180 and red < 80 and green < 120


def test_shapes_shows_one_red_and_one_blue_framed_digit_each_inside_its_cell():
    places = set()
    for row in drawn(["shapes"], 80):
        image = open_image(row.images[0])
        assert image.size == (112, 112)
        (red,), (blue,) = cells_with(image, is_red), cells_with(image, is_blue)
        assert red != blue
        places |= {red, blue}
        for column in range(4):
            for line in range(4):
                inner = image.crop((28 * column + 2, 28 * line + 2, 28 * column + 26, 28 * line + 26))
                dark = inner.convert("L").point(lambda value: 255 * (value < 128)).getbbox()
                if (column, line) not in (red, blue):
                    assert dark is None
                    continue
                left, top, right, bottom = dark
                assert 17 <= bottom - top <= 20 and 5 <= right - left <= 17
                assert abs((top + bottom) / 2 - 12) <= 3 and abs((left + right) / 2 - 12) <= 3
    assert len(places) == 16


def test_the_same_digit_in_the_frame_looks_the_same_wherever_it_stands():
    """The image, not only the text, carries the numbers: equal digits are equal ink, different ones are not."""
    inks = {}
    for row in drawn(["shapes"], 200):
        image = open_image(row.images[0])
        numbers = re.match(r"<think>(\d) . (\d)<", row.solution).groups()
        for number, colour in zip(numbers, (is_red, is_blue), strict=True):
            ((column, line),) = cells_with(image, colour)
            inner = image.crop((28 * column + 2, 28 * line + 2, 28 * column + 26, 28 * line + 26)).convert("L")
            box = inner.point(lambda value: 255 * (value < 250)).getbbox()
            inks.setdefault(number, set()).add((inner.crop(box).size, inner.crop(box).tobytes()))
    assert sorted(inks) == list("0123456789")
    assert all(len(looks) == 1 for looks in inks.values())
    assert len(set.union(*inks.values())) == 10


def test_counting_shows_as_much_colour_as_it_counts():
    """A red square is 18 x 18 pixels in the image; nothing else red and square is drawn."""
    checked = 0
    for row in drawn(["counting"], 400):
        match = re.fullmatch(r"<image>How many (red|blue) squares are there\?", row.problem)
        if not match:
            continue
        image, colour = open_image(row.images[0]), is_red if match[1] == "red" else is_blue
        full = 0
        for cell_row in range(4):
            for column in range(4):
                cell = image.crop((28 * column, 28 * cell_row, 28 * column + 28, 28 * cell_row + 28))
                # Corners of the square, 7 pixels from the cell's middle, are coloured for no other form.
                full += all(colour(*cell.getpixel((14 + x, 14 + y))) for x in (-7, 7) for y in (-7, 7))
        assert full == int(row.answer)
        checked += 1
    assert checked > 20


def test_bars_are_as_tall_as_their_values():
    for row in drawn(["bars"], 100):
        if "total" not in row.problem:
            continue
        image = open_image(row.images[0])
        values = [int(number) for number in re.findall(r"\d+", row.solution.split("</think>")[0])]
        tops = []
        for index in range(3):
            column = round(26 + (index + 0.5) * 164 / 3)
            pixels = [(y, image.getpixel((column, y))) for y in range(10, 145)]
            tops.append(145 - min(y for y, pixel in pixels if max(pixel) - min(pixel) > 60))
        for top, value in zip(tops, values, strict=True):
            assert abs(top - 13.6 * value) <= 2


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [((["spheres"], 1, 0, "train"), "'spheres'"), (([], 1, 0, "train"), "unknown"), ((EVERY, -1, 0, "train"), "-1"),
     ((EVERY, 1, 0, "train", 4), "difficulty 4")],
)  # fmt: skip
def test_bad_requests_are_refused_before_drawing(arguments, reason):
    with pytest.raises(DataError, match=reason):
        generate(*arguments)


def test_load_rows_draws_the_same_rows():
    spec = "synthetic:shapes,bars?seed=4&num_rows=6&difficulty=2@heldout"
    assert list(load_rows(spec)) == drawn(["shapes", "bars"], 6, 4, "heldout", difficulty=2)


@pytest.mark.parametrize("spec", ["synthetic:no", "synthetic:shapes?sed=1", "synthetic:shapes?seed=x", "synthetic:"])
def test_a_bad_specification_is_refused_at_once(spec):
    with pytest.raises(DataError):
        load_rows(spec)
