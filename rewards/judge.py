"""From an item to its verdict, or to the comparison that only a worker can make: golds are read and answers judged."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from rewards.answers.choice import NO_CHOICE, Choices, decide_choice, read_choices, says_choice
from rewards.answers.commas import with_decimal_points
from rewards.answers.equality import Undecided, is_defined
from rewards.answers.golds import gold_readings, ordered_parts
from rewards.answers.math import Comparison, read, suits_the_engine, worth_a_worker
from rewards.answers.notation import clean
from rewards.answers.number import Quantity
from rewards.answers.number_words import in_digits
from rewards.answers.spoken import last_sentence, spoken_value, worked_out
from rewards.answers.structures import Chain, Named, Relation, Value
from rewards.answers.text import normal_text, same_text
from rewards.answers.units import parse_unit
from rewards.answers.wording import look_through
from rewards.response.response import extract, holds_box
from rewards.types import KINDS, Item, Sample, Score, Verdict
from rewards.workers import limits
from rewards.workers.limits import TooLarge

_INTEGER = re.compile(r"[+-]?\d{1,15}", re.ASCII)
_CACHED_CHARS = 200
# Reasons after which the sentence around an answer may still say it.
_NO_VALUE = "the answer is not one value in mathematical notation"
_UNREAD = {_NO_VALUE, NO_CHOICE}
_LETTER_GOLD = re.compile(r"^\(?[A-H]\)?\.?$")


@dataclass(frozen=True, slots=True, eq=False)
class Gold:
    """A gold that was read once: its route and what that route compares with.

    Attributes:
        comma: what it says if its commas are decimal ones.
        in_parts: it lists values in a fixed order, and an answer may write them as it does.
        others: are right too.
    """

    text: str
    kind: str
    value: Value | Chain | None = None
    comma: Value | Chain | None = None
    choices: Choices | None = None
    comparison: Comparison | None = None
    in_parts: bool = False
    others: tuple[Gold, ...] = ()


@dataclass(frozen=True, slots=True)
class Pending:
    """A comparison that only a worker can make.

    Attributes:
        gold, answer: as math-verify reads them.
        time_share: of the usual time limit.
        gold_is_read: our own grammar reads the gold, or another one that is accepted.
        then: the next gold to compare with, where this one differs.
    """

    gold: str
    answer: str
    time_share: float
    gold_is_read: bool = False
    then: Pending | None = None


@lru_cache(maxsize=8192)
def read_gold(
    gold: str, kind: str, choices: tuple[str, ...] | None, precision: int | None, unit: str | None
) -> Gold | str:
    """The gold in the form its kind compares, or why it cannot be verified against.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; use one of {', '.join(KINDS)}")
    try:
        limits.check_size(gold)
        text = clean(_unboxed(gold))
        if not text:
            return "the gold is empty"
        if kind == "choice" or (kind == "auto" and (choices or _LETTER_GOLD.match(text))):
            read_in = read_choices(text, choices)
            return read_in if isinstance(read_in, str) else Gold(text, "choice", choices=read_in)
        if kind == "text":
            return Gold(text, "text") if normal_text(text) else "the gold is empty"
        comparison = Comparison(precision, parse_unit(clean(unit)) if unit else None)
        return _read_math_readings(_unboxed(gold), kind, comparison)
    except (TooLarge, RecursionError) as error:
        return f"the gold is too large: {error}"


def _read_math_readings(gold: str, kind: str, comparison: Comparison) -> Gold | str:
    """Each of the readings of a gold; the first one decides how it is compared."""
    texts = gold_readings(gold)
    first, *others = (_read_math_gold(clean(text), kind, comparison) for text in texts)
    if isinstance(first, str):
        return first
    in_parts = texts[-1] != gold and texts[-1] == ordered_parts(gold)
    return replace(first, in_parts=in_parts, others=tuple(other for other in others if isinstance(other, Gold)))


def _read_math_gold(text: str, kind: str, comparison: Comparison) -> Gold | str:
    value = read(text)
    if kind == "number" and not isinstance(_said(value), Quantity):
        return f"the gold {text[:60]!r} is not a number"
    if value is not None:
        return Gold(text, "math", value, _read_commas(text), comparison=comparison)
    if worth_a_worker(text):
        return Gold(text, "symbolic", comparison=comparison)
    return Gold(text, "text") if kind == "auto" else f"the gold {text[:60]!r} is not mathematics we can read"


def _said(value: Value | Chain | None) -> Value | None:
    """The value of a chain, of a name or of a sum that was asked for."""
    while isinstance(value, Chain | Named | Relation):
        value = value.value
    return value


def _read_commas(text: str) -> Value | Chain | None:
    """A text with decimal commas as a value, or None if it has none."""
    pointed = with_decimal_points(text)
    return None if pointed is None else read(pointed)


def _read_words(text: str) -> Value | Chain | None:
    """An answer that is a number in words ("thirty-six dollars") as a value; golds in words stay texts."""
    said = look_through(text)
    digits = in_digits(said)
    return None if digits == said else read(digits)


def _unboxed(gold: str) -> str:
    """A gold may come as a whole response: cut its answer out by the same rules."""
    return extract(gold, "auto").answer or "" if holds_box(gold) or "<answer>" in gold else gold


