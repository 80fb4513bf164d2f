"""A list in the place of the answer: texts of which each alone is right, or the parts of one answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.formats.choices import letters_of
from data_prep.formats.dialects import python_list
from data_prep.formats.golds import LIST_OPENINGS, number_as_text, read_gold
from data_prep.schema import KINDS, RowError

ANSWER_LISTS = ("any", "all")
Name = Callable[[Any, str, str], str]
"""(cell, answer in it, field) to the answer as it stands among the choices of its row."""


def as_list(cell: Any) -> list[Any] | None:
    """The items of a list, or of the text of one as JSON or Python writes it (["34"]); None for any other cell.

    A text such as [1, 2] is none: it is an interval or a list that a response has to give.
    """
    if isinstance(cell, list | tuple):
        return list(cell)
    if not isinstance(cell, str) or not cell.lstrip().startswith(LIST_OPENINGS):
        return None
    try:
        return list(python_list(cell, "answer"))
    except RowError:
        return None


@dataclass(frozen=True, slots=True)
class Listed:
    """What a cell with several answers says.

    Attributes:
        gold, others: the answer, and others that are right as well.
        solution: the worked one of the row, or the first of the cell; None if there is none.
        column: {"answer": the cell as it stands}, which functions of users expect; empty for worked solutions.
    """

    gold: str
    others: tuple[str, ...]
    solution: Any
    column: dict[str, Any]


def read_several(
    answer: Any,
    solution: Any,
    meaning: str | None,
    kind: str = "auto",
    choices: Sequence[str] | None = None,
    name: Name | None = None,
) -> Listed | None:
    """What the cell in the place of a row's answer says, where it is a list or the text of one; else None.

    Each item may be a bare answer or hold one, as a column of one answer may (see `read_gold`).

    Args:
        answer, solution: of the row.
        choices: that the question is asked with, if it is.
        name: says what an item is among them (see `choices.among`).
        meaning: "any": each alone is right; "all": a response must give every one; None: "any" if all are the same
            value in other words, so that no part is paid for the whole, and "all" where the letters of several choices
            are listed.
    Raises:
        RowError: the list is empty or holds no texts, or what it means cannot be told.
    """
    cell = solution if answer is None else answer
    items = as_list(cell)
    if items is None:
        return None
    if not items:
        raise RowError("is an empty list", field="answer")
    texts, worked = zip(*(_read_item(item, "answer", name) for item in items), strict=True)
    if isinstance(solution, list | tuple) or not solution:
        solution = worked[0]
    gold, others = _read_together(texts, meaning, kind, choices)
    return Listed(gold, others, solution, {} if worked[0] else {"answer": cell})


def _read_together(
    texts: Sequence[str], meaning: str | None, kind: str, choices: Sequence[str] | None
) -> tuple[str, tuple[str, ...]]:
    """(gold, others that are right as well)."""
    meaning = "any" if len(texts) == 1 else meaning or _told(texts, kind, choices)
    if meaning == "any":
        return texts[0], tuple(texts[1:])
    if meaning == "all" and choices and (letters := letters_of(texts, choices)):
        return letters, ()
    if meaning == "all":
        return ("; " if any("," in text for text in texts) else ", ").join(texts), ()
    shown = ", ".join(repr(text[:40]) for text in texts[:3])
    raise RowError(
        f"lists {len(texts)} answers that are not known to be the same ({shown}{', ...' if len(texts) > 3 else ''}): "
        "say answer_lists=any (a key of data, --answer-lists of prepare and audit) if each alone is right, or all if a "
        "response must give every one",
        field="answer",
    )


def _told(texts: Sequence[str], kind: str, choices: Sequence[str] | None) -> str | None:
    from rewards import same_answer

    kind = kind if kind in KINDS else "auto"  # an unknown one is `make_row`'s to refuse
    # A text twice is no other way to say it: two blanks may have one answer.
    are_same = len({*texts}) == len(texts) and all(
        same_answer(texts[0], text, kind=kind, choices=choices) for text in texts[1:]
    )
    return "any" if are_same else "all" if choices else None


def read_equivalents(cell: Any, name: Name | None = None) -> tuple[str, ...]:
    """The answers in a column of other right ones, which may hold one, several or nothing; `name` as above.

    Raises:
        RowError: an item is no text.
    """
    items = [cell] if (listed := as_list(cell)) is None else listed
    items = [item for item in items if item is not None and not (isinstance(item, str) and not item.strip())]
    return tuple(_read_item(item, "equivalent_answers", name)[0] for item in items)


def _read_item(cell: Any, field: str, name: Name | None) -> tuple[str, str | None]:
    text = number_as_text(cell)
    if not isinstance(text, str) or not text.strip():
        raise RowError(f"is a list that holds {cell!r}, which is no answer", field=field)
    gold, worked = read_gold(text, None)
    return (name(cell, gold, field) if name else gold), worked
