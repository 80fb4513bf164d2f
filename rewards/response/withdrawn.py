"""Whether a response takes back, in the words around it, the answer that it has put into a tag or box.

Wavering models write "\\boxed{5}. Wait, that is wrong, it should be 7." Such an answer is not asserted, so it is not
paid, whatever it is. A remark behind an answer that stands ("So the answer must be 5", "A is wrong since ...") names no
other value where the answer's would be.
"""

from __future__ import annotations

import re

# Only so much behind an answer is looked at, so that the work is bounded.
WINDOW = 1500
# Somebody stops: another value behind it takes the answer's place.
_STOPS = re.compile(
    r"\b(?:wait|hmm+|hold\s+on|hang\s+on|nope|strike\s+that|disregard|alternatively|changed\s+my\s+mind|on\s+checking|update|oops|whoops|sorry|apolog\w+|correction|scratch\s+that|on\s+(?:second\s+thoughts?|reflection)"
    r"|actually|no(?=[,.!])|let\s+me\s+(?:re-?\w+|correct|fix)|re-?check\w*|re-?comput\w*|re-?calculat\w*|re-?count\w*"
    r"|however|non\s*,|attendez|désolé|pardon|moment\s*mal|warte|nein\s*,|entschuldigung|espera|perdón|aspetta|scusa\w*"
    r"|não|desculpe|нет|подожди\w*|извини\w*|khoan|xin\s+lỗi|tunggu|maaf)(?!\w)"
    r"|等等|等一下|算了|^\W*不[，,]|抱歉|对不起|更正|重新|再(?:检查|算|看|数|核)|检查(?:后)?发现|待って|すみません|訂正|잠깐|죄송|정정",
    re.IGNORECASE,
)
# The answer itself is called wrong.
_WRONG = re.compile(
    r"\b(?:that|this|it|which|above|answer|result|value)(?:['’]s|\s+(?:is|was|are))\s+(?:in\s+fact\s+|actually\s+|all\s+)?"
    r"(?:likely\s+|probably\s+)?(?:wrong|incorrect|mistaken|false|not\s+(?:right|correct|true|it|the\s+answer))"
    r"|\b(?:that|this|it)\s+(?:isn['’]t\s+right|doesn['’]t\s+work|does\s+not\s+work)|^\W*(?:wrong|incorrect|false)\b"
    r"|(?<!if )\b(?:i|we)\s+(?:\w+\s+)?(?:mis\w+|made\s+an?\s+(?:\w+\s+)?(?:error|mistake|slip)|erred|forgot|dropped"
    r"|overlooked|mixed\s+up|confused|take\s+(?:that|it)\s+back|guessed|am\s+not\s+sure)|\bi['’]m\s+not\s+sure\b|\bme\s+suis\s+tromp\w+|\bc['’]est\s+faux|\b(?:das|es)\s+ist\s+falsch|\bme\s+equivoqu\w+"
    r"|\bmi\s+sono\s+sbagliat\w+|неверно|неправильно|ошиб\w+|\bnhầm\b|\bkeliru\b"
    r"|(?:上面|这|此|刚才|之前)[^。]{0,12}(?:错|误|不对)|^\W*(?:不对|不正确|错了|有误)|算错|看错|弄错|漏了|但这是|間違い(?:です|でした)|틀렸",
    re.IGNORECASE,
)
# Another value is put in the answer's place.
_REPLACES = re.compile(
    r"\b(?:should|must|ought\s+to)\s+(?:\w+\s+)?(?:be|have\s+been)|\bis\s+(?:in\s+fact|actually)|\bin\s+fact|\binstead"
    r"|\b(?:the\s+)?(?:final\s+|correct\s+|right\s+|true\s+|real\s+)?(?:answer|result|option|choice)\s*(?:is|:)|\bdevrait\s+être|\bplutôt"
    r"|\bsollte\s+\w+\s+sein|\bdebería\s+ser|\bdeveria\s+ser|\bdovrebbe\s+essere|должн\w+\s+быть|\bphải\s+là|\bseharusnya"
    r"|应为|应是|应该[是为]?|应当[是为]?|应等于|其实|实际上|而是|(?:正确|最终|最后)?(?:答案|结果)[^。，,]{0,4}[是为]|正しくは|아니라",
    re.IGNORECASE,
)
_VALUE = re.compile(
    r"[-–−]?\s?\d+(?:[.,]\d+)*|(?<![A-Za-z\\])[A-H](?![A-Za-z'’])|[一二两三四五六七八九十]"
    r"|\b(?:zero|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve)\b",
    re.IGNORECASE,
)
# What goes on right behind an answer and makes another one of it.
_GOES_ON = re.compile(
    r"^\s*(?:\$|\\\)|\\\])?\s*(?:\^|\*|/\s*\d|!(?=\s*$)|\\(?:cdot|times|div|%)(?![A-Za-z])|(?:million|billion|thousand|hundred|dozen)s?\b"
    r"|(?:or|oder|ou)\s+(?:maybe\s+|perhaps\s+)?[-\d$\\A-H]|或者?(?:是)?\s*[-\d$\\A-H]|is\s+(?:wrong|incorrect|not)\b|squared\b|cubed\b|万|亿)",
    re.IGNORECASE,
)
# What stands right before a box and makes another answer of it, or none.
_BEFORE = re.compile(
    r"(?:(?:[=(\[$]|\\\(|^|\n)\s*[-−–]\s?|\\frac\s*\{[^{}]*\}\s*\{\s*|\\sqrt\s*(?:\[[^\]]*\])?\s*\{\s*|\\(?:cdot|times|neq?|not)\s*"
    r"|[\^≠]\s*|(?<!\*)\*\s*|\d\s*/\s*|\b(?:not|isn['’]t|never|cannot\s+be|than|except)\s+|(?:不是|不等于|不为|并非|≠)\s*)\$?\s*$",
    re.IGNORECASE,
)
# How such a text ends, for a quick look.
_BEFORE_ENDS = ("-", "−", "–", "{", "*", "^", "≠", "/", "t", "times", "ne", "neq", "never", "be", "than", "except")
_BEFORE_ENDS += ("是", "于", "为", "非")
_BULLET = re.compile(r"(?:^|\n)\s*[-−–]\s$")
_HEDGE = re.compile(r"\b(?:or|maybe|perhaps|possibly|alternatively)\b|或", re.IGNORECASE)


