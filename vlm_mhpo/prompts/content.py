"""What tells training rows from others, wherever they lie."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from data_prep import ImageSource, Row
from data_prep.images.stored import StoredImage

# Of an image file above three such pieces, its beginning, middle and end stand for the whole, with its size.
PIECE = 2**14


def digest_of_rows(rows: Sequence[Row]) -> str:
    """Number and digest of rows in their order: ids, turns, golds, solutions, columns that rewards may read, images.

    Raises:
        OSError: an image file is gone.
    """
    seen = hashlib.sha256()
    for row in rows:
        texts = (row.id, row.problem, row.gold, row.kind, row.choices, row.precision, row.unit, row.solution)
        texts += row.earlier_turns
        parts = (*texts, sorted(row.metadata.items()), [_digest_of_image(image) for image in row.images])
        if row.videos:
            parts += (
                [[*map(_digest_of_image, v)] if isinstance(v, tuple) else _digest_of_image(v) for v in row.videos],
            )
        seen.update(repr(parts).encode("utf-8", "backslashreplace") + b"\n")
    return f"{len(rows)} rows, {seen.hexdigest()[:16]}"


def _digest_of_image(image: ImageSource) -> bytes:
    if isinstance(image, StoredImage):
        return image.digest
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    size = image.stat().st_size
    seen = hashlib.sha256(f"{size}\0".encode())
    with image.open("rb") as stream:
        if size <= 3 * PIECE:
            seen.update(stream.read())
        else:
            for place in (0, (size - PIECE) // 2, size - PIECE):
                stream.seek(place)
                seen.update(stream.read(PIECE))
    return seen.digest()
