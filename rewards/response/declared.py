"""Finds the finally declared answer of a response without tags or boxes."""

from __future__ import annotations

import re

# Only the end of a response can declare the final answer; a fixed window bounds the work.
WINDOW = 4000
_MARKER = re.compile(
    r"(?:\bfinal\s+|\bcorrect\s+|\bthe\s+|^|\b)(?:answer|option|choice)\b"
    r"(?:\s+(?:to|of|for)\s+(?:the|this)\s+(?:question|problem))?(?:\s+(?:should|must|would)\s+be)?"
    r"(?:\s*\*\*)?\s*(?:\bis\b|=|:)?(?:\s*\*\*)?\s*:?",
    re.IGNORECASE | re.MULTILINE,
)
_CONNECTED = re.compile(r"(?:\bis\b|\bbe\b|[:=])\s*(?:\*\*)?\s*:?$", re.IGNORECASE)
_PLEASANTRY = re.compile(
    r"^(?:i\s+hope|hope\s|let\s+me\s+know|thank|have\s+a|feel\s+free|please\s+(?:let|feel|ask)|if\s+you\s+have"
    r"|glad\s|happy\s+to|good\s+luck|you're\s+welcome|cheers)",
    re.IGNORECASE,
)
_RETRACTION = re.compile(r"\b(?:wait|actually|correction|instead|alternatively|mistake|or)\b", re.IGNORECASE)
_SENTENCE_END = re.compile(r"(?<![A-Z0-9(][A-Z])[.!?](?=\s|$)|\n")
_VERB = re.compile(r"=|\b(?:is|are|equals|equal\s+to|be|gives(?:\s+us)?|get|becomes)\b:?", re.IGNORECASE)
_VALUE_LIKE = re.compile(r"[0-9\\√π½]|\([A-H]\)|\b(?:option|choice)\s+[A-H]\b|^\W*[A-H]\W*$|^[+-]?[a-z]$")


def declared_answer(text: str) -> str | None:
    """The answer a plain response declares last, or None.

    Looks, in this order, for: the whole of a one-line response; "the answer is ..." or a "Final Answer" heading;
    bold text in the last sentence; what the last sentence says something "is" or "equals".
    """
    text = text[-WINDOW:].strip()
    sentences = _sentences(text)
    while len(sentences) > 1 and _PLEASANTRY.match(sentences[-1]):
        sentences.pop()
    if not sentences:
        return None
    marked = _after_marker(sentences)
    if marked is not None:
        return marked or None
    last = sentences[-1]
    if len(sentences) == 1 and not _VERB.search(last):
        return last
    bold = last.rpartition("**")[0].rpartition("**") if last.count("**") >= 2 else ("", "", "")
    if bold[1] and not _RETRACTION.search(last):
        return _tail(bold[2])
    tail = _tail(last)
    return tail if tail and _VALUE_LIKE.search(tail) else None


def _sentences(text: str) -> list[str]:
    """Sentences and lines, stripped, blank and fence-only ones dropped."""
    parts, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        parts.append(text[start : match.start()])
        start = match.end()
    parts.append(text[start:])
    stripped = (part.strip() for part in parts)
    return [part for part in stripped if part.strip("$\\[]()`*#-_ ")]


def _after_marker(sentences: list[str]) -> str | None:
    """Text after the last answer marker; "" if it is taken back later; None if there is no marker."""
    for index in range(len(sentences) - 1, -1, -1):
        found = list(_MARKER.finditer(sentences[index]))
        if not found:
            continue
        marker = found[-1]
        after = sentences[index][marker.end() :].strip()
        rest = sentences[index + 1 :]
        if not after.strip("*: #"):
            if not rest:
                return None
            after, rest = rest[0], rest[1:]
        elif not _CONNECTED.search(marker.group()):
            continue
        if any(_RETRACTION.search(sentence) for sentence in rest):
            return ""
        return _unmarked(after)
    return None


def _tail(sentence: str) -> str:
    """What follows the last verb or equals sign of a sentence, or the sentence itself."""
    found = list(_VERB.finditer(sentence))
    return _unmarked(sentence[found[-1].end() :]) if found else sentence.strip()


def _unmarked(text: str) -> str:
    """Without the bold marks around the text or left over from a sentence that was cut."""
    text = text.strip()
    return text.replace("**", "") if text.count("**") % 2 or text.startswith("**") else text.strip("*").strip()
