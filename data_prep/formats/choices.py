"""What the answers of a row with choices name: letters, as the verifier reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from data_prep.formats.golds import whole
from data_prep.schema import RowError

_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def among(choices: Sequence[Any], cell: Any, answer: Any, field: str = "answer") -> Any:
    """An answer of a row with choices: as it is where it names some of them, a letter for an index from 0.

    Args:
        cell: the answer as its column has it; only a number is an index.
    Raises:
        RowError: it names none, so the row could be asked neither with its choices nor without.
    """
    if not isinstance(answer, str) or not _are_texts(choices):
        return answer  # for `make_row` to refuse
    named, index = _named(answer, choices), whole(cell)
    is_index = type(index) is int and 0 <= index < min(len(choices), len(_LETTERS))
    if named is not None:
        if is_index and named != {index}:
            raise RowError(f"{answer} is the text of one choice and the index of another: give a letter", field=field)
        return answer
    if is_index:
        return _LETTERS[index]
    raise RowError(
        f"{answer[:60]!r} names none of the {len(choices)} choices: give a letter, the text of a choice or its index "
        "from 0; or a kind (auto, number, math or text) to have the question asked without its choices",
        field=field,
    )


def letters_of(answers: Iterable[str], choices: Sequence[Any]) -> str | None:
    """The letters of all choices that some answers name, as one answer; None where one of them names none."""
    if not _are_texts(choices):
        return None
    named = [_named(answer, choices) for answer in answers]
    places = sorted(set().union(*(each for each in named if each is not None)))
    if None in named or not places or places[-1] >= len(_LETTERS):
        return None
    return ", ".join(_LETTERS[place] for place in places)


def in_other_words(answer: str, choices: Sequence[Any], shown: Sequence[Any]) -> str:
    """An answer to `choices` as an answer to the same choices in the words in which they are shown."""
    if not _are_texts(choices) or _named(answer, choices) == _named(answer, shown):
        return answer
    return letters_of([answer], choices) or answer


def _are_texts(choices: Sequence[Any]) -> bool:
    return all(isinstance(choice, str) and choice.strip() for choice in choices)


def _named(answer: str, choices: Sequence[str]) -> frozenset[int] | None:
    """The places of the choices that an answer names; None for none."""
    from rewards.answers import read_choices

    named = read_choices(answer, tuple(choices))
    return None if isinstance(named, str) else named.right
