"""What the HTML pages share: the template engine and its filters, content-policy digests, safe writing."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from vlm_mhpo.records.reading import clean_text

MAX_TEXT = 6_000  # characters of a completion on the page
_TEMPLATES = Path(__file__).parent / "templates"


@cache
def environment() -> jinja2.Environment:
    """The template engine: everything is escaped, and a name that does not exist is an error."""
    engine = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    engine.filters.update(percent=_percent, number=_number, seconds=seconds, points=_points, words=_words)
    engine.filters.update(at=_at, tested=_tested)
    return engine


def source(*names: str) -> Markup:
    """The page's own style or script: the files of those names, one after the other."""
    return Markup("\n".join((_TEMPLATES / name).read_text(encoding="utf-8") for name in names))


def digest(text: str) -> str:
    """The base64 SHA-256 by which a content policy lets one inline script or style through."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def write_text(text: str, path: Path) -> Path:
    """Write a page or record and return its path; a reader of the old one never sees half of the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8", errors="replace", newline="\n")
    os.replace(partial, path)
    return path


def shorten(text: str, limit: int = MAX_TEXT) -> str:
    """At most `limit` characters of a text, saying how many are left out."""
    return text if len(text) <= limit else f"{text[:limit]} … ({len(text) - limit} more characters)"


def flatten(value: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted key, text) of each leaf of a nested configuration; the parts of a list of mappings go by their number."""
    if isinstance(value, list) and any(isinstance(inner, Mapping) for inner in value):
        value = {str(index): inner for index, inner in enumerate(value)}
    if isinstance(value, Mapping) and value:
        for key, inner in value.items():
            yield from flatten(inner, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield clean_text(prefix), clean_text(leaf(value))


def leaf(value: Any) -> str:
    """A value as one writes it in a configuration file; twelve digits tell every number that a person gave."""
    if isinstance(value, float):
        return f"{value:.12g}"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _percent(share: float | None, decimals: int = 1) -> str:
    """0.7891 as '78.9 %'; an en dash for None."""
    return "–" if share is None else f"{100 * share:.{decimals}f}\N{NO-BREAK SPACE}%"


def _points(before: float | None, after: float | None) -> str:
    """The difference of two shares in percentage points with its sign, '+26.6'."""
    if before is None or after is None:
        return "–"
    return f"{100 * (after - before):+.1f}".replace("-", "\N{MINUS SIGN}")


def _at(share: float | None) -> str:
    """A share as a place on an axis of 0 to 100 %, for SVG."""
    return f"{100 * min(1.0, max(0.0, share or 0.0)):.2f}%"


def _tested(p: float | None) -> str:
    """A p-value as papers print it."""
    if p is None:
        return "–"
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def _number(value: float | None) -> str:
    """Four significant digits; an en dash for None."""
    return "–" if value is None else f"{value:.4g}".replace("-", "\N{MINUS SIGN}")


def _words(name: str) -> str:
    """A verdict's name as words: 'no_answer' as 'no answer'."""
    return name.replace("_", " ")


def seconds(value: float) -> str:
    """A duration: '0.4 s', '48 s', '3 min 31 s', '2 h 05 min'."""
    if value < 10:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
