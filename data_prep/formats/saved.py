"""Reader of what `datasets` saves: a folder of `save_to_disk` (Dataset or DatasetDict), or an .arrow file."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data_prep.formats.hub import rows_of_table
from data_prep.schema import DataError, Row, RowError

_ONE, _SEVERAL, _ARROW = "state.json", "dataset_dict.json", ".arrow"


def matches(source: Path) -> bool:
    """Whether `source` is such a folder or file."""
    return source.suffix == _ARROW if source.is_file() else any((source / name).is_file() for name in (_ONE, _SEVERAL))


def read(
    source: Path, split: str | None, *, image_root: Path | None = None, **options: Any
) -> Iterator[Row | RowError]:
    """Rows in order, split after split; nothing is fetched. Options as of `hub.rows_of_table`.

    Raises:
        DataError: the folder cannot be read, or has no such split.
    """
    for label, table in _tables(source, split).items():
        yield from rows_of_table(source.stem, table, label, image_root=image_root or source.parent, **options)


def _tables(source: Path, split: str | None) -> dict[str, Any]:
    import datasets

    try:
        if source.is_file():
            return {split or "": datasets.Dataset.from_file(str(source))}
        loaded = datasets.load_from_disk(str(source))
    except Exception as error:  # datasets and pyarrow raise whatever they met
        raise DataError(f"{source} cannot be read as a saved data set: {error}") from error
    if not isinstance(loaded, dict):
        return {split or str(loaded.split or ""): loaded}
    if split is not None and split not in loaded:
        raise DataError(f"{source} has no split {split!r}; it has: {', '.join(loaded)}")
    return {name: table for name, table in loaded.items() if split in (None, name)}
