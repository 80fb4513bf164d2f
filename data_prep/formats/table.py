"""What plain tables share: which files hold a split, and how one record becomes a row."""

import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.formats.chat import is_chat, read_turns, with_system
from data_prep.formats.choices import among, in_other_words
from data_prep.formats.dialects import as_plain, of_chat
from data_prep.formats.golds import ANSWERS, LISTS, first_of, gold_cells, number_as_text, read_gold, whole
from data_prep.formats.image_cells import IMAGE_COLUMNS, VIDEO_COLUMNS, images_of, refuse_unread_images, videos_of
from data_prep.formats.listed import read_equivalents, read_several
from data_prep.formats.marks import place_images, rename_marks
from data_prep.formats.samples import KEY, sample_columns
from data_prep.images.stored import ImageSource
from data_prep.schema import DataError, Row, RowError, Turn, make_row

_SHARD = re.compile(r"-\d+(-of-\d+(-[0-9a-f]{16})?)?$")  # the hub once ended its shards in a checksum

# Other names of our columns, in data sets that are plain tables otherwise; the first that is there counts for an id.
_IDS = ("id", "qid", "unique_id", "problem_idx", "question_id", "ID")
_PROBLEMS = ("prompt", "question", "Problem", "Question", "query")
_UNITS = ("units", "answer_unit")
# What a user may say the names of.
COLUMNS = ("problem", "answer", "images", "choices", "solution", "id", "kind", "precision", "unit", "source", "split",
           "equivalent_answers", "videos")  # fmt: skip
