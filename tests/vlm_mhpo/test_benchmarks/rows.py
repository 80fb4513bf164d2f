"""Rows of benchmarks as their readers make them, without files."""

from data_prep import Row
from data_prep.schema import make_row

PNG = b"\x89PNG\r\n\x1a\n"


def made(
    answer: str, choices=None, *, problem: str = "Find it.", images: int = 0, kind: str | None = None, **more
) -> Row:
    """A row; what is no field of it is metadata."""
    fields = {name: more.pop(name) for name in ("precision", "unit", "split", "id", "kind") if name in more}
    fields.setdefault("kind", "choice" if choices else "auto")
    return make_row(
        id=fields.pop("id", "made"), problem=problem, answer=answer, choices=choices,
        images=[PNG] * images, source="made", metadata=more, **fields,
    )  # fmt: skip
