"""Multiple choice: a letter, a choice's text or its value must name exactly one choice."""

from __future__ import annotations

import re
from dataclasses import dataclass

from rewards.answers.denials import denies
from rewards.answers.equality import Undecided
from rewards.answers.math import Comparison, read
from rewards.answers.notation import clean
from rewards.answers.spoken import cued_letter, named_once
from rewards.answers.structures import Chain, Value
from rewards.answers.text import normal_text
from rewards.answers.wording import look_through, without_reason
from rewards.workers.limits import TooLarge

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LABEL = re.compile(r"^\s*(?:\(([A-Z])\)|([A-Z])\s*[.:)])\s*(?=\S)")
_LETTER = re.compile(r"^[\[(]?\s*([A-Za-z])\s*[\])]?\s*[.:]?$")
_LETTER_THEN_TEXT = re.compile(
    r"^(?:[\[(]\s*([A-Za-z])\s*[\])]\s*[.:,-]?|([A-Z])\s*[.:)=]|([A-Z])\s+-\s)\s*(\S.*)$", re.DOTALL
)
# Marks that label only if the text behind them is that choice's: "c) 60°", "C, 60°".
_LOOSE_LABEL = re.compile(r"^(?:([a-z])\s*[.:)]|([A-Z])\s*,)\s*(\S.*)$", re.DOTALL)
_LETTER_AND_BRACKET = re.compile(r"^([A-Z])\s*\((.{2,})\)$", re.DOTALL)
_YES_NO = re.compile(r"^(yes|no)\s*,", re.IGNORECASE)
# The word alone, or before a sign: "no idea" and "no doubt" are no answers.
_SAYS_YES_NO = re.compile(
    r"^(?:(?P<yes>yes|yeah|yep|ja|oui|sí|sim|да|是的?|对的?|はい|네)|(?:no|nope|nein|non|não|нет|不是|不对|否|いいえ|아니))"
    r"\s*(?=$|[,.!;:，。！；：(（—])",
    re.IGNORECASE,
)
_DISAGREE = "letter and text disagree"
NO_CHOICE = "it names no single choice"
# Beside a letter whose text is not known: another label, or a word that rejects it.
_UNFIT = re.compile(r"(?<![A-Za-z])[B-H]\s*[=).:、]|reject|错|误|不|否", re.IGNORECASE)
_LISTED = re.compile(r"(?:^|[\s(（])([A-Z])[.)）:、]")
_OTHER_HALF = re.compile(
    r"\b(?:but|however|or|wait|actually|yes|no|ja|nein|oui|non|maybe)\b|但|不过|或|等等|不是|否|(?<!不)是的",
    re.IGNORECASE,
)
_TEXT_THEN_LETTER = re.compile(
    r"^(.*\S)\s*(?:\(\s*(?:option\s+|choice\s+)?(?P<letter>[A-Z])\s*\)|,\s*(?:option|choice)\s+(?P<last>[A-Z]))$",
    re.DOTALL,
)
_SECOND_LETTER = re.compile(r"\b(?:or|and)\s+\(?[A-Z]\)?\b")
_SEVERAL = re.compile(r"^\(?([A-Z])\)?(?:(?:\s*(?:,|and|&|和|与|及|et|und)\s*|\s?)\(?([A-Z])\)?)+$")


@dataclass(frozen=True, slots=True, eq=False)
class Choices:
    """The choices of one question, read once; `right` is the set of right indices."""

    texts: tuple[str, ...]
    values: tuple[Value | Chain | None, ...]
    right: frozenset[int]


def read_choices(gold: str, choices: tuple[str, ...] | None) -> Choices | str:
    """The choices and which of them the gold names, or why the gold names none."""
    texts = _strip_labels(choices) if choices else ()
    normal = tuple(normal_text(text) for text in texts)
    values = tuple(_value(text) for text in texts)
    wanted = clean(gold)
    several = _SEVERAL.match(wanted)
    if normal_text(gold) in normal and normal_text(gold):
        right = {index for index, text in enumerate(normal) if text == normal_text(gold)}
    elif several:
        right = {LETTERS.index(letter) for letter in re.findall("[A-Z]", wanted)}
    else:
        named = _named_choice(wanted, Choices(normal, values, frozenset()))
        if isinstance(named, str):
            return f"the gold {gold[:60]!r} names no choice: {named}"
        right = {named}
    if texts and max(right) >= len(texts):
        return f"the gold {gold[:60]!r} is beyond the {len(texts)} choices"
    return Choices(normal, values, frozenset(right))


def decide_choice(choices: Choices, answer: str) -> tuple[bool, str]:
    """(right, why) of one extracted answer."""
    text = clean(answer)
    letters = look_through(without_reason(text))
    if _SEVERAL.match(letters) and normal_text(text) not in choices.texts:
        named = {LETTERS.index(letter) for letter in re.findall("[A-Z]", letters)}
        if len(choices.right) > 1 and named == choices.right:
            return True, "all right letters are named"
        if len(named) > 1 or not letters.startswith("("):
            return False, "several choices are named"
    index = _named_choice(text, choices)
    if isinstance(index, str):
        said = None if index == _DISAGREE else _said_choice(answer, choices)
        if said is None:
            return False, index
        index = said
    if len(choices.right) > 1 and len({choices.texts[i] for i in choices.right if i < len(choices.texts)}) != 1:
        return False, "only one of several right choices is named"
    right = index in choices.right
    return right, f"choice {LETTERS[index]} is {'right' if right else 'wrong'}"


