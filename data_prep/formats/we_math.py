"""We-Math: data/testmini.json (a list) with <n>steps/image/, or the hub's table.

The gold is a letter. `ID` and `key` in the metadata tie the steps of a problem together.
"""

import re
from pathlib import Path
from typing import Any

from data_prep.formats.layout import LETTERS, Fields, Layout, Record, column, kept, picture
from data_prep.formats.table import TableFile
from data_prep.schema import RowError

_MARKS = {"ID", "key", "question", "option", "answer", "image_path"}
# Behind any separator or none, with the point in full width or not.
_LABEL = r"(?:^|[;；\s]|(?<![A-Za-z])){letter}\s*[.:．：、]\s*"


def _make(record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Fields:
    return {
        "id": f"{column(record, 'ID')}/{column(record, 'key')}",
        "images": picture(record, image_root, "image_path"),
        "problem": column(record, "question"),
        "choices": _options(column(record, "option")),
        "answer": column(record, "answer"),
        "by_letter": True,
        "metadata": kept(record, "ID", "key", "question number", "knowledge concept", "option"),
    }


def _options(text: Any) -> list[str]:
    """The options of `A. 31.4;B. 3.14; C. No correct answer`, each from its letter to the next one of the alphabet."""
    labels: list[re.Match[str]] = []
    for letter in LETTERS if isinstance(text, str) else ():
        label = re.compile(_LABEL.format(letter=letter)).search(text, labels[-1].end() if labels else 0)
        if label is None:
            break
        labels.append(label)
    if len(labels) < 2 or text[: labels[0].start()].strip():
        raise RowError(f"{text!r} is no list of options such as 'A. 3;B. 4'", field="choices")
    ends = [label.start() for label in labels[1:]] + [len(text)]
    return [text[label.end() : end].strip(" ;；\n") for label, end in zip(labels, ends, strict=True)]


LAYOUT = Layout(
    "we_math", holds=_MARKS, make=_make, columns={"problem": "question", "choices": "option"}, pictures="*steps"
)
