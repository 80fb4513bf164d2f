"""Words of denial, doubt and change: what they stand before is not asserted to be the answer."""

from __future__ import annotations

import re
from functools import lru_cache


def either(*phrases: str) -> str:
    """A pattern for any of the phrases, which are parted by ";" and may be written as patterns themselves."""
    return "|".join(_parts(*phrases))


def _parts(*phrases: str) -> list[str]:
    parts = (part.strip() for phrase in phrases for part in phrase.split(";"))
    return [re.sub(r"\s+", r"\\s+", part) for part in parts if part]


def _by_letter(*phrases: str) -> str:
    """The same with one branch for each first letter, which is searched faster."""
    groups: dict[str, list[str]] = {}
    for part in _parts(*phrases):
        first = part[0] if part[0].isalpha() and part[1:2] not in ("?", "*", "+") else ""
        groups.setdefault(first, []).append(part[len(first) :])
    return "|".join(f"{first}(?:{'|'.join(rest)})" for first, rest in groups.items())


# Words under which nothing is asserted, or something else is; patterns, parted by ";".
_NEGATION = r"""not; non; no; never; none; nor; neither; nothing; nobody; cannot; without; hardly; barely; rarely;
seldom; scarcely; wrong\w*; incorrect\w*; false\w*; untrue; mistak\w+; erroneous\w*; invalid; impossible;
contradict\w*; rejected; eliminat\w+; exclu\w+; discard\w*; deny; denie[sd]; fails?; failed; disagree\w*;
extraneous; opposite; instead; rul(?:e[sd]?|ing) out; fake; bogus; dummy; trap; distractors?; worst;
least (?:likely|plausible|correct); second[- ]best;
(?:previous|earlier|initial|original|first|old|former|other|another|alternative|second)
(?:answer|guess|result|solution|option|choice)s?"""
_DOUBT = r"""unless; if; whether; when(?:ever)?; suppos\w+; assum\w+; maybe; perhaps; probabl[ey]; possibl[ey];
might; may; could; unlikely; uncertain; unsure; doubt\w*; seems?; appears?; looks like; thought; believed;
should have; used to; guess\w*; wish\w*; hope; hoping; pretend\w*; claim\w*; tempt\w*; naive\w*; remains? to;
to (?:show|prove|check|verify); as long as; in case; provided that; prove that; careless\w*; sloppy; absurd; myth;
contrary; ideally; faulty; (?:its|whose) (?:square|cube|reciprocal|inverse|negative|logarithm|root)"""
_CHANGE = r"""almost; nearly; twice; thrice; doubled?; tripled?; halve[ds]?; half; plus; minus; squared; cubed; mod;
modulo; multiplied; divided; raised; subtracted; added to; (?:increased|decreased|reduced) by; at (?:least|most);
(?:more|less|fewer|greater|bigger|smaller|larger|higher|lower|other|rather|instead) (?:than|of);
(?:before|after|preceding) (?:the answer|x)"""
_FRENCH = """pas; jamais; aucune?; faux; fausses?; mauvaise?s?; sauf; sans; peut-être; moitié; fois; moins; ne;
erronée?s?; pourrait; différente?"""
_GERMAN = r"""nicht; keine?[nmrs]?; niemals; nie; falsch\w*; weder; ohne; außer; wenn; falls; vielleicht;
doppelt?\w*; hälfte; mehr; weniger; mindestens; höchstens; unmöglich; ungleich; könnte; entfällt"""
_CHINESE = r"""[不非没沒无無未错錯误誤否除舍捨加减減倍哪吗谁怎]; 什么; 可能; 也许; 或许; 如果; 假设; 假如; 若; 认为;
据说; 一半; 大于; 小于; 多于; 少于; 至少; 至多; 最多有; 超过; 多少; 的平方; 的立方; 比[^例]{1,12}[多少大小高低];
猜; 好像; 似乎; 随便; 岂; 休想; 拒绝; 万一; 假的; 平方后; 为了使; [令设]它;
[二三四五六七八九十]分之一(?:是|为|等于)[-\d]; 相反; 倒数; 绝对值; 另一; 干扰; (?<!分)之一;
(?:之前|原来|原先|先前|刚才)的?答案"""
_JAPANESE = """ない; ません; なし; でな; 違; 間違; かも; たぶん; おそらく; もし; 以外; 半分; 二乗; 以上で; 以下で; 未満;
より大; より小"""
_DENIAL = re.compile(
    rf"n['’]t\b|\b(?:{_by_letter(_NEGATION, _DOUBT, _CHANGE, _FRENCH, _GERMAN)})\b"
    rf"|(?<!of )\btimes\b|\bn['’](?=[aeiouyéêh])"
)
_EAST_ASIAN_DENIAL = re.compile(either(_CHINESE, _JAPANESE))
# Words that join alternatives or leave something out: they may stand inside an answer, never before it.
_ALTERNATIVE = re.compile(r"\b(?:or|either|except|excluding|but|than|oder|ou|soit)\b|或者?|还是|以外|か(?=[はが]|$)")
# What denies nothing although it holds such a word.
_HARMLESS = re.compile(
    r"不等式(?:组|的)?|无理数|非负|非零|不同|不变|误差|未知数|错位|加法|减法|倍数|公倍数|不动点|不规则"
    r"|\b(?:in|for|of) may\b(?! be)|\b(?:non-?negative|ordered triple|if and only if|plus sign|no\.\s*(?=\d))"
    r"|比例|由以上|综上"
)
# A value of the answer, or of one letter, put through a function is another value.
_CHANGED = re.compile(
    r"\b(?:square|cube|roots?|reciprocal|inverse|negative|negation|log\w*|third|quarter|fifth|double|triple|multiple"
    r"|factor|ratio|sum|difference|product|quotient|power|percent\w*|fraction|part|value|factorial|complement"
    r"|supplement|carré|racine|opposé|tiers|quart|quadrat|wurzel|kehrwert|gegenzahl|dreifache|drittel|viertel)"
    r"\s+(?:of|between|to|de|von)\s+(?:the\s+value\b|\$?[a-z]\$?(?![\w']|,|\s+and\b))"
    r"|\b\w+\s+(?:of|between|to)\s+(?:the|my|our)\s+(?:(?:final|correct|right)\s+)?(?:answer|result|solution)\b"
    r"|\b(?:answer|result|solution)['’]s\b|^\W*(?:let|try|check|say|consider|plug)\b"
)
_PLAIN_VALUE = re.compile(r"(?<!absolute )\b(?:values?|number)\s+of\b")
# Before an equals sign these open a condition or a trial.
_TRIAL = re.compile(
    r"^\W*(?:let|try|check|say|take|given|for|when|with|at|set|consider|using|plug\w*)\b", re.IGNORECASE
)

