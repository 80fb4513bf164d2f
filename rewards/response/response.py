"""Cuts the answer out of a response: a linear reader of think and answer tags and of boxes.

A box is "\\boxed{...}", "\\fbox{...}", or what GLM's models write: "<|begin_of_box|>...<|end_of_box|>".

Only str.find, str.count and one left-to-right scan are used, so time grows linearly with the text.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.response.declared import declared_answer
from rewards.response.withdrawn import denied_before, hedges, takes_back
from rewards.types import TEMPLATES, Verdict

THINK_OPEN, THINK_CLOSE = "<think>", "</think>"
ANSWER_OPEN, ANSWER_CLOSE = "<answer>", "</answer>"
BOX_OPEN, BOX_CLOSE = "<|begin_of_box|>", "<|end_of_box|>"
_BOXES = ("\\boxed", "\\fbox", BOX_OPEN)
FORMATS = ("think_answer", "think_boxed", "boxed")
_INVISIBLE = dict.fromkeys(map(ord, "\u200b\u200c\u200d\u2060\ufeff\u00ad\u200e\u200f"), None)
_BOX_TOKEN = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*|\\.|[{}]|<\|(?:begin|end)_of_box\|>", re.DOTALL)
_BARE_BOX = re.compile(r"[+-]?[0-9][0-9.,/]*|[A-Za-z]")
_JOINT = re.compile(r"(?:[\s$,;]|\\[()\[\],;! ]|and\b|or\b|\\text\s*\{\s*(?:and|or)\s*\}|\\q?quad)*")
# Boxes of one answer: "\\boxed{1} papers and \\boxed{2} bins", "... 或 y = \\boxed{...}"; nothing that takes one back.
_LINKED = re.compile(
    r"(?!.*\b(?:not|no|instead|rather|but|then|hence|so|wait|actually)\b)"
    r"(?:[\s$]|\\[()\[\]])*[^.!?\n。\\]{0,30}(?:\\text\s*\{)?[^.!?\n。\\]{0,30}"
    r"(?:\b(?:and|or)\b|[和或且与及])\s*\}?(?:[\s$]|\\[()\[\],;! ]|\\q?quad)*(?:\w(?:_\{?\w{1,3}\}?)?\s*=\s*)?\$?"
)
_MAX_JOINT = 60
_TAKEN_BACK = "the words behind the answer take it back"
_WITHDRAWN = "the last box or tag is opened and not closed, which takes back the answer before it"
# What a cut can leave of an opening: "<answer", "\\boxed".
_CUT_TAG = re.compile(r"<ans(?:w(?:e(?:r)?)?)?$")
_CUT_BOX = re.compile(r"\\(?:boxed|fbox)$")


@dataclass(frozen=True, slots=True)
class Extraction:
    """The answer text, or the verdict and reason for which there is none.

    Attributes:
        text: the whole of a plain response, whose last sentence the answer was taken from.
    """

    answer: str | None
    verdict: Verdict | None = None
    reason: str = ""
    text: str = ""


def _none(reason: str, verdict: Verdict = Verdict.no_answer) -> Extraction:
    return Extraction(None, verdict, reason)


def format_score(completion: str, template: str) -> bool:
    """True if the whole response keeps the template's form; linear time.

    Args:
        completion: the sampled text.
        template: "think_answer", "think_boxed" or "boxed".
    Raises:
        ValueError: the template has no form to keep.
    """
    if template not in FORMATS:
        raise ValueError(f"format_score: template {template!r} has no format; use one of {', '.join(FORMATS)}")
    text = completion.strip()
    if template == "think_answer":
        return _keeps_think_answer(text)
    rest = text
    if template == "think_boxed":
        if not text.startswith(THINK_OPEN) or text.count(THINK_OPEN) != 1 or text.count(THINK_CLOSE) != 1:
            return False
        rest = text[text.find(THINK_CLOSE) + len(THINK_CLOSE) :]
    else:
        outside = after_think(text)
        if isinstance(outside, Extraction):
            return False
        rest = outside
    boxes, unclosed = find_boxes(rest)
    return bool(boxes) and not unclosed and not _is_blank(boxes[-1][2])


def _keeps_think_answer(text: str) -> bool:
    if not (text.startswith(THINK_OPEN) and text.endswith(ANSWER_CLOSE)):
        return False
    if any(text.count(tag) != 1 for tag in (THINK_OPEN, THINK_CLOSE, ANSWER_OPEN, ANSWER_CLOSE)):
        return False
    think_end, answer_start = text.find(THINK_CLOSE), text.find(ANSWER_OPEN)
    if answer_start < think_end or text[think_end + len(THINK_CLOSE) : answer_start].strip():
        return False
    return not _is_blank(text[answer_start + len(ANSWER_OPEN) : -len(ANSWER_CLOSE)])


def _is_blank(text: str) -> bool:
    return not text.translate(_INVISIBLE).strip()


def extract(completion: str, template: str = "auto") -> Extraction:
    """Cut the answer out of `completion` by the template's rule.

    Returns:
        The stripped answer text, or no answer with the verdict (no_answer, bad_format, wrong) and why.
    Raises:
        ValueError: unknown template.
    """
    if template not in TEMPLATES:
        raise ValueError(f"unknown template {template!r}; use one of {', '.join(TEMPLATES)}")
    text = after_think(completion)
    if isinstance(text, Extraction):
        return text
    if template == "think_answer" or (template == "auto" and (ANSWER_OPEN in text or ANSWER_CLOSE in text)):
        return _from_tags(text)
    text = _without_comments(text)
    # A box is a declaration too, so "bare" reads one where there is one.
    if template in ("think_boxed", "boxed") or holds_box(text):
        return _from_boxes(text)
    answer = declared_answer(text)
    return Extraction(answer, text=text) if answer else _none("the response declares no answer")


def after_think(text: str) -> str | Extraction:
    """The text outside the think block, or why there is none.

    A block opened in the prompt (a close without an open) is accepted; a second block is malformed.
    """
    if THINK_CLOSE not in text:
        return _none("the think block is not closed") if THINK_OPEN in text else text
    start, end = text.find(THINK_OPEN), text.find(THINK_CLOSE)
    rest = text[end + len(THINK_CLOSE) :]
    if THINK_OPEN in rest or THINK_CLOSE in rest or start > end:
        return _none("think tags are repeated or out of order", Verdict.bad_format)
    if start >= 0 and text.find(THINK_OPEN, start + 1, end) >= 0:
        return _none("think tags are nested", Verdict.bad_format)
    if start > 0 and ANSWER_OPEN in text[:start]:
        return _none("an answer tag stands before the think block", Verdict.bad_format)
    return rest


def _from_tags(text: str) -> Extraction:
    answers = []
    position = 0
    while True:
        start = text.find(ANSWER_OPEN, position)
        end = text.find(ANSWER_CLOSE, position)
        if start < 0:
            break
        if end < 0:
            return _none(_WITHDRAWN if answers else "the answer tag is not closed")
        inner = text[start + len(ANSWER_OPEN) : end]
        if end < start or ANSWER_OPEN in inner:
            return _none("answer tags are nested or out of order", Verdict.bad_format)
        answers.append(inner.strip())
        position = end + len(ANSWER_CLOSE)
    if text.find(ANSWER_CLOSE, position) >= 0:
        return _none("an answer tag is closed but never opened", Verdict.bad_format)
    if not answers:
        return _none("there is no answer tag")
    if _CUT_TAG.search(text[position:].rstrip()[-len(ANSWER_OPEN) :]):
        return _none(_WITHDRAWN)
    if len(set(answers)) > 1:
        return _none(f"{len(set(answers))} different answers in tags", Verdict.wrong)
    if takes_back(text[position:], answers[0]) or denied_before(text[: text.find(ANSWER_OPEN)]):
        return _none(_TAKEN_BACK, Verdict.wrong)
    inner = answers[0]
    if "<!--" in inner:
        inner = _without_comments(inner)
    if holds_box(inner):
        return _from_boxes(inner)
    return _none("the answer tag is empty") if _is_blank(inner) else Extraction(inner)


def _without_comments(text: str) -> str:
    """Drop <!-- ... --> (an unclosed one to the end)."""
    if "<!--" not in text:
        return text
    head, *tails = text.split("<!--")
    parts = [head]
    for tail in tails:
        _, closed, visible = tail.partition("-->")
        parts.append(visible if closed else "")
    return "".join(parts)


def holds_box(text: str) -> bool:
    """A box is at least opened somewhere."""
    return any(opening in text for opening in _BOXES)


def find_boxes(text: str) -> tuple[list[tuple[int, int, str]], bool]:
    """Outermost closed boxes as (start, end, content) in order, and whether one was left open; one pass."""
    boxes: list[tuple[int, int, str]] = []
    stack: list[tuple[str, int, int]] = []  # (what closes it, start of the box or -1 for a plain brace, its content)
    open_boxes = open_marks = 0
    pending = (-1, -1)  # (position of the brace a box command opens, start of the command)
    for match in _BOX_TOKEN.finditer(text):
        token, at = match.group(), match.start()
        if token == "{":
            is_box = pending[0] == at
            stack.append(("}", pending[1] if is_box else -1, at + 1))
            open_boxes += is_box
        elif token == BOX_OPEN:
            stack.append((BOX_CLOSE, at, match.end()))
            open_boxes, open_marks = open_boxes + 1, open_marks + 1
        elif token in ("}", BOX_CLOSE):
            # Between the marks of a box a brace needs no partner; a mark without one is no box.
            while token == BOX_CLOSE and open_marks and stack[-1][:2] == ("}", -1):
                stack.pop()
            if not stack or stack[-1][0] != token:
                continue
            _, start, inner = stack.pop()
            open_marks -= token == BOX_CLOSE
            if start >= 0:
                open_boxes -= 1
                if not open_boxes:
                    boxes.append((start, match.end(), text[inner:at]))
        elif token.startswith(("\\boxed", "\\fbox")):
            pending = (match.end(), at)
            bare = _BARE_BOX.match(text, match.end())
            if bare and not open_boxes:
                boxes.append((at, bare.end(), bare.group().rstrip(".,")))
    return boxes, open_boxes > 0


def _from_boxes(text: str) -> Extraction:
    boxes, unclosed = find_boxes(text)
    if not boxes:
        return _none("the box is not closed" if unclosed else "there is no box")
    if unclosed or _CUT_BOX.search(text.rstrip()[-len("\\boxed") :]):
        return _none(_WITHDRAWN)
    joined = [boxes[-1]]
    for box in reversed(boxes[:-1]):
        between = text[box[1] : joined[0][0]]
        if len(between) > _MAX_JOINT or not (_JOINT.fullmatch(between) or _LINKED.fullmatch(between)):
            break
        joined.insert(0, box)
        if len(joined) > 64:
            return _none("more than 64 boxes in a row", Verdict.too_large)
    _, end, content = boxes[-1]
    if takes_back(text[end:], content) or denied_before(text[: joined[0][0]]):
        return _none(_TAKEN_BACK, Verdict.wrong)
    if len(boxes) > len(joined) and hedges(text[boxes[-len(joined) - 1][1] : joined[0][0]]):
        return _none("several boxes are offered as alternatives", Verdict.wrong)
    contents = [_inner_box(content) for _, _, content in joined]
    unique = list(dict.fromkeys(contents))
    answer = ", ".join(unique)
    return _none("the box is empty") if any(map(_is_blank, unique)) else Extraction(answer)


def _inner_box(content: str) -> str:
    """Look through boxes inside a box, at most four deep."""
    content = content.strip()
    for _ in range(4):
        if not content.startswith(_BOXES):
            break
        boxes, _ = find_boxes(content)
        if len(boxes) != 1 or boxes[0][1] != len(content):
            break
        content = boxes[0][2].strip()
    return content
