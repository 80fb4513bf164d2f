"""Reader for Geometry3K's original folders: <split>/<id>/{data.json, img_diagram.png}."""

from collections.abc import Iterator
from pathlib import Path

from data_prep.formats.jsonl import read_fields
from data_prep.images.opening import resolve_image_path
from data_prep.schema import DataError, Row, RowError, make_row

_DIAGRAMS = ("img_diagram.png", "img_diagram_point.png")  # clean, else with points and letters drawn on


def matches(source: Path) -> bool:
    """A folder with <split>/<id>/data.json, the same below data/geometry3k/, or one split's folder."""
    return source.is_dir() and bool(_split_folders(source))


def read(source: Path, split: str | None, *, image_root: Path | None = None) -> Iterator[Row | RowError]:
    """Rows by split name, then by id. `image_root` is not used: a diagram lies beside its data.json."""
    folders = _split_folders(source)
    if split is not None and split not in folders:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(sorted(folders))}")
    for name in sorted(folders) if split is None else [split]:
        for path in _problem_files(folders[name]):
            try:
                yield _read_problem(path, name)
            except RowError as error:
                yield error.placed(path, None)


def _split_folders(source: Path) -> dict[str, Path]:
    if _problem_files(source):
        return {source.name: source}
    roots = [root for root in (source / "data" / "geometry3k", source) if root.is_dir()]
    return {folder.name: folder for root in roots for folder in root.iterdir() if _problem_files(folder)}


def _problem_files(folder: Path) -> list[Path]:
    files = [path for path in folder.glob("*/data.json") if path.parent.name.isdecimal()]
    return sorted(files, key=lambda path: int(path.parent.name))


def _read_problem(path: Path, split: str) -> Row:
    text, choices, letter = read_fields(path, "annotat_text", "choices", "answer")
    if not isinstance(choices, list) or letter not in list("ABCD"[: len(choices)]):
        raise RowError(f"{letter!r} names none of the choices {choices!r}", field="answer")
    diagram = next((name for name in _DIAGRAMS if path.with_name(name).is_file()), None)
    if diagram is None:
        raise RowError(f"neither {' nor '.join(_DIAGRAMS)} lies beside it", field="images")
    # kind is math, not choice: the prompt does not show the choices, so a letter would be a guess that pays.
    return make_row(
        id=f"geometry3k/{path.parent.name}",
        images=[resolve_image_path(path.parent, diagram)],
        problem=text,
        answer=choices["ABCD".index(letter)],
        kind="math",
        choices=choices,
        source="geometry3k",
        split=split,
    )
