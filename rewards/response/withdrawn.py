"""Whether a response takes back, in the words behind it, the answer that it has put into a tag or box.

Wavering models write "\\boxed{5}. Wait, that is wrong, it should be 7." Such an answer is not asserted, so it is not
paid, whatever it is. A remark behind an answer that stands ("5, not 6, as one might think") begins with no word of the
kinds below, or names no other value.
"""

from __future__ import annotations

import re

# Only so much behind an answer is looked at, so that the work is bounded.
WINDOW = 1500
# Somebody stops: what follows corrects what stood before.
_STOPS = re.compile(
    r"\b(?:wait|hmm+|hold\s+on|oops|whoops|sorry|apolog\w+|correction|scratch\s+that|on\s+(?:second\s+thoughts?|reflection)"
    r"|actually\s*,?\s*no|no\s*,|let\s+me\s+(?:re-?\w+|correct|fix)|(?:re-?check\w*|re-?comput\w*|re-?calculat\w*|re-?count\w*)"
    r"|non\s*,|attendez|désolé|pardon|moment\s*mal|warte|nein\s*,|entschuldigung|espera|perdón|no,|aspetta|scusa\w*"
    r"|não|desculpe|нет|подожди\w*|извини\w*|khoan|xin\s+lỗi|tunggu|maaf)(?![\w])"
    r"|等等|等一下|抱歉|对不起|更正|重新|再(?:检查|算|看|数|核)|检查(?:后)?发现|发现|待って|すみません|訂正|잠깐|죄송|정정",
    re.IGNORECASE,
)
# The answer is called wrong, or another one right.
_REJECTS = re.compile(
    r"\b(?:(?:is|was|are|'s|that's|it's)\s+(?:in\s+fact\s+|actually\s+)?(?:wrong|incorrect|mistaken|not\s+(?:right|correct|true))"
    r"|(?:i|we)\s+(?:\w+\s+)?(?:mis\w+|made\s+an?\s+(?:\w+\s+)?(?:error|mistake|slip)|erred|forgot|dropped|overlooked|mixed\s+up"
    r"|confused)|(?:should|must|ought\s+to)\s+(?:\w+\s+)?(?:be|have\s+been)|is\s+in\s+fact|is\s+actually|actually\s+is|in\s+fact"
    r"|instead|rather\s+than|(?:my|an?)\s+(?:\w+\s+)?(?:error|mistake|slip)"
    r"|(?:me\s+suis|je\s+me\s+suis)\s+tromp\w+|erreur|faux|plutôt|devrait\s+être|falsch|fehler|irrtum|sollte\s+\w+\s+sein|muss\s+\w+\s+sein"
    r"|incorrect[oa]|errad[oa]|errore|sbagliat\w+|equivoc\w+|debería\s+ser|deveria\s+ser|dovrebbe\s+essere|неверн\w+|неправильн\w+"
    r"|ошиб\w+|должн\w+\s+быть|sai\b|nhầm|phải\s+là|salah|keliru|seharusnya)(?![\w])"
    r"|不对|不正确|错|有误|误|应为|应是|应该|应当|应等于|其实|实际上|而是|但这是|漏|間違|誤り|正しくは|틀렸|잘못|아니라",
    re.IGNORECASE,
)
# What would stand in the answer's place: a value or a letter.
_OTHER = re.compile(r"[0-9\\√π∞]|(?<![A-Za-z])[A-H](?![A-Za-z'’])|[一二两三四五六七八九十]")
# A sentence that confirms.
_CONFIRMS = re.compile(
    r"\b(?:no|without|any)\s+(?:error|mistake|slip)s?\b|\b(?:is|are|looks?|seems?)\s+(?:indeed\s+)?(?:correct|right)\b"
    r"|\bchecks?\s+out\b|\bconfirm\w*|\bverif\w+|\bas\s+(?:required|desired|expected)|正确|验证|符合|无误|检验",
    re.IGNORECASE,
)
_SENTENCE = re.compile(r"(?<=[.!?;。！？；\n])\s*")
# An intermediate box that is followed by the reasoning that goes on is none of the final answer.
_NEGATED = re.compile(r"^\W*(?:not|and\s+not|but\s+not|rather\s+than|instead\s+of|而不是|而非|不是)\b", re.IGNORECASE)


def takes_back(rest: str) -> bool:
    """Whether the text behind an answer withdraws it: somebody stops or calls it wrong, and names another one."""
    rest = rest[:WINDOW].strip(" \t\n.。,，$)*`\\]")
    if len(rest) < 4 or _NEGATED.match(rest):
        return False
    for sentence in _SENTENCE.split(rest):
        if _CONFIRMS.search(sentence) and not _STOPS.search(sentence):
            continue
        stops, rejects = _STOPS.search(sentence), _REJECTS.search(sentence)
        if not (stops or rejects):
            continue
        begun = min(found.start() for found in (stops, rejects) if found)
        if rejects and _OTHER.search(rest, rest.find(sentence) + begun):
            return True
        if stops and _REJECTS.search(rest) and _OTHER.search(rest):
            return True
    return False
