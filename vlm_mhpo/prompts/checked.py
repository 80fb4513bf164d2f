"""What the check of all rows found, kept between two starts: rows that were checked once are not opened again.

The file's name is the SHA-256 of all that decides the outcome: the rows with the state of their images, the processor,
the settings of the prompts, and the versions of the libraries and of this code. So nothing has to be compared, and a
file of another state is never found.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import data_prep
from data_prep import ImageSource, Row, caching
from data_prep.images.stored import StoredImage
from vlm_mhpo.prompts.builder import PromptBuilder

LIBRARIES = ("transformers", "tokenizers", "pillow", "torch", "vlm-mhpo")
# The code that makes a prompt of a row, below the folder of both packages.
SOURCES = ("vlm_mhpo/prompts", "vlm_mhpo/models/families", "data_prep/images")

Found = tuple[list[int], str]
"""The places of the rows that were left out, and why the first of them was."""


def name_of(rows: Sequence[Row], builder: PromptBuilder) -> str | None:
    """The name under which the outcome of checking `rows` is kept; None where it cannot be told what decides it."""
    codec = builder.codec
    tokenizer = getattr(codec.tokenizer, "backend_tokenizer", None)
    if tokenizer is None:
        return None
    # Padding and truncation are what its last call asked for.
    vocabulary = json.loads(tokenizer.to_str()) | {"padding": None, "truncation": None}
    seen = hashlib.sha256()
    parts = [vocabulary, _versions(), builder.settings, _plain(codec.processor), _plain(codec.tokenizer)]
    try:
        for part in (*parts, *map(_identity, rows)):
            seen.update(repr(part).encode("utf-8", "backslashreplace") + b"\n")
    except OSError:
        return None  # an image that is gone: the check says it better
    return f"rows-{seen.hexdigest()}.json"


def recall(name: str, rows: Sequence[Row]) -> Found | None:
    """What was found under this name; None where nothing whole is kept."""
    for file in caching.kept(name, _home_of(rows)):
        try:
            entry = json.loads(file.read_bytes())
            dropped, reason = entry["dropped"], entry["reason"]
            if entry["sum"] == _sum(name, dropped, reason) and set(dropped) <= set(range(len(rows))):
                return dropped, str(reason)
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return None


def remember(name: str, rows: Sequence[Row], found: Found) -> None:
    """Keep what was found; where no place can be written to, the next start checks again."""
    dropped, reason = found
    text = json.dumps({"dropped": dropped, "reason": reason, "sum": _sum(name, dropped, reason)})
    with suppress(OSError):
        caching.keep(name, _home_of(rows), lambda path: path.write_text(text))


def _home_of(rows: Sequence[Row]) -> Path | None:
    """The folder of the first image that lies in a file; None for drawn images, texts and tables of the hub."""
    for row in rows:
        for image in row.images:
            path = getattr(image.table, "path", None) if isinstance(image, StoredImage) else image
            return path.resolve().parent if isinstance(path, Path) else None
    return None


def _identity(row: Row) -> tuple[Any, ...]:
    """What of a row decides its prompt; the answer does not."""
    return row.id, row.earlier_turns, row.problem, row.kind, row.choices, [*map(_state, row.images)]


def _state(image: ImageSource) -> Any:
    if isinstance(image, StoredImage):
        return image.digest
    if isinstance(image, bytes):
        return hashlib.sha256(image).digest()
    state = image.stat()
    return str(image), state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _plain(processor: Any) -> str:
    """All settings of a processor or tokenizer, its template too; not where it was loaded from."""
    return json.dumps([*_settings(processor)], sort_keys=True, default=str)


def _settings(processor: Any) -> Iterator[Any]:
    yield type(processor).__name__, processor.chat_template
    for part in (getattr(processor, name, None) for name in ("image_processor", "video_processor")):
        yield part and part.to_dict()
    # Such as the tokens of a tile.
    yield {name: value for name, value in vars(processor).items() if isinstance(value, int)}
    yield {name: value for name, value in getattr(processor, "init_kwargs", {}).items() if name != "name_or_path"}


@cache
def _versions() -> tuple[Any, ...]:
    root = Path(data_prep.__file__).parents[1]
    files = [file for folder in SOURCES for file in sorted((root / folder).rglob("*.py"))]
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    return (*(_version(library) for library in LIBRARIES), *digests)


def _version(library: str) -> str:
    try:
        return importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _sum(name: str, dropped: list[int], reason: str) -> str:
    return hashlib.sha256(json.dumps([name, dropped, reason]).encode()).hexdigest()
