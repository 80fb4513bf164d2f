"""Text answers: equal as whole strings once notation, case, articles, spacing and a final full stop are set aside."""

from __future__ import annotations

import re
from functools import lru_cache

from rewards.answers.notation import clean
from rewards.answers.wording import look_through

_ARTICLE = re.compile(r"\b(?:a|an|the)\s+(?=\S)")
_DEGREE_SIGN = re.compile(r"\s*°\s*")
_BEARING = re.compile(r"^(n|s|north|south)\s?(\d{1,2}(?:\.\d+)?)\s?(?:°|degrees?)?\s?(e|w|east|west)$")
_IDLE_SIGN = re.compile(r"[{}]|\\(?=[a-z])")
_QUOTES = "\"'`"
# One sign for each relation and figure of geometry; "\not" and "\n..." before them are no longer theirs.
_SIGNS = (
    (re.compile(r"\\(?:parallel|\|)(?![A-Za-z])|//|\|\|"), "∥"), (re.compile(r"\\(?:perp|bot)(?![A-Za-z])"), "⊥"),
    (re.compile(r"\\cong(?![A-Za-z])|≅"), "≌"), (re.compile(r"\\sim(?![A-Za-z])|∼"), "∽"),
    (re.compile(r"\\(?:big)?triangle(?:up)?(?![A-Za-z])|\\Delta(?![A-Za-z])|Δ|∆|▵"), "△"),
    (re.compile(r"\\(?:measured)?angle(?![A-Za-z])|∡"), "∠"),
)  # fmt: skip
# A blank divides two words of letters; beside signs, digits and Chinese it divides nothing.
_IDLE_SPACE = re.compile(r"\s+(?![a-zà-ÿ])|(?<![a-zà-ÿ.!?])\s+")
_SYMMETRIC = re.compile(r"[=∥⊥≌∽]")


_MONTHS = "january|february|march|april|may|june|july|august|september|october|november|december"
_DAY_FIRST = re.compile(rf"^(\d{{1,2}})(?:st|nd|rd|th)?(?: of)? ({_MONTHS})(?:,? (\d{{4}}))?$")
_MONTH_FIRST = re.compile(rf"^({_MONTHS}) (\d{{1,2}})(?:st|nd|rd|th)?(?:,? (\d{{4}}))?$")
# (3) > (1) > (2), and several letters of choices.
_ORDER = re.compile(r"\(?\w{1,3}\)?(?:[<>]\(?\w{1,3}\)?)+")
_LETTER_LIST = re.compile(r"\(?[A-H]\)?(?:\s*(?:,|;|and|&|和|与|及|\s)\s*\(?[A-H]\)?)+")


@lru_cache(maxsize=1024)
def normal_text(text: str) -> str:
    """Comparable form of a text; may be empty."""
    text = clean(text)
    if not text.isascii() or "\\" in text or "//" in text or "||" in text:
        for sign, plain in _SIGNS:
            text = sign.sub(plain, text)
    text = text.casefold().strip(_QUOTES).strip()
    text = _IDLE_SIGN.sub("", text)
    text = " ".join((_ARTICLE.sub("", text) or text).split()).rstrip(".!").strip()
    bearing = _BEARING.match(text)
    if bearing:
        return f"{bearing[1][0]} {bearing[2]}° {bearing[3][0]}"
    if day := _DAY_FIRST.match(text):
        text = " ".join(filter(None, (day[2], day[1], day[3])))
    elif day := _MONTH_FIRST.match(text):
        text = " ".join(filter(None, day.groups()))
    return _IDLE_SPACE.sub("", _DEGREE_SIGN.sub("° ", text).strip())


def same_text(gold: str, answer: str) -> bool:
    """True if both texts, or the gold and what the answer asserts, have the same non-empty comparable form."""
    if (letters := _letters(gold)) and letters == _letters(look_through(clean(answer))):
        return True
    wanted = _sides(normal_text(gold))
    return bool(wanted) and wanted in (_sides(normal_text(answer)), _sides(normal_text(look_through(clean(answer)))))


def _letters(text: str) -> str:
    """ABD of "A, B, D" and of "ABD", whose letters go up; "" for any other text."""
    text = clean(text)
    letters = "".join(re.findall("[A-H]", text))
    is_list = re.fullmatch("[A-H]{2,8}", text) or _LETTER_LIST.fullmatch(text)
    if not is_list or len(set(letters)) < len(letters):
        return ""
    return letters if list(letters) == sorted(letters) else "".join(sorted(letters)) if letters != text else ""


def _sides(text: str) -> tuple[str, ...]:
    """The text; the sides of one symmetric relation in alphabetical order; an order from the largest down."""
    if _ORDER.fullmatch(text) and len(set(re.findall("[<>]", text))) == 1:
        parts = [part.strip("()") for part in re.split("[<>]", text)]
        return (">", *(parts if ">" in text else parts[::-1]))
    relation = _SYMMETRIC.findall(text)
    if len(relation) != 1:
        return (text,) if text else ()
    return (relation[0], *sorted(text.split(relation[0])))
