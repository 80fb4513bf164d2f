"""Reader for formalgeo7k folders: problems/<n>.json with images, or the derived/<split>.jsonl made from them."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from data_prep.formats.jsonl import read_fields, read_records
from data_prep.formats.sympy_syntax import to_latex
from data_prep.formats.table import rows_of, table_files
from data_prep.images.opening import resolve_image_path
from data_prep.schema import DataError, Row, RowError, make_row

_PICTURE_FOLDERS = ("images", "diagrams")  # in FGeoDRL's copy, in FormalGeo's own release


def matches(source: Path) -> bool:
    """A folder with problems/<n>.json (also below datasets/) and a folder of images beside problems/."""
    return source.is_dir() and _problem_root(source) is not None


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows by problem number, or in the order of derived/<split>.jsonl where there is one."""
    derived = source / "derived"
    if derived.is_dir() and any(derived.glob("*.jsonl")):
        for file in table_files(derived, split, (".jsonl",)):
            for row in rows_of(read_records(file.path), file, split, image_root or source):
                yield row if isinstance(row, RowError) else _renamed(row)
        return
    for number, name in _numbers(source, split):
        path = _problem_root(source) / "problems" / f"{number}.json"
        try:
            yield _read_problem(path, name)
        except RowError as error:
            yield error.placed(path, None)


def _problem_root(source: Path) -> Path | None:
    for root in (source, source / "datasets"):
        if (root / "problems").is_dir() and any((root / name).is_dir() for name in _PICTURE_FOLDERS):
            return root
    return None


def _renamed(row: Row) -> Row:
    """The derived rows have no ids; an image's name is its problem's number."""
    stem = row.images[0].stem if row.images and isinstance(row.images[0], Path) else ""
    identity = f"formalgeo7k/{stem}" if stem.isdecimal() else row.id
    return replace(row, id=identity, kind="math" if row.kind == "auto" else row.kind, source="formalgeo7k")


def _numbers(source: Path, split: str | None) -> list[tuple[int, str]]:
    """(problem number, split) from split_<name>.txt where there are any, else every problem under split ""."""
    lists = {path.stem.removeprefix("split_"): path for path in sorted(source.glob("split_*.txt"))}
    if split is not None and split not in lists:
        there = ", ".join(lists) or "none"
        raise DataError(f"{source} has no split {split!r} (a file split_{split}.txt); it has: {there}")
    if not lists:
        problems = (_problem_root(source) / "problems").glob("*.json")
        return [(number, "") for number in sorted(int(path.stem) for path in problems if path.stem.isdecimal())]
    names = list(lists) if split is None else [split]
    try:
        return [(int(word), name) for name in names for word in lists[name].read_text().split()]
    except ValueError as error:
        raise DataError(f"{source}: a split file must list problem numbers: {error}") from error


def _read_problem(path: Path, split: str) -> Row:
    text, answer, picture = read_fields(path, "problem_text_en", "problem_answer", "problem_img")
    try:
        gold = to_latex(str(answer))
    except DataError as error:
        raise RowError(str(error), field="problem_answer") from error
    root = path.parent.parent
    pictures = next(root / name for name in _PICTURE_FOLDERS if (root / name).is_dir())
    return make_row(
        id=f"formalgeo7k/{path.stem}",
        images=[resolve_image_path(pictures, str(picture))],
        problem=text,
        answer=gold,
        kind="math",
        source="formalgeo7k",
        split=split,
    )
