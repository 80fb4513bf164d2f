"""How a gold is compared with answers: as a choice, by its value, or, where no reader reads it, letter by letter."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Literal

from rewards.judge import Gold, judge_item, read_gold
from rewards.types import Golds, Item
from rewards.verify import gold_is_parsed

Route = Literal["choice", "value", "text"]


def how_compared(
    gold: Golds,
    *,
    kind: str = "auto",
    choices: Sequence[str] | None = None,
    precision: int | None = None,
    unit: str | None = None,
) -> Route | None:
    """What decides whether an answer equals the gold; None where the gold cannot be verified against at all.

    "value": our grammar reads it, or else math-verify does, in a worker. "text": neither, so that only an answer of the
    same letters (but for case and spaces) is right; so are names, and so is all that a reader cannot make out. Of
    several golds the best one counts: an answer may equal any.

    Raises:
        ValueError: unknown kind.
        VerifierError: worker processes cannot be started.
    """
    texts = (gold,) if isinstance(gold, str) else gold
    frozen = tuple(str(choice) for choice in choices) if choices else None
    found = [_how_compared(text, kind, frozen, precision, unit) for text in texts]
    return next((route for route in ("choice", "value", "text") if route in found), None)


@lru_cache(maxsize=8192)
def _how_compared(
    text: str, kind: str, choices: tuple[str, ...] | None, precision: int | None, unit: str | None
) -> Route | None:
    gold = read_gold(text, kind, choices, precision, unit)
    if not isinstance(gold, Gold):
        return None
    if gold.kind == "choice":
        return "choice"
    if gold.kind == "symbolic":
        return "value" if gold_is_parsed(gold) else "text"
    return "value" if gold.kind == "math" else "text"


def same_answer(one: str, other: str, *, kind: str = "auto", choices: Sequence[str] | None = None) -> bool:
    """Whether either text is right where the other is the gold, as far as that can be told without a worker."""
    frozen = tuple(str(choice) for choice in choices) if choices else None
    pairs = ((one, other), (other, one))
    scores = [judge_item(Item(f"<answer>{a}</answer>", gold, "auto", kind, frozen)) for a, gold in pairs]
    return any(getattr(score, "correct", False) for score in scores)
