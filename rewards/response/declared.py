"""Finds the finally declared answer of a response without tags or boxes."""

from __future__ import annotations

import re

from rewards.answers.denials import denies, spoils
from rewards.answers.markup import without_markup
from rewards.answers.wording import look_through, without_reason
from rewards.response.withdrawn import takes_back

# Only the end of a response can declare the final answer; a fixed window bounds the work.
WINDOW = 4000
# A last sentence that is longer, and neither states anything nor holds a value, declares nothing.
_SHORT = 30
# Where a model's turn ends; what follows is another one's.
_TURN_END = re.compile(r"<\|(?:im_end|im_start|endoftext|eot_id|end)\|>|</s>")
_TURN_START = re.compile(r"^\s*<\|im_start\|>\s*assistant\s*")
_MARKER = re.compile(
    r"\b(?:answer|option|choice|réponse|antwort)\b"
    r"(?:\s+(?:to|of|for)\s+(?:the|this)\s+(?:question|problem))?(?:\s+(?:finale|correcte))?"
    r"(?:\s+(?:should|must|would)\s+be)?\s*(?P<link>(?:(?:\bis\b|=|[:：]|\best\b|\bist\b|\blautet\b)\s*[:：]?)?)"
    r"|(?:答案】?|正确选项|[故应]填)(?:应该|应)?(?P<zh>(?:是|为|选)?\s*[:：]?)"
    r"|(?:故|应|应该|因此|所以|本题)(?:选择|选)(?P<zh_letter>\s*[:：]?)"
    r"|(?:答え|正解|解答)\s*(?P<ja>(?:は|[:：])?)",
    re.IGNORECASE,
)
_CLAUSE_END = re.compile(r"[,;:，；：、]")
_OPENING = re.compile(r"^\W*(?:but|so|and|thus|hence|therefore|the|my|our|final|correct)\b\s*", re.IGNORECASE)
_PLEASANTRY = re.compile(
    r"^(?:i\s+hope|hope\s|let\s+me\s+know|thank|have\s+a|feel\s+free|please\b|if\s+you\s+have"
    r"|glad\s|happy\s+to|good\s+luck|you're\s+welcome|cheers|希望|如有|如果(?:你|您)(?:还)?有|祝)",
    re.IGNORECASE,
)
_RETRACTION = re.compile(
    r"\b(?:wait|actually|correction|instead|alternatively|mistake|error|sorry|oops|hmm|i\s+meant|or)\b|^\W*no\b"
    r"|\b(?:that|this|it|which)(?:['’]s|\s+is|\s+was|\s+must\s+be)\s+(?:wrong|incorrect|false"
    r"|not\s+(?:right|correct|true|it|the\s+answer))\b|\b(?:can['’]?t|cannot|can\s+not)\s+be\s+(?:right|correct|true)\b"
    r"|等等|不对|错了|更正|应该是|其实|实际上",
    re.IGNORECASE,
)
# A number in the clause changes the answer behind it ("5 times the answer is").
_NUMBERED = re.compile(r"\d")
_SENTENCE_END = re.compile(r"(?<![A-Z0-9(*][A-Z])(?<!^[A-Za-z])[.!?](?=\s|$)|[。！？]|\n", re.MULTILINE)
_BLOCKS = (("$$", "$$"), ("\\[", "\\]"))
_ROWS = re.compile(r"\\begin\{(?:aligned|align|gather|gathered|split|eqnarray)\*?\}(.*)", re.DOTALL)
_VALUE_LIKE = re.compile(r"[0-9\\√π½]|\([A-H]\)|\b(?:option|choice)\s+[A-H]\b|^\W*[A-H]\W*$|^[+-]?[a-z]$")
# Prose before the first side of an equation.
_PROSE = re.compile(
    r"^(?:(?!(?:sin|cos|tan|cot|sec|csc|log|ln|max|min|mean|median|mode)\b)[^\W\d_][^\W\d_]+(?:['’-]\w+)*[,:]?\s+){1,40}"
    r"(?=[^=\s][^=]*=)"
)
# A member that ends one statement and begins another.
_CONCLUDES = re.compile(
    r"\b(?:that|so|hence|thus|therefore|gives?|gets?|giving|yields?|conclude|obtain|have|and|quindi|donc|also)\b"
)
_WORD = re.compile(r"[^\W\d_]{3,}")


