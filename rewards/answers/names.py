"""Names of quantities, as they stand before an equals sign: AB, \\angle ABC, S_{\\triangle ABC}, f(2), \\sin A, (p, q).

A name says which quantity a value belongs to. `read_name` recognises one, `key` brings spellings of the same quantity
to one form (AB is BA, \\angle B may be \\angle ABC), and `is_asked` tells expressions whose value a question asks for
(a + b, AB + BC) from sides of an equation (2x, x^2).
"""

from __future__ import annotations

import re

from rewards.answers.brackets import split_top
from rewards.answers.denials import denies
from rewards.answers.grammar import FUNCTIONS, GREEK

MAX_CHARS = 90
_GREEK = r"\\(?:" + "|".join(sorted(GREEK, key=len, reverse=True)) + r")(?![A-Za-z])"
_INDEX = r"(?:\s*_\s*(?:\{[^{}]{1,30}\}|\w|\\[A-Za-z]+(?:\s*[A-Z]{1,4})?|[△∠]\s*[A-Z]{1,4}))?"
_POINT = r"[A-Z](?:_\s*(?:\{\s*\d{1,2}\s*\}|\d))?'*"
_POINTS = rf"{_POINT}(?:\s?{_POINT}){{1,7}}"
_LETTER = rf"(?:(?:\\Delta\s*)?(?:[A-Za-z]|{_GREEK})){_INDEX}'*"
_ANGLE = (
    rf"(?:m\s*)?(?:\\(?:measuredangle|sphericalangle|angle)|[∠∡])\s*"
    rf"(?:{_POINT}(?:\s?{_POINT}){{0,2}}|\d|[a-z]|{_GREEK})"
)
_ARC = (
    rf"(?:m\s*)?(?:\\overset\s*\{{?\s*\\frown\s*\}}?|\\(?:overparen|wideparen|widehat|frown|overarc)|[⌒弧]|arc\s)\s*"
    rf"(?:\{{\s*{_POINTS}\s*\}}|{_POINTS})|m\s+{_POINTS}"
)
_SHAPE = rf"(?:(?:\\(?:triangle|Delta|odot|square|overline)(?![A-Za-z])|[△▲⊙▱□])\s*{_POINT}(?:\s?{_POINT}){{0,7}})"
_CALL = (
    r"(?:(?:[A-Zfghpqsuv]|\\(?:varphi|phi|psi))(?:_\s*(?:\{[^{}]{1,8}\}|\w))?'*"
    r"(?:\s*\^\s*\{\s*-\s*1\s*\})?\s*\([^()]{1,30}\))"
)
_TIMED = rf"{_LETTER}\s*" + r"\(\s*\\?[A-Za-z]+(?:\s*,\s*\\?[A-Za-z]+)*\s*\)"
_TRIG = r"\\?(?:sin|cos|tan|cot|sec|csc)(?![a-z])\s*(?:\^\s*(?:\{\s*2\s*\}|2)\s*)?"
_ARGUMENT = (
    rf"(?:{_ANGLE}|\d?\s*(?:{_GREEK}|(?![x-z])[A-Za-z]'*)"
    rf"|\(\s*[A-Z]\s*[+-]\s*[A-Z]\s*\)|\\frac\s*\{{?[A-Z]\}}?\s*\{{?2\}}?)"
)
_RATIO_OF_TRIG = rf"{_TRIG}{_ARGUMENT}"
_MEAN = r"(?:\\(?:overline|bar|hat|tilde)(?![A-Za-z])\s*(?:\{\s*[a-z]\s*\}|[a-z])|[a-z]\u0304)"
_SIZE = r"\|\s*(?:[A-Z]{2}|z(?:_\d)?|\d?\s*[a-cemnuv](?:\s*[+-]\s*\d?\s*[a-cemnuv])+)\s*\|"
_SETS = r"(?:\\complement\s*_\s*\{?\s*[A-Z]\s*\}?\s*)?[A-Z](?:\s*\\(?:cap|cup|setminus)\s*[A-Z]){1,3}"
_WORDS = rf"(?!(?:{'|'.join(sorted(FUNCTIONS))})\b)(?:the\s+)?[A-Za-zÀ-ÿ]{{3,}}(?:\s[A-Za-zÀ-ÿ.]+){{0,6}}"
_OF = r"(?:(?:the|area|length|of|angle|arc|segment|perimeter|volume|radius|measure|side|line)\s+)+"
_CJK = r"[\u3040-\u30ff\u4e00-\u9fff]"
_ATOM = rf"{_SETS}|{_ARC}|{_SHAPE}|{_ANGLE}|{_RATIO_OF_TRIG}|{_CALL}|{_TIMED}|{_SIZE}|{_MEAN}|{_POINTS}|{_LETTER}"
_ONE = re.compile(_ATOM)
_DESCRIBED = re.compile(
    rf"(?:(?:{_OF}|{_CJK}{{1,8}}\s*)?(?:{_ATOM})(?:\s*的?{_CJK}{{1,6}})?|{_WORDS}(?:{_INDEX})?|{_CJK}{{1,10}})"
)
_TERM = re.compile(
    rf"\s*(?:(?P<atom>{_RATIO_OF_TRIG}|{_SHAPE}|{_ANGLE}|{_CALL}|{_SIZE}|{_POINTS}|{_LETTER})"
    rf"|(?P<exponent>\^\s*(?:\{{\s*\d\s*\}}|\d))|(?P<number>\d+)|(?P<glue>\\frac(?![A-Za-z])|[-+*/(){{}}]))"
)
_PROSE = re.compile(r"(?<![\\A-Za-z])(?!sin|cos|tan|cot|sec|csc)[A-Za-z]?[a-z]{3,}|\b(?:is|of|or|no|if|be|to)\b")
_COLON, _COMMA, _SLASH = re.compile(":"), re.compile(","), re.compile("/")
_FRACTION = re.compile(r"\\frac\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}\s*\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
# Words for one size each: a diameter is no radius.
_SIZE_WORDS = """radius 半径; diameter 直径; length 长 长度; width 宽 宽度; height altitude 高 高度; area 面积;
perimeter 周长; circumference; volume 体积; max maximum 最大值; min minimum 最小值; mean average 平均数;
median 中位数; mode 众数; range; variance 方差; slope 斜率; intercept 截距;
depth 深 深度; speed 速度; time 时间; distance 距离"""
_SIZES = {word: place for place, words in enumerate(_SIZE_WORDS.split(";")) for word in words.split()}
_UNORDERED = frozenset("xztλ") | {"\\lambda"}
_FAMILIES = ("xyz", "abc", "pqr", "mn", "uvw", "rst", "abcd")
COORDINATES = frozenset("xyz")


def is_name(text: str) -> bool:
    """Whether a text names one quantity; never one that its words deny."""
    if len(text) > MAX_CHARS:
        return False
    return bool(_ONE.fullmatch(text) or (_DESCRIBED.fullmatch(text) and not denies(text)))


def tuple_names(text: str) -> tuple[str, ...]:
    """The names of (p, q), or none if the text is no tuple of names."""
    if not (text.startswith("(") and text.endswith(")")):
        return ()
    pieces, _ = split_top(text[1:-1], _COMMA)
    return tuple(pieces) if len(pieces) > 1 and all(map(is_name, pieces)) else ()


def ratio_names(text: str) -> tuple[str, ...]:
    """The names of a:b:c, a/b or \\frac{a}{b}, or none."""
    fraction = _FRACTION.fullmatch(text) if text.startswith("\\frac") else None
    pieces = [part.strip() for part in fraction.groups()] if fraction else split_top(text, _COLON)[0]
    if len(pieces) == 1:
        pieces, _ = split_top(text, _SLASH)
    names = len(pieces) > 1 and (len(pieces) == 2 or ":" in text)
    return tuple(pieces) if names and all(map(is_name, pieces)) else ()


def is_asked(text: str) -> bool:
    """Whether an expression holds two names or more, so that its value answers a question.

    2x is not one, nor are 2x + 3y and x^2 + y^2: with factors or powers, coordinates make the equation of a curve.
    """
    if _PROSE.search(text):
        return False
    atoms, has_factor, position = set(), False, 0
    while position < len(text) <= MAX_CHARS:
        term = _TERM.match(text, position)
        if not term:
            return False
        if term["atom"]:
            atoms.add(term["atom"].strip())
        has_factor |= bool(term["number"] or term["exponent"])
        position = term.end()
    return len(atoms) > 1 and not (has_factor and atoms <= COORDINATES)


def key(name: str) -> str:
    """One spelling for one quantity: no spaces, points of a segment or polygon in alphabetical order."""
    compact = re.sub(r"\s+|[{}]", "", name)
    points = re.search(r"(?:[A-Z]'*){2,8}$", compact)
    if not points or "(" in compact or "_" in compact:
        return compact
    front = compact[: points.start()].replace("\\", "")
    letters = re.findall("[A-Z]'*", points.group())
    if front in ("angle", "mangle", "measuredangle", "∠", "m∠", "∡") and len(letters) == 3:
        return "∠" + letters[1] + "".join(sorted(letters))
    return front + "".join(sorted(letters))


def may_agree(gold: str, answer: str) -> bool:
    """Whether a value under one name may be meant by the other.

    AB and CD are two quantities, and so are \\angle A and \\angle B, a_3 and a_5, \\sin A and \\cos A; the area and
    S may be one.
    """
    if key(gold) == key(answer):
        return True
    kinds = _kind(gold), _kind(answer)
    sizes = _SIZES.get(_last_word(gold)), _SIZES.get(_last_word(answer))
    if None not in sizes and sizes[0] != sizes[1]:
        return False
    if kinds == ("angle", "angle"):
        return _vertex(gold) == _vertex(answer) and min(map(_num_points, (gold, answer))) < 3
    return "" in kinds


def _kind(name: str) -> str:
    """What a name is by its form: "points", "angle", "function", "indexed" or "" for what may be called otherwise."""
    name = name.strip()
    if re.fullmatch(_ANGLE, name):
        return "angle" if re.search("[A-Z]", name) else ""
    if re.fullmatch(_POINTS, name):
        return "points"
    if re.fullmatch(_RATIO_OF_TRIG, name) or re.fullmatch(_CALL, name) or re.match(rf"\|.*[+-]|{_SETS}", name):
        return "function"
    return "indexed" if re.fullmatch(r"[A-Za-z]\s*_\s*\{?\s*(?:\d+|[a-z])\s*\}?", name) else ""


def _last_word(name: str) -> str:
    """The last word of a name in small letters, or its Chinese words."""
    found = re.search(r"[A-Za-z]+$|[\u4e00-\u9fff]+$", name.strip())
    return found[0].casefold() if found else ""


def _num_points(angle: str) -> int:
    return len(re.findall(r"[A-Z]'*", angle))


def _vertex(angle: str) -> str:
    points = re.findall(r"[A-Z]'*", angle)
    return points[len(points) // 2] if len(points) in (1, 3) else angle


def are_roots(names: tuple[str, ...]) -> bool:
    """Whether names are one unknown with different indices, whose values come in any order."""
    bases = {name.partition("_")[0].strip() for name in names}
    return len(bases) == 1 and bases <= _UNORDERED


def tuple_order(names: tuple[str, ...]) -> list[int]:
    """Places of names in the order in which a bare tuple lists their values: (x, y, z), else as they are written."""
    family = any(set(names) <= set(family) for family in _FAMILIES)
    return sorted(range(len(names)), key=lambda place: names[place] if family else "")
