"""What every row is checked for before it is trained on: its images open, its gold verifies against itself."""

from dataclasses import replace
from typing import Any

from PIL import Image

from data_prep.images.opening import open_image, read_image
from data_prep.schema import Row, RowError
from data_prep.videos.opening import contact_sheet, read_video


def with_bytes(row: Row) -> Row:
    """The row with its images and videos read, not looked into.

    Raises:
        DataError: one is missing, unreadable or too large.
    """
    return replace(row, images=tuple(map(read_image, row.images)), videos=tuple(map(read_video, row.videos)))


def open_pictures(row: Row) -> list[Image.Image]:
    """The row's images, decoded, and a contact sheet of each video.

    Raises:
        DataError: one cannot be used.
    """
    return [*map(open_image, row.images), *map(contact_sheet, row.videos)]


def check_gold(row: Row) -> None:
    """Raise RowError if our verifier does not accept the gold answer, or one of several, as its own answer."""
    import rewards

    for gold in row.golds:
        completion = f"<think>gold</think><answer>{gold}</answer>"
        score = rewards.verify(completion, gold, template="think_answer", **_comparison(row))
        if not score.correct:
            field = "answer" if gold == row.answer else "equivalent_answers"
            raise RowError(f"{gold!r} does not verify against itself: {score.reason}", field=field)


def is_compared_by_letters(row: Row) -> bool:
    """Whether the gold is right only letter by letter: no reader makes a choice or a value of it, or of one of several.

    A name is compared so too. What was meant as a value and is not read as one refuses right answers in other words.
    """
    import rewards

    return rewards.how_compared(row.gold, **_comparison(row)) == "text"


def _comparison(row: Row) -> dict[str, Any]:
    return {"kind": row.kind, "choices": row.choices, "precision": row.precision, "unit": row.unit}