def takes_back(rest: str, answer: str) -> bool:
    """Whether the text behind an answer withdraws it: calls it wrong, or puts another value in its place."""
    if _GOES_ON.match(rest):
        return True
    rest = rest[:WINDOW].strip(" \t\n.。,，$)*`\\]")
    if len(rest) < 3:
        return False
    own = _values(answer)
    if _WRONG.search(rest):
        return True
    stop = _STOPS.search(rest)
    if stop and stop.start() < 60 and not _values(rest[stop.end() :]) <= own:
        return True
    # A letter behind a value may name the choice that has it.
    has_letter = any(each.isalpha() for each in own)
    # Only the first value behind the words counts: "In fact 5 = 10/2" says 5 again.
    firsts = (_VALUE.search(rest, found.end(), found.end() + 40) for found in _REPLACES.finditer(rest))
    others = (first[0] for first in firsts if first is not None and not _values(first[0]) <= own)
    return any(has_letter or not other.isalpha() for other in others)


def denied_before(text: str) -> bool:
    """Whether the text in front of a box denies it or makes another value of it: "-", "not", "1/"."""
    end = text[-60:]
    if not end.rstrip().removesuffix("$").rstrip().lower().endswith(_BEFORE_ENDS):
        return False
    return bool(_BEFORE.search(end)) and not _BULLET.search(end)


def hedges(between: str) -> bool:
    """Whether the text between two boxes offers them as alternatives."""
    return len(between) < 40 and bool(_HEDGE.search(between))


def _values(text: str) -> set[str]:
    """The numbers and letters of a text, each in one spelling."""
    return {re.sub(r"\s", "", found[0]).replace("–", "-").replace("−", "-").upper() for found in _VALUE.finditer(text)}