def declared_answer(text: str) -> str | None:
    """The answer a plain response declares last, or None.

    Looks, in this order, for: a JSON object; "the answer is ..." or a "Final Answer" heading; bold text in the last
    sentence; what the last sentence says. An equation stays whole: "2x = 10" does not declare 10.
    """
    sentences = _sentences(_own_turn(text))
    while len(sentences) > 1 and _PLEASANTRY.match(sentences[-1][0]) and not _RETRACTION.search(sentences[-1][0]):
        sentences.pop()
    if not sentences:
        return None
    marked = _after_marker(sentences)
    if marked is not None:
        return marked or None
    last, is_asked = without_reason(sentences[-1][0]), sentences[-1][1]
    if is_asked:
        return None
    # At the end of a text one "#" makes a heading.
    last = last.removeprefix("# ") if len(sentences) > 1 else last
    bold = last.rpartition("**")[0].rpartition("**") if last.count("**") >= 2 else ("", "", "")
    if bold[1] and not bold[2].rstrip().endswith((":", "：")) and not _RETRACTION.search(last) and not denies(last):
        return _stated(bold[2])
    said = _stated(last)
    says_something = said != last or len(sentences) == 1 or len(last) <= _SHORT or _VALUE_LIKE.search(last)
    return said if says_something else None


def _own_turn(text: str) -> str:
    """The end of the model's own turn; a JSON object there stands for its answer."""
    text = _TURN_START.sub("", text[-WINDOW:])
    end = _TURN_END.search(text)
    text = (text[: end.start()] if end else text).strip()
    fence = text.rfind("```", 0, -3) if text.endswith("```") else text.rfind("\n{") + 1
    inner = without_markup(text[max(fence, 0) :]) if text.endswith(("```", "}")) else text
    return inner if inner and "{" not in inner and '"' not in inner else text


def _sentences(text: str) -> list[tuple[str, bool]]:
    """(sentence or line, whether it asks), stripped; blank and fence-only ones dropped, display mathematics whole."""
    parts, start, position, absent = [], 0, 0, set()
    for match in _SENTENCE_END.finditer(text):
        if match.start() < position:
            continue
        for opening, closing in _BLOCKS:
            at = -1 if opening in absent else text.find(opening, max(start, position), match.start() + 1)
            end = text.find(closing, at + 2) if at >= 0 else -1
            if at >= 0 and end < 0:
                absent.add(opening)
            position = max(position, end + 2 if end >= 0 else 0)
        if match.start() < position:
            continue
        parts.append((text[start : match.start()], match.group() in "?？"))
        start = match.end()
    parts.append((text[start:], False))
    stripped = ((_last_row(part).strip(), is_asked) for part, is_asked in parts)
    return [(part, is_asked) for part, is_asked in stripped if part.strip("$\\[]()`*#-_ ")]


def _last_row(sentence: str) -> str:
    """The last row of equations under each other; any other text as it is."""
    rows = _ROWS.search(sentence) if "\\begin" in sentence else None
    if rows is None:
        return sentence
    kept = [row.strip() for row in rows[1].partition("\\end{")[0].split("\\\\")]
    return next((row.replace("&", " ") for row in reversed(kept) if row), sentence)


def _after_marker(sentences: list[tuple[str, bool]]) -> str | None:
    """Text after the last answer marker; "" if it is denied, asked or taken back later; None if there is no marker."""
    for index in range(len(sentences) - 1, -1, -1):
        sentence, is_asked = sentences[index][0].replace("**", ""), sentences[index][1]
        found = list(_MARKER.finditer(sentence))
        if not found:
            continue
        marker = found[-1]
        link = next((link for link in marker.groups() if link is not None), "")
        after, rest = sentence[marker.end() :].strip(), [text for text, _ in sentences[index + 1 :]]
        if not after.strip("*: #："):
            if not rest:
                continue
            is_asked = is_asked or sentences[index + 1][1]
            after, rest = rest[0], rest[1:]
        elif not link.strip() and marker.lastgroup != "zh_letter":
            continue
        before = _OPENING.sub("", _CLAUSE_END.split(sentence[: marker.start()])[-1])
        if (
            is_asked
            or _NUMBERED.search(before)
            or spoils(before + marker.group())
            or any(map(_RETRACTION.search, rest))
            or takes_back(" ".join(rest), after)
        ):
            return ""
        return _unmarked(after)
    return None


def _stated(sentence: str) -> str:
    """What a sentence says: its lead-ins off, its equation whole, middle members in words left out."""
    said = look_through(without_markup(sentence))
    if "=" in said and not denies(said):
        return _short_chain(_PROSE.sub("", said, count=1))
    return said


def _short_chain(equation: str) -> str:
    """name = formula in words = value without the formula."""
    members = equation.split("=")
    if len(members) < 3 or "," in equation or any(member.strip()[-1:] in ("<", ">", "!", "\\") for member in members):
        return equation
    if any(_CONCLUDES.search(member) for member in members[1:-1]):
        return equation
    middle = [member for member in members[1:-1] if not _WORD.search(re.sub(r"\\[A-Za-z]+", " ", member))]
    return "=".join([members[0], *middle, members[-1]])


def _unmarked(text: str) -> str:
    """Without the bold marks around the text or left over from a sentence that was cut."""
    text = text.strip()
    return text.replace("**", "") if text.count("**") % 2 or text.startswith("**") else text.strip("*").strip()