# What `prepare` writes; earlier versions had neither earlier turns, equivalent answers nor videos.
_OWN = frozenset({field.name for field in fields(Row)} - {"metadata", "earlier_turns", "equivalent_answers", "videos"})
_USED = frozenset({
    *_IDS, *_PROBLEMS, *ANSWERS, *IMAGE_COLUMNS, *_UNITS, "problem", "answer", "solution", "Solution", "kind",
    "choices", "options", "precision", "unit", "source", "split", "metadata", *VIDEO_COLUMNS, "earlier_turns",
    "equivalent_answers", "system",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class TableFile:
    """One file of a table: its path, the source its rows name, and the split it holds ("" if unknown)."""

    path: Path
    source: str
    split: str


def table_files(source: Path, split: str | None, suffixes: tuple[str, ...]) -> list[TableFile]:
    """The files of `source` (a file, or a folder of `<split>.<suffix>` or `<split>-00000-of-00002.<suffix>`).

    Raises:
        DataError: the folder holds no file of that split; the text lists those it holds.
    """
    if source.is_file():
        return [TableFile(source, source.stem, split or "")]
    files = [TableFile(path, source.name, split_of(path)) for path in tables_in(source, suffixes)]
    return files_of_split(files, source, split)


def files_of_split(files: list[TableFile], source: Path, split: str | None) -> list[TableFile]:
    """Those of `split`; None: all.

    Raises:
        DataError: there is none; the text lists the splits of `source`.
    """
    wanted = [file for file in files if split in (None, file.split)]
    if not wanted:
        there = ", ".join(sorted({file.split for file in files})) or "none"
        raise DataError(f"{source} has no split {split!r}; it has: {there}")
    return wanted


def split_of(path: Path) -> str:
    """The split that a file's name says: test for test.jsonl and for test-00000-of-00002.parquet."""
    stem = path.name.removesuffix(".gz").rpartition(".")[0] or path.stem
    return _SHARD.sub("", stem)


def is_table(source: Path, suffixes: tuple[str, ...]) -> bool:
    """Whether `source` is such a file or a folder that holds some."""
    return source.name.endswith(suffixes) if source.is_file() else bool(tables_in(source, suffixes))


def holds_one(folder: Path, suffix: str) -> bool:
    """Whether a folder holds exactly one such file: what else a folder of many is, nobody knows."""
    return len(tables_in(folder, (suffix,))) == 1


def tables_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """The files with these endings in a folder, and in its data/, where hub repositories keep their tables."""
    found = [path for place in (folder, folder / "data") if place.is_dir() for path in place.iterdir()]
    return sorted(path for path in found if path.name.endswith(suffixes) and path.is_file() and path.name[0] != ".")


RowMaker = Callable[[Mapping[str, Any], TableFile, int | str, Path | None], Row]
"""(record, its file, its number or key, folder of its images) to a row; raises `RowError` naming the field."""


def rows_of(
    records: Iterable[tuple[int | str, Any]],
    file: TableFile,
    split: str | None,
    image_root: Path | None,
    make: RowMaker | None = None,
) -> Iterator[Row | RowError]:
    """Rows of numbered or keyed records; a bad one is yielded as its `RowError`, with its place, and reading goes on.

    A record may be an error already (a line that is no JSON). Where records have a `split` of their own, only
    those of `split` are kept. `make` is by default `row_from_record`.
    """
    make = make or row_from_record
    for number, record in records:
        try:
            if isinstance(record, RowError):
                raise record
            if not isinstance(record, Mapping):
                raise RowError(f"is a {type(record).__name__}, not an object with columns")
            if split is not None and _split_in(record) not in (None, "", split):
                continue
            yield make(record, file, number, image_root)
        except RowError as error:
            yield error.placed(file.path, number)


def _split_in(record: Mapping[str, Any]) -> Any:
    """The split that a record itself names, in verl's tables inside `extra_info`."""
    extra = record.get("extra_info")
    return record.get("split") or (extra.get("split") if isinstance(extra, Mapping) else None)


def row_from_record(
    record: Mapping[str, Any],
    file: TableFile,
    number: int | str,
    image_root: Path | None,
    *,
    dialect: str | None = None,
    columns: Mapping[str, str] | None = None,
    answer_lists: str | None = None,
    ignore_columns: Collection[str] = (),
    seen: set[str] | None = None,
) -> Row:
    """A row from named columns, or from those of a dialect (see `formats.dialects`; None: known by its columns).

    Columns: `problem` (or `prompt`, `question`), `answer` (or `ground_truth`, or `solution` with one `<answer>` element
    or a box), `images` or `image` (or `image_path`), and by their own names id, kind, choices (or `options`),
    precision, unit, source, split, solution and metadata. Other columns join the metadata as far as they hold plain
    values: other people's tables nest whatever they like. A record with every column of ours was written by
    `prepare`; its answer and solution are taken as they stand. A letter that names one of the choices makes the kind
    "choice" where none is given. Images are paths below `image_root`, bytes, or {"bytes", "path"}; without an
    `image_root` only bytes are taken. Videos stand in `videos` or `video`, each a file or a list of
    its frames. A sample of a webdataset is read by its columns (see `formats.samples`).

    Args:
        columns: names of the columns that stand for ours, where a user gives them.
        ignore_columns: those that are left out before anything else is looked at.
        answer_lists: what a list of answers means (see `formats.listed`).
        seen: is given the names of all other columns.
    Raises:
        RowError: naming the field.
    """
    record = _without(record, ignore_columns)
    if KEY in record:
        record = _without(sample_columns(record, IMAGE_COLUMNS, _IDS), ignore_columns)
    if seen is not None:
        seen.update(record)
    record = _renamed(record, columns) if columns else as_plain(record, dialect)
    answered, choices, column = _answered(record, answer_lists)
    refuse_unread_images(record, _USED, image_root)
    turns = with_system(read_turns(record.get("earlier_turns"), "earlier_turns"), record.get("system"))
    turns, problem, shown, images = _placed(turns, _problem(record), choices, images_of(record, image_root))
    identity = next((record[name] for name in _IDS if record.get(name) is not None), None)
    return make_row(
        id=number_as_text(identity) or f"{file.source}/{file.split or file.path.stem}/{number}",
        images=images,
        problem=problem,
        choices=shown,
        precision=whole(record.get("precision")),
        unit=first_of(record, "unit", *_UNITS),
        source=file.source if record.get("source") is None else record["source"],
        split=file.split if record.get("split") is None else record["split"],
        earlier_turns=turns,
        videos=videos_of(record, image_root),
        metadata=column
        | plain_values({name: value for name, value in record.items() if name not in _USED})
        | plain_values(record.get("metadata")),
        **_as_shown(answered, choices, shown),
    )


def _without(record: Mapping[str, Any], names: Collection[str]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name not in names}


def _answered(record: Mapping[str, Any], lists: str | None) -> tuple[dict[str, Any], list[Any] | None, dict[str, Any]]:
    """What the answer gives a row, its choices, and the column of several answers as it stands."""
    choices, given, listed = _choices(record), record.get("kind"), None
    kind = given or ("choice" if choices else "auto")
    asked = choices if kind == "choice" else None
    name = partial(among, choices) if choices and not given else None
    if record.keys() >= _OWN and isinstance(record["answer"], str):
        answer, solution = record["answer"], record["solution"]
    else:
        answer, solution = read_gold(*gold_cells(record))
        listed = read_several(answer, solution, lists, kind, asked, name)
    if listed:
        answer, solution = listed.gold, listed.solution
    elif name:
        answer = name(first_of(record, "answer", *ANSWERS), answer)
    others = (*(listed.others if listed else ()), *read_equivalents(record.get("equivalent_answers"), name))
    fields = {"answer": answer, "solution": solution, "kind": kind, "equivalent_answers": others}
    return fields, choices, plain_values(listed and listed.column)


def _as_shown(answered: Mapping[str, Any], choices: list[Any] | None, shown: list[Any] | None) -> Mapping[str, Any]:
    """What the answer gives a row whose choices may be shown in other words than it was read with."""
    if choices is None or shown is None or shown == choices or answered["kind"] != "choice":
        return answered
    answer, *others = (
        in_other_words(text, choices, shown) if isinstance(text, str) else text
        for text in (answered["answer"], *answered["equivalent_answers"])
    )
    return {**answered, "answer": answer, "equivalent_answers": tuple(others)}


def _renamed(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The record with the columns that a user names in the place of ours, and of their other names; a chat is read.

    Raises:
        RowError: there is no such column.
    """
    for name, column in columns.items():
        if column not in record:
            raise RowError(f"is read from the column {column!r}; there is {', '.join(record) or 'none'}", field=name)
    aliases = {
        "problem": _PROBLEMS,
        "answer": (*ANSWERS, *LISTS),
        "images": IMAGE_COLUMNS,
        "videos": VIDEO_COLUMNS,
        "id": _IDS,
        "choices": ("options",),
    }
    replaced = {alias for name in columns for alias in (name, *aliases.get(name, ()))} | set(columns.values())
    rest = {name: value for name, value in record.items() if name not in replaced}
    named = rest | {name: record[column] for name, column in columns.items()}
    return of_chat(named, "problem") if is_chat(named.get("problem")) else named


def _choices(record: Mapping[str, Any]) -> list[Any] | None:
    choices = first_of(record, "choices", "options")
    if choices is not None and not isinstance(choices, list | tuple):
        raise RowError("is not a list of options", field="choices")
    return [number_as_text(choice) for choice in choices] if choices else None


def plain_values(values: Any) -> dict[str, Any]:
    """Of a mapping, what a row's metadata can hold: text, finite numbers and lists of those; else nothing."""

    def is_plain(value: Any) -> bool:
        return isinstance(value, str | int) or (isinstance(value, float) and math.isfinite(value))

    if not isinstance(values, Mapping):
        return {}
    return {
        name: value
        for name, value in values.items()
        if is_plain(value) or (isinstance(value, list | tuple) and all(map(is_plain, value)))
    }


def _problem(record: Mapping[str, Any]) -> str:
    problem = first_of(record, "problem", *_PROBLEMS)
    if isinstance(problem, list):
        raise RowError("is a list of chat messages; give the question as one text", field="problem")
    return problem


def _placed(
    turns: tuple[Turn, ...], problem: Any, choices: list[Any] | None, images: list[ImageSource]
) -> tuple[tuple[Turn, ...], Any, list[Any] | None, list[ImageSource]]:
    """Turns, problem and choices with `<image>` where their marks say so, and the images in that order."""
    asked = [turn.text for turn in turns if turn.role == "user"] + [problem]
    if not all(isinstance(text, str) for text in (*asked, *(choices or ()))):
        return turns, problem, choices, images  # for `make_row` to refuse
    texts, named, order = place_images(asked, choices or (), len(images))
    said = rename_marks([turn.text for turn in turns if turn.role != "user"], asked, choices or (), order)
    questions, said = iter(texts), iter(said)
    turns = tuple(Turn(turn.role, next(questions if turn.role == "user" else said)) for turn in turns)
    return turns, texts[-1], choices and named, [images[index] for index in order]
