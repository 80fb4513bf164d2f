"""Where the images of a question stand, when it is not `<image>` that says so.

Data sets number their marks (`<image 1>`, `<image_1>`, `<image1>`, `[IMAGE_1]`), or write those of a model
(Qwen's image tokens between its tokens of vision) or of another program (`<img>`).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from data_prep.schema import IMAGE_PLACEHOLDER, RowError

_NUMBERED = re.compile(r"<\|?(?:[Ii]mage|IMAGE|[Ii]mg|IMG)[ _-]?(\d{1,3})\|?>|\[(?:IMAGE|IMG)[ _-]?(\d{1,3})\]")
# One kind of mark a pattern; a text has marks of one kind.
_UNNUMBERED = tuple(
    re.compile(pattern)
    for pattern in (
        r"(?:<\|vision_start\|>)?(?:<\|image_[a-z]+\|>)+(?:<\|vision_end\|>)?",
        r"<\|image\|>",
        r"<img ?/?>",
        r"<image ?/>",
        r"<image[_-]placeholder>",
        r"<ImageHere>",
        r"\[(?:IMAGE|IMG)\]",
    )
)
_DRESSED = re.compile(r"<\|vision_start\|>\s?(<image>|<\|?image[ _-]?\d{1,3}\|?>)\s?<\|vision_end\|>")

Placed = tuple[list[str], list[str], list[int]]
"""Texts and choices with `<image>` for each image, and the places (from 0) of the images in that order."""


def place_images(texts: Sequence[str], choices: Sequence[str], num_images: int) -> Placed:
    """Put `<image>` where the marks of the user's texts say that an image stands.

    A number is named once by its image; a text that names it again says which of the images shown it is. An image that
    only a choice names follows the last text behind its number, and one that nothing names stands before the first
    text, or behind the last one where its number is above those before it. Marks without a number count where there
    are as many of one kind as images; else they are text, as they are beside `<image>`.

    Raises:
        RowError: a mark names an image that there is not.
    """
    texts, choices, order = [_DRESSED.sub(r"\1", text) for text in texts], list(choices), list(range(num_images))
    if any(IMAGE_PLACEHOLDER in text for text in texts):
        return texts, choices, order
    if marks := [_number(mark) for text in (*texts, *choices) for mark in _NUMBERED.finditer(text)]:
        return _by_number(texts, choices, num_images, first=0 if 0 in marks else 1)
    for kind in _UNNUMBERED:
        if num_images and sum(len(kind.findall(text)) for text in texts) == num_images:
            return [kind.sub(IMAGE_PLACEHOLDER, text) for text in texts], choices, order
    return texts, choices, order


def _number(mark: re.Match[str]) -> int:
    return int(mark[1] or mark[2])


def rename_marks(
    others: Sequence[str], texts: Sequence[str], choices: Sequence[str], order: Sequence[int]
) -> list[str]:
    """Texts that show no image (a system message, answers) with the numbers of the images as they are shown.

    Args:
        texts, choices: as they were given to `place_images`; order: what it gave. Where their marks are text, those of
            the others are too.
    """
    asked = [_DRESSED.sub(r"\1", text) for text in texts]
    if any(IMAGE_PLACEHOLDER in text for text in asked):
        return list(others)
    marks = [_number(mark) for text in (*asked, *choices) for mark in _NUMBERED.finditer(text)]
    first = 0 if 0 in marks else 1
    places = {index + first: place for place, index in enumerate(order, start=1)}

    def named(mark: re.Match[str]) -> str:
        return f"image {places[_number(mark)]}" if _number(mark) in places else mark[0]

    return [_NUMBERED.sub(named, text) for text in others] if marks else list(others)


def _by_number(texts: list[str], choices: list[str], num_images: int, first: int) -> Placed:
    named = [_number(mark) - first for text in texts for mark in _NUMBERED.finditer(text)]
    in_choices = [_number(mark) - first for choice in choices for mark in _NUMBERED.finditer(choice)]
    if strange := [index for index in (*named, *in_choices) if index >= num_images]:
        raise RowError(
            f"names image {strange[0] + first} by a mark, and the row has {num_images} image(s) counted from {first}: "
            "give every image, or take the marks out",
            field="problem",
        )
    named = list(dict.fromkeys(named))
    only_in_choices = [index for index in dict.fromkeys(in_choices) if index not in named]
    nowhere = [index for index in range(num_images) if index not in (*named, *only_in_choices)]
    before = [index for index in nowhere if index < min((*named, *only_in_choices))]
    behind = [index for index in nowhere if index not in before]
    order = [*before, *named, *behind, *only_in_choices]
    shown: set[int] = set()

    def place(mark: re.Match[str]) -> str:
        index = _number(mark) - first
        if index in shown or index in only_in_choices:
            return f"image {order.index(index) + 1}"
        shown.add(index)
        return IMAGE_PLACEHOLDER

    texts = [_NUMBERED.sub(place, text) for text in texts]
    shown.update(range(num_images))
    texts[0] = IMAGE_PLACEHOLDER * len(before) + texts[0]
    texts[-1] += IMAGE_PLACEHOLDER * len(behind)
    texts[-1] += "".join(f"\nimage {order.index(index) + 1}: {IMAGE_PLACEHOLDER}" for index in only_in_choices)
    return texts, [_NUMBERED.sub(place, choice) for choice in choices], order