_COMMAND, _SMALL_WORD = re.compile(r"\\[A-Za-z]+"), re.compile("[a-z]{2}")
# NO is a segment in \\frac{NO}{BO}, where no word stands beside it.
_POINTS = re.compile(r"(?<![A-Za-z])(?!NOT|NON|IF)[A-Z]{2,4}(?![A-Za-z])")


@lru_cache(maxsize=1024)
def denies(text: str) -> bool:
    """Whether a text holds a word of denial, doubt or change, so that what it names is not asserted."""
    text = _HARMLESS.sub(" ", text.lower())
    return bool(_DENIAL.search(text)) or (not text.isascii() and bool(_EAST_ASIAN_DENIAL.search(text)))


def spoils(words: str) -> bool:
    """Whether words before or behind an answer do more than assert it."""
    words = words.lower()
    if denies(words) or _ALTERNATIVE.search(_HARMLESS.sub(" ", words)):
        return True
    return bool(_CHANGED.search(_PLAIN_VALUE.sub(" ", words)))


def head_denies(text: str) -> bool:
    """Whether the words before the last relation sign of an answer deny it ("never = 5")."""
    head = text[: max(text.rfind("="), text.rfind("<"), text.rfind(">"), 0)]
    if head and not _SMALL_WORD.search(_COMMAND.sub("", head)):
        head = _POINTS.sub(" ", head)
    return bool(head) and (denies(head) or bool(_TRIAL.match(head)))
