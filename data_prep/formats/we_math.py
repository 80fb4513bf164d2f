"""Reader for We-Math: data/testmini.json (a list) with <n>steps/image/, or the hub's table."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from data_prep.formats.layout import LETTERS, Layout, column, kept, layout_files, layout_rows, multiple_choice, picture
from data_prep.formats.table import TableFile
from data_prep.schema import Row, RowError

_MARKS = {"ID", "key", "question", "option", "answer", "image_path"}
_LABEL = re.compile(r"(?:^|;)\s*([A-Z])\s*[.:]\s*")


def matches(source: Path) -> bool:
    """A We-Math table (.json or .parquet), or a folder that holds one, also below data/."""
    return bool(layout_files(LAYOUT, source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows in file order; the gold is a letter. `ID` and `key` in the metadata tie the steps of a problem together."""
    yield from layout_rows(LAYOUT, source, split, image_root)


def _make(record: Mapping[str, Any], file: TableFile, key: int | str, image_root: Path | None) -> Row:
    problem, step = column(record, "ID"), column(record, "key")
    return multiple_choice(
        id=f"we_math/{problem}/{step}",
        images=picture(record, image_root, "image_path"),
        problem=column(record, "question"),
        choices=_options(column(record, "option")),
        answer=column(record, "answer"),
        by_letter=True,
        source=file.source,
        split=file.split,
        metadata=kept(record, "ID", "key", "question number", "knowledge concept", "option"),
    )


def _options(text: Any) -> list[str]:
    """The options of `A. 31.4;B. 3.14; C. No correct answer`, where an option may hold a semicolon itself."""
    labels = list(_LABEL.finditer(text)) if isinstance(text, str) else []
    if not labels or "".join(label[1] for label in labels) != LETTERS[: len(labels)] or labels[0].start() != 0:
        raise RowError(f"{text!r} is no list of options such as 'A. 3;B. 4'", field="choices")
    ends = [label.start() for label in labels[1:]] + [len(text)]
    return [text[label.end() : end].strip() for label, end in zip(labels, ends, strict=True)]


LAYOUT = Layout(
    name="we_math",
    holds=lambda record: record.keys() >= _MARKS,
    make=_make,
    columns={"problem": "question", "choices": "option"},
    pictures="*steps",
)