def _judge(gold: Gold, answer: str) -> Score | Pending:
    """Decide one extracted answer in-process, or say what a worker has to compare."""
    try:
        limits.check_size(answer)
        if gold.kind == "choice" and gold.choices is not None:
            right, reason = decide_choice(gold.choices, answer)
            return score_of(right, answer, reason)
        if gold.in_parts:
            answer = ordered_parts(answer) or answer
        for other in gold.others:
            if (outcome := _judge(other, answer)) and isinstance(outcome, Score) and outcome.correct:
                return outcome
        if gold.kind == "text":
            right = same_text(gold.text, answer)
            return score_of(right, answer, "the texts are equal" if right else "the texts differ")
        return _judge_math(gold, answer)
    except TooLarge as error:
        return Score(Verdict.too_large, False, answer[:200], str(error))
    except RecursionError:
        return Score(Verdict.too_large, False, answer[:200], "the answer is nested too deep")


_judge_cached = lru_cache(maxsize=16384)(_judge)


def _judge_math(gold: Gold, answer: str) -> Score | Pending:
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold.text):
        right = int(answer) == int(gold.text)
        return score_of(right, answer, "equal integers" if right else "different integers")
    text = clean(answer)
    if text == gold.text:
        return score_of(True, answer, "identical to the gold")
    if "=" in answer and isinstance(_said(gold.value), Quantity):
        text = clean(worked_out(answer) or text)
    value = read(text) or _read_commas(text) or _read_words(text)
    if value is None and not worth_a_worker(text):
        text, value = _spoken(answer, text)
    if gold.value is not None and value is not None and gold.comparison is not None:
        try:
            right = gold.comparison.same(gold.value, value) or _same_with_commas(gold, text, value)
            return score_of(right, answer, "equal to the gold" if right else "differs from the gold")
        except Undecided:
            pass
    if not worth_a_worker(text, plain=value is not None) or not suits_the_engine(gold.value):
        return score_of(False, answer, _NO_VALUE)
    if isinstance(value, Quantity) and not is_defined(value.node):
        return score_of(False, answer, "the answer has no value")
    share = limits.worker_time_share(text)
    return Pending(f"${gold.text}$", f"${text}$", share, gold.value is not None)


def _spoken(answer: str, text: str) -> tuple[str, Value | Chain | None]:
    """What a sentence ends on, as text and value; the text as it is where it ends on none."""
    for said in map(clean, spoken_value(answer)):
        value = read(said) or _read_commas(said)
        if value is not None:
            return said, value
    return text, None


def _same_with_commas(gold: Gold, answer: str, value: Value | Chain) -> bool:
    """Whether they agree once the commas of one side, which separate at first, are decimal ones."""
    pointed = _read_commas(answer)
    if gold.comparison is None or (gold.comma is None) == (pointed is None):
        return False
    return gold.comparison.same(gold.comma or gold.value, pointed or value)


def score_of(right: bool, answer: str, reason: str) -> Score:
    """A verdict on an answer that was read."""
    return Score(Verdict.correct if right else Verdict.wrong, right, answer, reason)


def judge_item(item: Item | Sample) -> Score | Pending:
    """Everything of a verification that needs no worker.

    Raises:
        ValueError: unknown template or kind.
    """
    choices = item.choices
    if choices is not None and type(choices) is not tuple:
        choices = tuple(str(choice) for choice in choices)
    texts = (item.gold,) if isinstance(item.gold, str) else item.gold
    read_in = [read_gold(text, item.kind, choices or None, item.precision, item.unit) for text in texts]
    golds = [gold for gold in read_in if isinstance(gold, Gold)]
    if not golds:
        return Score(Verdict.bad_gold, False, None, str(read_in[0]) if read_in else "there is no gold")
    extraction = extract(item.response, item.template)
    answer = extraction.answer
    if answer is None:
        return Score(extraction.verdict or Verdict.no_answer, False, None, extraction.reason)
    if len(answer) > limits.MAX_ANSWER_CHARS:
        return Score(Verdict.too_large, False, answer[:200], f"the answer has {len(answer)} characters")
    # Only short answers come again, and long ones would fill the memory.
    judge = _judge_cached if len(answer) <= _CACHED_CHARS else _judge
    outcome = _best([judge(gold, answer) for gold in golds])
    is_unread = isinstance(outcome, Score) and outcome.reason in _UNREAD
    sentence = last_sentence(extraction.text) if is_unread else ""
    if sentence and sentence != answer and any(_says(gold, sentence) for gold in golds):
        return score_of(True, answer, "the sentence says the gold")
    return outcome


def _says(gold: Gold, sentence: str) -> bool:
    """Whether the whole sentence of a plain response says the gold, where the part that declares it was not read."""
    try:
        if gold.kind == "choice" and gold.choices is not None:
            return says_choice(gold.choices, sentence)
        _, value = _spoken(sentence, "")
        both = gold.value is not None and value is not None and gold.comparison is not None
        return both and gold.comparison.same(gold.value, value)
    except (Undecided, TooLarge, RecursionError):
        return False


def _best(outcomes: Sequence[Score | Pending]) -> Score | Pending:
    """Of one answer and several golds: right if it equals any, else what a worker has yet to compare, else wrong."""
    scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
    if decided := next((score for score in scores if score.correct), None):
        return decided
    pending: Pending | None = None
    for outcome in reversed(outcomes):
        if isinstance(outcome, Pending):
            pending = replace(outcome, gold_is_read=outcome.gold_is_read or bool(scores), then=pending)
    return pending or scores[0]
