"""What the benchmark readers share: which files hold a layout, their records one by one, and the parts of a row."""

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.formats import jsonl, parquet
from data_prep.formats.image_cells import image_from
from data_prep.formats.table import TableFile, files_of_split, plain_values, rows_of, split_of
from data_prep.images.stored import ImageSource
from data_prep.schema import DataError, Row, RowError, make_row

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
# Enough for the first record of every benchmark here, and cheap to read for each of them.
_PEEK_BYTES = 2**20
_SUFFIXES = (".json", ".jsonl", ".parquet")
_SPACE = re.compile(r"\s*")
_KEY = re.compile(r'\{\s*"(?:[^"\\]|\\.)*"\s*:')
_LABEL = re.compile(r"\(([A-Z])\)\s*|^\s*([A-Z])\s*[.:)]\s*", re.MULTILINE)
_INTRO = re.compile(r"\bchoices?\s*:\s*\Z", re.IGNORECASE)
_LONE_LETTER = re.compile(r"[\s$().]*([A-Za-z])[\s$().]*")

Record = Mapping[str, Any]
Fields = dict[str, Any]
"""Arguments of `make_row` and `multiple_choice`, without source and split; the id without the layout's name."""


@dataclass(frozen=True, slots=True)
class Layout:
    """One benchmark's layout.

    Attributes:
        name: the source that its rows name, and the start of their ids.
        holds: the columns that every record has, or whether a record is one of this benchmark; of a parquet or hub
            table only the column names are known, with None as their values.
        make: (record, its file, its number or key, folder of its images) to the fields of a row.
        columns: our field to its column, where they differ, so that an error names what the user sees.
        images: pattern of what lies in the folder that image paths are relative to.
        folders: where its files lie below the folder that a user names; patterns, with / at the end.
        split: the split that a file holds, from its path and first record; by default its name without suffix.
    """

    name: str
    holds: Collection[str] | Callable[[Record], bool]
    make: Callable[[Record, TableFile, int | str, Path | None], Fields]
    columns: Mapping[str, str]
    pictures: str = "images"
    folders: tuple[str, ...] = ("", "data/")
    split: Callable[[Path, Record], str] | None = None

    def has(self, record: Record) -> bool:
        """Whether a record is one of this benchmark."""
        return self.holds(record) if callable(self.holds) else record.keys() >= set(self.holds)

    def matches(self, source: Path) -> bool:
        """Whether `source` is a file of this layout, or a folder that holds some."""
        return bool(layout_files(self, source))

    def read(self, source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
        """Rows in the order of the files.

        Raises:
            DataError: there is no file of that split; the text lists the splits there are.
        """
        files = layout_files(self, source)
        if split is not None and source.is_file():
            files = [TableFile(file.path, file.source, split) for file in files]
        for file in files_of_split(files, source, split):
            folder = image_root or picture_folder(file.path, self.pictures)
            yield from rows_of(_records(file.path), file, None, folder, partial(make_from, self))


# Finding the files


def layout_files(layout: Layout, source: Path) -> list[TableFile]:
    """The files of `source` (a file, or a folder) whose first record is of this layout, sorted by path."""
    if source.is_file():
        paths = [source]
    else:
        found = {path for folder in layout.folders for path in source.glob(f"{folder}*")}
        paths = sorted(p for p in found if p.suffix in _SUFFIXES and p.name[0] != "." and p.is_file())
    files = []
    for path in paths:
        record = first_record(path)
        if record and layout.has(record):
            split = layout.split(path, record) if layout.split else split_of(path)
            files.append(TableFile(path, layout.name, split))
    return files


def first_record(path: Path) -> Record:
    """The first record of a JSON, JSON Lines or parquet file ({} if there is none to read); see `Layout.holds`."""
    if path.suffix not in _SUFFIXES:
        return {}
    if path.suffix == ".parquet":
        return dict.fromkeys(_parquet_columns(path))
    record = _peek(path)[0]
    return record if isinstance(record, Mapping) else {}


def _parquet_columns(path: Path) -> list[str]:
    import pyarrow
    import pyarrow.parquet

    try:
        schema = pyarrow.parquet.read_schema(path)
    except (pyarrow.ArrowException, OSError):
        return []  # the reader that takes the file in the end says what is wrong with it
    return [] if parquet.SCHEMA_KEY in (schema.metadata or {}) else schema.names


def _peek(path: Path) -> tuple[Any, bool]:
    """(the first record, whether the file is one object of records by key); (None, False) if it cannot be read."""
    try:
        with path.open("rb") as file:
            start = file.read(_PEEK_BYTES)
    except OSError:
        return None, False
    text = start.decode("utf-8-sig", errors="ignore").lstrip()
    if text[:1] == "[":
        return _decode_at(text, 1), False
    whole = _decode_at(text, 0)  # None for an object that goes on beyond what was read, as only one by key does
    key = _KEY.match(text)
    first = _decode_at(text, key.end()) if key else None
    if isinstance(first, dict) and (whole is None or all(isinstance(value, dict) for value in whole.values())):
        return first, True
    return whole, False


def _decode_at(text: str, start: int) -> Any:
    try:
        return json.JSONDecoder().raw_decode(text, _SPACE.match(text, start).end())[0]
    except (ValueError, RecursionError):
        return None


# Reading them


def make_from(layout: Layout, record: Record, file: TableFile, key: int | str, image_root: Path | None) -> Row:
    """The layout's row of a record; an answer without choices is compared by its own form, or by `kind`.

    Raises:
        RowError: naming the record's own column.
    """
    try:
        fields = layout.make(record, file, key, image_root)
        fields |= {"id": f"{layout.name}/{fields['id']}", "source": file.source, "split": file.split}
        by_letter = fields.pop("by_letter", False)
        if fields.get("choices") is not None:
            return multiple_choice(by_letter=by_letter, **fields)
        if type(fields["answer"]) in (int, float) and fields.get("kind") != "choice":
            fields["answer"] = str(fields["answer"])
        return make_row(**fields)
    except RowError as error:
        raise RowError(error.message, field=layout.columns.get(error.field, error.field)) from error


def picture_folder(path: Path, pictures: str) -> Path:
    """The folder near the file at `path` that holds something called `pictures` (a pattern); else the file's own."""
    places = [path.parent, path.parent / "images"]
    if path.parent.name in ("data", "dataset"):
        places += [path.parent.parent, path.parent.parent / "images"]
    return next((place for place in places if any(place.glob(pictures))), path.parent)


def _records(path: Path) -> Iterable[tuple[int | str, Any]]:
    if path.suffix == ".parquet":
        return parquet.read_records(path)
    return _keyed_records(path) if path.suffix == ".json" and _peek(path)[1] else jsonl.read_records(path)


def _keyed_records(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        yield from json.loads(path.read_text(encoding="utf-8-sig")).items()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not a JSON object of rows: {error}") from error


# The parts of a row


def column(record: Record, name: str) -> Any:
    """The value of a column that every record must have.

    Raises:
        RowError: it is missing.
    """
    if record.get(name) is None:
        raise RowError("is missing", field=name)
    return record[name]


def picture(record: Record, image_root: Path | None, *names: str) -> list[ImageSource]:
    """The one image of a record, in the first of these columns that is filled (a table may hold bytes and path).

    Raises:
        RowError: none is filled, or it is no usable image; naming the column.
    """
    name = next((name for name in names if record.get(name) not in (None, "")), names[-1])
    try:
        return [image_from(column(record, name), image_root)]
    except RowError as error:
        raise RowError(error.message, field=name) from error


def kept(record: Record, *names: str, **more: Any) -> dict[str, Any]:
    """Metadata: these columns of a record where they are filled, and more."""
    return plain_values({name: record.get(name) for name in names} | more)


def multiple_choice(problem: Any, choices: Iterable[Any], answer: Any, *, by_letter: bool, **fields: Any) -> Row:
    """A row whose answer names one of its choices.

    Options that are themselves letters in another order (`A. C`, `B. A`) would make every answer ambiguous: they are
    written into the problem instead, the gold is the letter, and only a letter can answer; the benchmark's own
    question (`stem`), `choices` and `answer` go into the metadata.

    Args:
        by_letter: the gold is the letter of a choice; otherwise it is the text of one.
    Raises:
        RowError: the gold names no choice, or a part of the row is no text.
    """
    if not isinstance(choices, list | tuple) or len(choices) > len(LETTERS):
        raise RowError(f"is not a list of at most {len(LETTERS)} options", field="choices")
    texts = [str(choice) if type(choice) in (int, float) else choice for choice in choices]
    row = make_row(problem=problem, answer=str(answer), choices=texts, kind="choice", **fields)
    letter = _letter_of(row.answer, row.choices, by_letter)
    if not _letters_mislead(row.choices):
        return row
    fields["metadata"] = {**row.metadata, "stem": problem, "choices": row.choices, "answer": row.answer}
    listed = "\n".join(f"({LETTERS[i]}) {choice}" for i, choice in enumerate(row.choices))
    return make_row(problem=f"{problem}\nChoices:\n{listed}", answer=letter, kind="choice", **fields)


def _letter_of(answer: str, choices: tuple[str, ...], by_letter: bool) -> str:
    names = list(LETTERS[: len(choices)]) if by_letter else [choice.strip() for choice in choices]
    if answer.strip() not in names:
        raise RowError(f"{answer!r} names none of the {len(choices)} choices {list(choices)!r}", field="answer")
    return LETTERS[names.index(answer.strip())]


def _letters_mislead(choices: tuple[str, ...]) -> bool:
    lone = [found[1].upper() if (found := _LONE_LETTER.fullmatch(choice)) else "" for choice in choices]
    used = LETTERS[: len(choices)]
    return any(letter and letter in used and letter != used[i] for i, letter in enumerate(lone))


def split_choices(text: str) -> tuple[str, list[str]]:
    """(question, its choices) of a question that ends in choices behind (A), A. or A: in order; else (text, []).

    A or B: in the middle of a line is prose; the labels must run from A without a gap, and to the end of the text.
    """
    labels = list(_LABEL.finditer(text))
    starts = [index for index, label in enumerate(labels) if (label[1] or label[2]) == "A"]
    if not starts:
        return text, []
    labels = labels[starts[-1] :]
    names = "".join(label[1] or label[2] for label in labels)
    ends = [label.start() for label in labels[1:]] + [len(text)]
    choices = [text[label.end() : end].strip() for label, end in zip(labels, ends, strict=True)]
    stem = _INTRO.sub("", text[: labels[0].start()]).rstrip()
    if len(choices) < 2 or names != LETTERS[: len(names)] or not all(choices) or not stem:
        return text, []
    return stem, choices


def lettered(question: Any) -> Fields:
    """Of a choice question whose gold is a letter: its choices where it lists them, else the question as it is."""
    stem, choices = split_choices(question) if isinstance(question, str) else (question, [])
    return (
        {"problem": stem, "choices": choices, "by_letter": True} if choices else {"problem": question, "kind": "choice"}
    )