def _named_choice(text: str, choices: Choices) -> int | str:
    """Index of the one choice a cleaned text names, or why there is none."""
    index = _by_text(text, choices)
    if index is not None:
        return index
    bare = look_through(without_reason(text)).strip().strip("*").strip()
    letter = _LETTER.match(bare)
    if letter:
        return _index(letter.group(1), choices)
    loose = _LOOSE_LABEL.match(bare) if choices.texts else None
    labelled = _LETTER_THEN_TEXT.match(bare) or _LETTER_AND_BRACKET.match(bare) or loose
    if labelled:
        letter_found, beside = [group for group in labelled.groups() if group]
        return _agreeing(_index(letter_found, choices), beside, choices)
    trailing = _TEXT_THEN_LETTER.match(bare)
    if trailing:
        return _agreeing(_index(trailing["letter"] or trailing["last"], choices), trailing[1], choices)
    yes_no = _YES_NO.match(bare)
    if yes_no and set(choices.texts) == {"yes", "no"}:
        return choices.texts.index(yes_no.group(1).lower())
    index = _by_text(bare, choices) if bare != text else None
    return NO_CHOICE if index is None else index


def says_choice(choices: Choices, sentence: str) -> bool:
    """Whether a sentence names the right choice, where there is one."""
    return len(choices.right) == 1 and _said_choice(sentence, choices) in choices.right


def _said_choice(answer: str, choices: Choices) -> int | None:
    """Index of the one choice that a sentence names: by yes or no at its beginning, by a letter, or by its words."""
    yes_no = _SAYS_YES_NO.match(clean(answer).strip(" *.\"'"))
    if yes_no and set(choices.texts) == {"yes", "no"}:
        rest = clean(answer)[yes_no.end() :]
        return (
            None if _OTHER_HALF.search(rest) or denies(rest) else choices.texts.index("yes" if yes_no["yes"] else "no")
        )
    if len(set(_LISTED.findall(answer))) > 1:
        # A copy of the choices.
        return None
    letter = cued_letter(answer)
    by_letter = None if letter is None else _index(letter, choices)
    by_words = named_once(normal_text(answer), choices.texts)
    if by_letter is None or by_words is None:
        found = by_words if by_letter is None else by_letter
        return found if isinstance(found, int) else None
    return by_words if by_letter == by_words else None


def _index(letter: str, choices: Choices) -> int | str:
    index = LETTERS.index(letter.upper())
    count = len(choices.texts) or 8
    return index if index < count else f"the letter {letter} is beyond the choices"


def _agreeing(index: int | str, text: str, choices: Choices) -> int | str:
    """The letter's index if the text beside it is that choice (or cannot be checked)."""
    if isinstance(index, str):
        return index
    if not choices.texts:
        is_other = _LABEL.match(text) or _SECOND_LETTER.search(text) or _UNFIT.search(text) or denies(text)
        return "two letters" if is_other else index
    if _same_choice(text, index, choices) and _by_text(text, choices) in (index, None):
        return index
    if named_once(normal_text(text), choices.texts, is_asserted=True) == index:
        return index
    return _DISAGREE


def _by_text(text: str, choices: Choices) -> int | None:
    """Index of the one choice equal to the text as a whole, by normal text first, then by value.

    Choices that are printed twice count as one only where the gold names them all.
    """
    wanted = normal_text(text)
    same = [index for index, choice in enumerate(choices.texts) if choice and choice == wanted]
    if same:
        return same[0] if len(same) == 1 or choices.right.issuperset(same) else None
    if not choices.texts:
        return None
    value = _value(text)
    same = [index for index, choice in enumerate(choices.values) if _same_value(choice, value)]
    return same[0] if same and (len(same) == 1 or choices.right.issuperset(same)) else None


def _same_choice(text: str, index: int, choices: Choices) -> bool:
    return normal_text(text) == choices.texts[index] or _same_value(choices.values[index], _value(text))


def _value(text: str) -> Value | Chain | None:
    cleaned = clean(text)
    # A lone letter is a name here, never a variable.
    return None if len(cleaned) == 1 and cleaned.isalpha() else read(cleaned)


def _same_value(choice: Value | Chain | None, value: Value | Chain | None) -> bool:
    if choice is None or value is None:
        return False
    try:
        return Comparison().same(choice, value)
    except (Undecided, TooLarge):
        return False


def _strip_labels(choices: tuple[str, ...]) -> tuple[str, ...]:
    """Take off "A. ", "(B) " ... where every choice carries its own letter."""
    labels = [_LABEL.match(choice) for choice in choices]
    if all(m and (m.group(1) or m.group(2)) == LETTERS[i % 26] for i, m in enumerate(labels)):
        return tuple(choice[m.end() :] for choice, m in zip(choices, labels, strict=True) if m)
    return tuple(choices)
