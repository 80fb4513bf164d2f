"""What `prepare` may leave out on request: a filter looks at one row and gives a reason to drop it, or None."""

import io
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass

from PIL import Image

from data_prep.schema import KINDS, DataError, Row

ANSWER_FORMS = ("choice", "integer", "decimal", "fraction", "percent", "list", "expression", "text")
_NUMBERS = (
    ("integer", re.compile(r"[+-]?(\d+|\d{1,3}(,\d{3})+)")),
    ("decimal", re.compile(r"[+-]?(\d*\.\d+|\d+\.|\d{1,3}(,\d{3})+\.\d+)")),
    ("fraction", re.compile(r"[+-]?\d+/\d+")),
    ("percent", re.compile(r"[+-]?\d+(\.\d+)?\\?%")),
)
_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(\d+)\s*\}\s*\{\s*(\d+)\s*\}")
_NOTATION = re.compile(r"\\left|\\right|\\[,;! ]|\s|°|\^\{?\\circ\}?")


@dataclass(frozen=True, slots=True)
class Filter:
    """One wish about rows.

    Attributes:
        name: what the manifest counts dropped rows under.
        setting: all that its verdicts depend on, as text; an interrupted run goes on only with equal settings.
        reason: why a row is dropped, or None to keep it. The row's images are bytes that are known to open.
    """

    name: str
    setting: str
    reason: Callable[[Row], str | None]


def image_filters(
    *,
    min_side: int | None = None,
    max_side: int | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
) -> list[Filter]:
    """Bounds on every image of a row: shorter side, longer side (pixels), width x height; None = no bound."""
    bounds = (
        ("min_side", min_side, lambda width, height, bound: min(width, height) < bound),
        ("max_side", max_side, lambda width, height, bound: max(width, height) > bound),
        ("min_pixels", min_pixels, lambda width, height, bound: width * height < bound),
        ("max_pixels", max_pixels, lambda width, height, bound: width * height > bound),
    )
    return [_image_filter(name, bound, breaks) for name, bound, breaks in bounds if bound is not None]


def prompt_token_filter(count_tokens: Callable[[Row], int], max_tokens: int, model: str) -> Filter:
    """Drops rows whose prompt has more than `max_tokens` tokens as `model` counts them."""

    def reason(row: Row) -> str | None:
        num_tokens = count_tokens(row)
        return f"its prompt has {num_tokens} tokens" if num_tokens > max_tokens else None

    return Filter("max_prompt_tokens", f"{max_tokens} of {model}", reason)


def kind_filter(kinds: Collection[str]) -> Filter:
    """Keeps rows of these kinds (see `Row.kind`)."""
    _check_known(kinds, KINDS, "kind")
    return Filter("kinds", ",".join(sorted(kinds)), lambda row: None if row.kind in kinds else f"kind {row.kind}")


def answer_form_filter(forms: Collection[str]) -> Filter:
    """Keeps rows whose gold has one of these forms (see `answer_form`)."""
    _check_known(forms, ANSWER_FORMS, "answer form")

    def reason(row: Row) -> str | None:
        return None if (form := answer_form(row)) in forms else f"its gold is of form {form}"

    return Filter("answer_forms", ",".join(sorted(forms)), reason)


def answer_form(row: Row) -> str:
    """What the gold answer looks like, one of ANSWER_FORMS; a rough look for counts and filters, not for verdicts."""
    if row.kind == "choice":
        return "choice"
    text = _NOTATION.sub("", _FRACTION.sub(r"\1/\2", row.answer).replace("$", "").replace("−", "-"))
    for form, shape in _NUMBERS:
        if shape.fullmatch(text):
            return form
    parts = text.split(",")
    if len(parts) > 1 and (text[0] in "([{\\" or all(re.search(r"\d", part) for part in parts)):
        return "list"
    without_commands = re.sub(r"\\[A-Za-z]+", "", text)
    has_words = re.search(r"[A-Za-z]{3}", without_commands)
    return "expression" if re.search(r"[\d\\=^√π]", text) and not has_words else "text"


def _image_filter(name: str, bound: int, breaks: Callable[[int, int, int], bool]) -> Filter:
    def reason(row: Row) -> str | None:
        sizes = [Image.open(io.BytesIO(image)).size for image in row.images]
        return next((f"an image is {w} x {h} pixels" for w, h in sizes if breaks(w, h, bound)), None)

    return Filter(name, str(bound), reason)


def _check_known(given: Collection[str], known: Collection[str], what: str) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise DataError(f"{', '.join(unknown)!r} is no {what}; use {', '.join(known)}")
