"""An audit as files: audit.json with every offender, audit.html with pictures of the first ones.

All text of rows is untrusted: the template escapes it, and the page's content policy lets no script run and nothing
be fetched. Pictures are decoded and written anew.
"""

import base64
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from data_prep.audit.types import Audit, Defect, Record
from data_prep.images.opening import open_image
from data_prep.loading import scan_rows
from data_prep.schema import DataError, Row

MAX_SHOWN = 24  # offences of a defect on the page
_MAX_SIDE = 280
_MAX_PICTURES = 2  # of a row
_TEMPLATE = "page.html.j2"

_Place = tuple[int, int]


def write_audit(
    audit: Audit,
    out_dir: Path,
    *,
    format: str = "auto",
    split: str | None = None,
    image_root: Path | None = None,
) -> Path:
    """Write audit.json and audit.html to `out_dir` (made if need be, old files replaced) and return the page.

    Args:
        format, split, image_root: as `audit` was called; its sources are read again for the pictures.
    """
    out_dir = Path(out_dir)
    out_dir.mkdir(parents=True, exist_ok=True)
    wanted = {record.place for defect in audit.defects for record in _shown(defect)}
    options: dict[str, Any] = {"format": format, "split": split, "image_root": image_root}
    pictures: dict[_Place, list[str]] = {}
    for number, source in enumerate(audit.sources):
        pictures |= _thumbnails(source, number, wanted, options if number == 0 else {})
    _replace(out_dir / "audit.json", json.dumps(_as_json(audit), indent=1, ensure_ascii=False) + "\n")
    page = out_dir / "audit.html"
    _replace(page, render(audit, pictures))
    return page


def render(audit: Audit, pictures: Mapping[_Place, Sequence[str]]) -> str:
    """The page's HTML, with the data URIs of each row's pictures by the row's place."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(_TEMPLATE).render(audit=audit, pictures=pictures, max_shown=MAX_SHOWN)


def _shown(defect: Defect) -> Iterator[Record]:
    for offence in defect.offences[:MAX_SHOWN]:
        yield offence.row
        if offence.other:
            yield offence.other


def _thumbnails(
    source: str, number: int, wanted: Iterable[_Place], options: Mapping[str, Any]
) -> dict[_Place, list[str]]:
    """Data URIs of the first pictures of the wanted rows of one set."""
    places = {index for set_number, index in wanted if set_number == number}
    found: dict[_Place, list[str]] = {}
    if not places:
        return found
    for index, row in enumerate(scan_rows(source, **options)):
        if index in places and isinstance(row, Row):
            found[number, index] = [uri for image in row.images[:_MAX_PICTURES] if (uri := _data_uri(image))]
        if index >= max(places):
            break
    return found


def _data_uri(source: bytes | Path) -> str | None:
    """A small copy of the picture as PNG or JPEG, whichever is shorter; None if it does not open."""
    try:
        picture = open_image(source)
    except DataError:
        return None
    picture.thumbnail((_MAX_SIDE, _MAX_SIDE))
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, "PNG", optimize=True)
    picture.save(jpeg, "JPEG", quality=85)
    kind, data = ("png", png) if png.tell() <= jpeg.tell() else ("jpeg", jpeg)
    return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode('ascii')}"


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


def _replace(path: Path, text: str) -> None:
    # A reader of the old file never sees half of the new one.
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    os.replace(partial, path)
