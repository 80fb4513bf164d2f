"""What every row is checked for before it is trained on: its images open, its gold verifies against itself."""

from dataclasses import replace

from PIL import Image

from data_prep.images.opening import open_image, read_image
from data_prep.schema import Row, RowError


def with_bytes(row: Row) -> Row:
    """The row with its images read, not looked into.

    Raises:
        ImageError: one is missing, unreadable or too large.
    """
    return replace(row, images=tuple(read_image(image) for image in row.images))


def open_pictures(row: Row) -> list[Image.Image]:
    """The row's images, decoded.

    Raises:
        ImageError: one cannot be used.
    """
    return [open_image(image) for image in row.images]


def check_gold(row: Row) -> None:
    """Raise RowError if our verifier does not accept the gold answer as its own answer."""
    import rewards

    completion = f"<think>gold</think><answer>{row.answer}</answer>"
    score = rewards.verify(
        completion,
        row.answer,
        template="think_answer",
        kind=row.kind,
        choices=row.choices,
        precision=row.precision,
        unit=row.unit,
    )
    if not score.correct:
        raise RowError(f"{row.answer!r} does not verify against itself: {score.reason}", field="answer")
