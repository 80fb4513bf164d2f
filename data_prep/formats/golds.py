"""The gold answer out of what data sets write in its place: tags, a box, GSM8K's ####, a number, the bare text."""

import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from data_prep.formats.coarse import sure_digits
from data_prep.schema import RowError

# Other names of the answer; then lists of answers, or of worked solutions that each hold one.
ANSWERS, LISTS = ("ground_truth", "Answer", "gt", "target"), ("answers", "solutions")
LIST_OPENINGS = ("['", '["')
_MAX_INTEGRAL = 10**15  # above it a float no longer holds every whole number
_FINAL_LINE = re.compile(r"(?:^|\n)#### *([^\n]*)\Z")
_MARKS = ("<answer>", "</answer>", "\\boxed", "\\fbox", "<|begin_of_box|>")
_JOINT = re.compile(r"\b(?:and|or)\b|\W")
_CALCULATOR = re.compile(r"<<[^<>\n]*>>")


def first_of(record: Mapping[str, Any], name: str, *aliases: str) -> Any:
    """The value under `name`, else under the only alias present.

    Raises:
        RowError: two aliases differ.
    """
    if record.get(name) is not None:
        return record[name]
    values = [record[alias] for alias in aliases if record.get(alias) is not None]
    if any(value != values[0] for value in values):
        raise RowError(f"is missing, and {' and '.join(aliases)} both stand for it but differ", field=name)
    return values[0] if values else None


def gold_cells(record: Mapping[str, Any]) -> tuple[Any, Any]:
    """(answer, solution) as a record's columns hold them, whatever their names; each None if there is none.

    A list of answers stands for the answer; one of solutions only where there is no solution either.
    """
    answer, solution = first_of(record, "answer", *ANSWERS), first_of(record, "solution", "Solution") or None
    answers, solutions = map(record.get, LISTS)
    if answer is None and answers and _is_list(answers):
        answer = answers
    if answer is None and solution is None:
        answer = next((cell for cell in (solutions, answers) if _is_list(cell)), None)
    return answer, solution


def _is_list(cell: Any) -> bool:
    return isinstance(cell, list | tuple) or (isinstance(cell, str) and cell.lstrip().startswith(LIST_OPENINGS))


def read_gold(answer: Any, solution: Any, *, bare: bool = False, where: str = "'solution'") -> tuple[Any, Any]:
    """(gold, worked solution or None) of a row's answer and solution columns.

    An answer is taken as it is, out of its `<answer>` element or boxes, or after GSM8K's `####`. Without an answer the
    solution must hold one in tags or boxes. A solution that is nothing but the wrapped gold is no worked one. What is
    not text is handed on for `make_row` to refuse.

    Args:
        bare: a one-line solution without tags and boxes is the gold itself, as TRL, VLM-R1 and ms-swift have it.
        where: what the solution is called in messages.
    Raises:
        RowError: field "answer": there is none, or several.
    """
    solution = solution or None
    if isinstance(answer := number_as_text(answer), str):
        return _of_answer(answer, solution)
    if answer is not None or not isinstance(solution := number_as_text(solution), str):
        return answer, solution
    return _of_solution(solution.strip(), bare, where)


def number_as_text(value: Any) -> Any:
    """A number as its text, anything else as it is: 27 for 27.0, True or False, None where it is not finite.

    numpy's and decimal's numbers are numbers; those of few bits get the digits that they are sure to hold.
    """
    if type(value).__module__ == "numpy" and getattr(value, "shape", None) == ():
        name = value.dtype.name
        value = sure_digits(value, name) if name in ("float16", "float32") else value.item()
    if isinstance(value, Decimal):
        return f"{value.normalize():f}" if value.is_finite() else None
    if isinstance(value, bool):
        return str(value)
    if not isinstance(value, int | float):
        return value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _MAX_INTEGRAL
    return str(int(value) if is_whole else value)


def whole(value: Any) -> Any:
    """An integer that came as a float (2.0 for 2, as in tables with gaps) as the integer; anything else as it is."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _of_answer(answer: str, solution: Any) -> tuple[str, Any]:
    if isinstance(solution, str) and _is_wrapped(solution.strip()):
        solution = None
    if final := _FINAL_LINE.search(answer.rstrip()):
        worked = _CALCULATOR.sub("", answer[: final.start()]).strip()
        return final[1].strip(), solution or worked or None
    if any(mark in answer for mark in _MARKS):
        gold, worked = _of_solution(answer.strip())
        return gold, solution or worked
    return answer, solution


def _of_solution(solution: str, bare: bool = False, where: str = "it") -> tuple[str, str | None]:
    from rewards.response import extract

    if not any(mark in solution for mark in _MARKS):
        if _FINAL_LINE.search(solution):
            return _of_answer(solution, None)
        if bare and "\n" not in solution:
            return solution, None
        raise RowError(f"is missing, and {where} holds neither <answer>...</answer> nor a box", field="answer")
    found = extract(solution)
    if found.answer is None:
        raise RowError(f"cannot be cut out of its tags or boxes: {found.reason}", field="answer")
    return found.answer, None if _is_wrapped(solution) else solution


def _is_wrapped(solution: str) -> bool:
    """Whether there is no reasoning around the tags or boxes."""
    from rewards.response import find_boxes

    if solution.startswith("<answer>"):
        return True
    boxes = find_boxes(solution)[0] if "box" in solution else []
    ends = [0, *(end for _, end, _ in boxes)]
    starts = [*(start for start, _, _ in boxes), len(solution)]
    around = " ".join(solution[end:start] for end, start in zip(ends, starts, strict=True))
    return bool(boxes) and not _JOINT.sub("", around)
