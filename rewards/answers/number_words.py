"""Numbers written in words: nine, thirty-six dollars, negative three, three quarters, 十二, 四分之三."""

from __future__ import annotations

import re

_SMALL = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
seventeen eighteen nineteen"""
_UNITS = {word: value for value, word in enumerate(_SMALL.split())}
_TENS = {word: 10 * value for value, word in enumerate(
    ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"], start=2)}  # fmt: skip
_SCALES = {"hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9}
_PARTS = {"half": 2, "halves": 2, "third": 3, "quarter": 4, "fourth": 4, "fifth": 5, "sixth": 6, "seventh": 7,
          "eighth": 8, "ninth": 9, "tenth": 10, "twelfth": 12, "twentieth": 20, "hundredth": 100}  # fmt: skip
_PARTS |= {f"{word}s": size for word, size in _PARTS.items() if word not in ("half", "halves")}
_NUMBER = rf"(?:{'|'.join((*_UNITS, *_TENS, *_SCALES))})(?![a-z])"
_RUN = rf"{_NUMBER}(?:(?:[\s-]+|\s+and\s+){_NUMBER}){{0,12}}"
_PART = rf"(?:{'|'.join(sorted(_PARTS, key=len, reverse=True))})(?![a-z])"
_WORDS = re.compile(
    rf"(?P<sign>(?:negative|minus)\s+)?(?:(?P<whole>{_RUN})(?:(?P<and>\s+and\s+)|[\s-]+(?={_PART})|(?!\s+and\s)))??"
    rf"(?:(?P<top>an?|{_RUN})[\s-]+(?P<part>{_PART}))?(?P<rest>\s+[^\W\d_].*)?",
    re.IGNORECASE,
)
# "one in four" and "two to one" are ratios.
_JOINED = re.compile(rf"\s(?:in|to|of|out|by|over|per|from)\s+(?:{_NUMBER})", re.IGNORECASE)
_POINT = re.compile(rf"(?P<whole>{_RUN})\s+point(?P<digits>(?:\s+{_NUMBER}){{1,9}})(?P<rest>\s+[^\W\d_].*)?", re.I)
_HAN = {char: value for value, char in enumerate("零一二三四五六七八九")} | {"〇": 0, "两": 2, "兩": 2}
_HAN_SCALES = {"十": 10, "百": 100, "千": 1000, "万": 10**4, "萬": 10**4, "亿": 10**8}
_HAN_RUN = "[零〇一二三四五六七八九两兩十百千万萬亿]{1,12}"
# What may stand behind such a numeral; 一次函数, 三角形 and 四边形 are names.
_COUNT = r"(?:个(?!.*(?:之一|中的))[\u3040-\u30ff\u4e00-\u9fff]{0,6}"
_COUNT += "|名|人|种|元|岁|米|厘米|分米|千米|千克|克|天|小时|分钟|只|块|度)"
_HAN_FRACTION = re.compile(rf"(?P<sign>负)?(?P<bottom>{_HAN_RUN})分之(?P<top>{_HAN_RUN})")
_HAN_NUMBER = re.compile(rf"(?P<sign>负)?(?P<number>{_HAN_RUN})(?P<rest>{_COUNT}?)")
_DIGITS = re.compile(r"\d")
_NUMBERS = re.compile(rf"\b{_RUN}(?:[\s-]+{_PART})?\b", re.IGNORECASE)
_HAN_NUMERAL = re.compile(rf"{_HAN_RUN}(?={_COUNT})")
_HAN_COUNTED = re.compile(rf"(?<=[有是为剩下共得要于出了])(?!一个){_HAN_RUN}(?={_COUNT})")
_START = re.compile(r"[a-z]|[负零〇一二三四五六七八九两兩十百千]", re.IGNORECASE)


def in_digits(text: str) -> str:
    """The text with the number that it begins with in digits; as it is if it does not begin with one in words."""
    if len(text) > 120 or not _START.match(text):
        return text
    if not text.isascii() and (han := _from_han(text)):
        return han
    pointed = _POINT.fullmatch(text)
    if pointed:
        whole, digits = _value(pointed["whole"]), [_UNITS.get(w.lower(), 10) for w in pointed["digits"].split()]
        return (
            text if whole is None or max(digits) > 9 else f"{whole}.{''.join(map(str, digits))}{pointed['rest'] or ''}"
        )
    found = None if _JOINED.search(text) else _WORDS.fullmatch(text)
    if not found or not (found["whole"] or found["part"]):
        return text
    return _written(found) or text


def numbers_in_digits(sentence: str) -> str:
    """A sentence without digits with its numbers in digits: "there are twelve of them"; "one" is a pronoun as well."""
    if _DIGITS.search(sentence):
        return sentence
    if not sentence.isascii() and len(_HAN_NUMERAL.findall(sentence)) == 1:
        sentence = _HAN_COUNTED.sub(lambda found: str(_han_value(found[0]) or found[0]), sentence)
    return _NUMBERS.sub(lambda found: found[0] if found[0].lower() == "one" else in_digits(found[0]), sentence)


def _written(found: re.Match[str]) -> str | None:
    """\\frac{3}{4}, 2\\frac{1}{2} or 36, with what stands behind; None if the words make no number."""
    whole = _value(found["whole"]) if found["whole"] else None
    top = 1 if (found["top"] or "").lower() in ("a", "an") else _value(found["top"]) if found["top"] else None
    if (found["whole"] and whole is None) or (found["top"] and top is None):
        return None
    if whole is not None and found["part"] and not found["and"]:
        return None
    if found["and"] and not found["part"]:
        return None
    fraction = f"\\frac{{{top}}}{{{_PARTS[found['part'].lower()]}}}" if found["part"] else ""
    return f"{'-' if found['sign'] else ''}{'' if whole is None else whole}{fraction}{found['rest'] or ''}"


def _value(words: str) -> int | None:
    """The value of cardinal number words, or None where they do not follow each other as in one number."""
    total = group = 0
    last_scale, last = 10**12, ""
    for word in re.split(r"[\s-]+", words.lower()):
        if word == "and":
            if last not in _SCALES:
                return None
        elif word in _TENS or word in _UNITS:
            fits = last in ("", "and") or last in _SCALES or (last in _TENS and 0 < _UNITS.get(word, 0) < 10)
            if not fits:
                return None
            group += _TENS.get(word, 0) + _UNITS.get(word, 0)
        elif word == "hundred":
            if not 0 < group < 100:
                return None
            group *= 100
        else:
            if not group or _SCALES[word] >= last_scale:
                return None
            last_scale = _SCALES[word]
            total, group = total + group * last_scale, 0
        last = word
    return None if last == "and" else total + group


def _from_han(text: str) -> str | None:
    fraction = _HAN_FRACTION.fullmatch(text)
    if fraction:
        top, bottom = _han_value(fraction["top"]), _han_value(fraction["bottom"])
        usable = top is not None and bottom
        return f"{'-' if fraction['sign'] else ''}\\frac{{{top}}}{{{bottom}}}" if usable else None
    number = _HAN_NUMBER.fullmatch(text)
    value = _han_value(number["number"]) if number else None
    return None if number is None or value is None else f"{'-' if number['sign'] else ''}{value}{number['rest']}"


def _han_value(text: str) -> int | None:
    """The value of a Chinese numeral, or None where its characters do not follow each other as in one number."""
    total = group = digit = 0
    last_scale, place, pending = 10**12, 10**4, False
    for index, char in enumerate(text):
        if char in _HAN:
            if pending and digit:
                return None
            digit, pending = _HAN[char], True
            continue
        scale = _HAN_SCALES[char]
        if scale < 10**4:
            if (not pending and not (char == "十" and index == 0)) or scale >= place:
                return None
            group, place = group + (digit if pending else 1) * scale, scale
        else:
            if scale >= last_scale or not (group or digit):
                return None
            total, group, place, last_scale = total + (group + digit) * scale, 0, 10**4, scale
        digit, pending = 0, False
    return total + group + digit
