"""An audit as files: audit.json with every offender, audit.html with images of the first ones.

All text of rows is untrusted: the template escapes it, and the page's content policy lets no script run and nothing
be fetched. Images are decoded and written anew.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.audit.types import Audit, Defect, Record
from data_prep.images.opening import open_image
from data_prep.loading import scan_rows
from data_prep.schema import DataError, Row, RowError
from data_prep.videos.opening import contact_sheet
from vlm_mhpo.evaluation.chosen import rows_by_name
from vlm_mhpo.pages.html import environment, write_text
from vlm_mhpo.pages.images import data_uri

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_SHOWN = 24  # offences of a defect on the page
_MAX_SIDE = 280
_MAX_PICTURES = 2  # of a row

_Place = tuple[int, int]


def write_audit(
    audit: Audit,
    out_dir: Path,
    *,
    format: str = "auto",
    split: str | None = None,
    image_root: Path | None = None,
    answer_lists: str | None = None,
    columns: Mapping[str, str] | None = None,
    ignore_columns: Collection[str] = (),
    open_benchmark: Callable[[str], Iterable[Row | RowError]] = scan_rows,
) -> Path:
    """Write audit.json and audit.html to `out_dir` (made if need be, old files replaced) and return the page.

    Args:
        format, split, image_root, answer_lists, columns, ignore_columns, open_benchmark: as `audit` was called; its
            sources are read again for the images.
    """
    out_dir = Path(out_dir)
    wanted = {record.place for defect in audit.defects for record in _shown(defect)}
    pictures: dict[_Place, list[str]] = {}
    names = {"columns": columns, "ignore_columns": ignore_columns, "answer_lists": answer_lists}
    own = partial(scan_rows, format=format, split=split, image_root=image_root, **names)
    for number, source in enumerate(audit.sources):
        pictures |= _thumbnails(partial(open_benchmark if number else own, source), number, wanted)
    write_text(json.dumps(_as_json(audit), indent=1, ensure_ascii=False) + "\n", out_dir / "audit.json")
    template = environment().get_template("audit.html.j2")
    html = template.render(audit=audit, pictures=pictures, max_shown=MAX_SHOWN)
    return write_text(html, out_dir / "audit.html")


def open_rows(entry: str) -> Iterable[Row | RowError]:
    """Rows of a benchmark by its name, or of any other source."""
    found = rows_by_name(entry)
    return scan_rows(entry) if found is None else found


def _shown(defect: Defect) -> Iterator[Record]:
    for offence in defect.offences[:MAX_SHOWN]:
        yield offence.row
        if offence.other:
            yield offence.other


def _thumbnails(
    rows_of_set: Callable[[], Iterable[Row | RowError]], number: int, wanted: Iterable[_Place]
) -> dict[_Place, list[str]]:
    """Data URIs of the first images of the wanted rows of set `number`, which is read only if some are wanted."""
    places = {index for set_number, index in wanted if set_number == number}
    found: dict[_Place, list[str]] = {}
    if not places:
        return found
    for index, row in enumerate(rows_of_set()):
        if index in places and isinstance(row, Row):
            shown = [*((open_image, image) for image in row.images), *((contact_sheet, video) for video in row.videos)]
            found[number, index] = [uri for how, it in shown[:_MAX_PICTURES] if (uri := _thumbnail(how, it))]
        if index >= max(places):
            break
    return found


def _thumbnail(how: Callable[[Any], Image], source: Any) -> str | None:
    """A small copy of an image or a contact sheet as a data URI; None if it does not open."""
    try:
        picture = how(source)
    except DataError:
        return None
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    return data_uri(picture)


def _as_json(audit: Audit) -> dict[str, Any]:
    def row(record: Record | None) -> dict[str, Any] | None:
        return record and {"set": audit.sources[record.place[0]], "id": record.id, "split": record.split}

    return {
        "sources": dict(zip(audit.sources, audit.num_rows, strict=True)),
        "near_limit": audit.near_limit,
        "defects": [
            {
                "check": defect.check,
                "title": defect.title,
                "severity": defect.severity,
                "num_rows": defect.num_rows,
                "num_checked": defect.num_checked,
                "offences": [
                    {"row": row(offence.row), "other": row(offence.other), "note": offence.note}
                    for offence in defect.offences
                ],
            }
            for defect in audit.defects
        ],
        "tallies": audit.tallies,
        "histograms": [asdict(histogram) for histogram in audit.histograms],
        "unchecked": audit.unchecked,
    }
