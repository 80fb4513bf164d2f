"""OlympiadBench: the authors' judge of numbers, expressions, equations, tuples and intervals within a precision.

Their judge parses LaTeX with sympy, without a time limit; here our own grammar parses it, and what that does not read
goes to the worker of our verifier.
"""

from __future__ import annotations

import cmath
import re
from collections.abc import Sequence

from data_prep import Row
from rewards import verify
from rewards.answers import Node, TooLarge, Undecided, proportional, same_value, symbols, to_number, to_ratio
from rewards.response import find_boxes
from vlm_mhpo.evaluation.benchmarks.olympiad_question import is_chinese, prompt
from vlm_mhpo.evaluation.benchmarks.shared import verdict
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official
from vlm_mhpo.evaluation.benchmarks.values import constant, plain_float, tree

_PARTS = (
    "OE_MM_maths_en_COMP", "OE_TO_maths_en_COMP", "OE_MM_physics_en_COMP", "OE_TO_physics_en_COMP",
    "OE_MM_maths_zh_COMP", "OE_TO_maths_zh_COMP", "OE_MM_maths_zh_CEE", "OE_TO_maths_zh_CEE",
    "OE_MM_physics_zh_CEE", "OE_TO_physics_zh_CEE",
)  # fmt: skip
_REPLACED = {"\\left": "", "\\right": "", "∶": ":", "，": ",", "$": "", "\\approx": "=", "\\simeq": "=", "\\sim": "=",
             "^\\prime": "'", "^{\\prime}": "'", "^\\circ": "", "%": ""}  # fmt: skip
_STRIPPED = "\n$,.:;^_=+`!@#$%^&*~，。"
_FONT = re.compile(r"\\(?:mathrm|mathbf)\{~?([^}]*)\}")
_DOLLARS = re.compile(r"\$(.*?)\$")
_CHINESE = re.compile(r"[\u4e00-\u9fff]+")
_ANNOUNCED, _ANNOUNCED_IN_CHINESE = "So the final answer is ", "所以最终答案是"
_PRECISION = 1e-8
_SLACK = 1.01
_MAX_CHARS = 20_000
_ENOUGH_POINTS = 6


def official(row: Row, response: str) -> Official:
    """The last "So the final answer is", else the whole response, judged with the row's allowed error."""
    answer = final_answer(response, _ANNOUNCED_IN_CHINESE if is_chinese(row) else _ANNOUNCED)
    try:
        correct = judge(_first_gold(row), answer, _precisions(row))
    except RecursionError:
        correct = False
    return verdict(correct, _contents(answer))


def _first_gold(row: Row) -> str:
    """The first of the authors' answers, which is all that their grader reads."""
    answers = row.metadata.get("final_answer")
    return str(answers[0]) if isinstance(answers, tuple) and answers else row.answer


def final_answer(response: str, announcement: str = _ANNOUNCED) -> str:
    """What stands behind the last announcement of a final answer in its line; else all of it."""
    found = response.rfind(announcement)
    return response if found < 0 else response[found + len(announcement) :].split("\n")[0].strip()


def judge(gold: str, answer: str, precision: Sequence[float] = (_PRECISION,)) -> bool:
    """Whether every part of the answer pairs with a part of the gold; `precision` is for all parts, or one each."""
    right, other = _prepared(gold), _prepared(answer)
    if right is None or other is None:
        return False
    if right == other:
        return True
    rights, others = _parts(_CHINESE.sub("", right)), _parts(_CHINESE.sub("", other))
    if len(rights) != len(others):
        return False
    allowed = list(precision) if len(precision) > 1 else [*precision] * len(rights)
    if len(allowed) != len(rights):
        return False
    for part, error in zip(rights, allowed, strict=True):
        match = next((i for i, candidate in enumerate(others) if _is_equal(part, candidate, error)), None)
        if match is None:
            return False
        del others[match]
    return True


def _prepared(text: str) -> str | None:
    """Boxes (or the dollars of the last line) in plain notation; None if a box is left open or all is too long."""
    contents = _contents(text)
    if contents is None or len(contents) > _MAX_CHARS:
        return None
    if "\\in " in contents:
        contents = contents.split("\\in ")[1]
    for old, new in _REPLACED.items():
        contents = contents.replace(old, new)
    return _FONT.sub(r"\1", contents.strip(_STRIPPED))


def _contents(text: str) -> str | None:
    boxes, is_open = find_boxes(text)
    if is_open:
        return None
    if boxes:
        return "".join(f"{content}," for _, _, content in boxes)
    lines = text.strip().split("\n")
    quoted = _DOLLARS.findall(lines[-1])
    return "".join(f"{content}," for content in quoted) if quoted else text


def _parts(text: str) -> list[str]:
    """Parts between the commas outside of brackets; one with a plus-minus sign is two."""
    parts, depth, start = [], 0, 0
    for index, char in enumerate(text):
        depth += (char in "([") - (char in ")]")
        if char == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    if start < len(text):
        parts.append(text[start:].strip())
    return [part.replace("\\pm", sign) for part in parts for sign in (("+", "-") if "\\pm" in part else ("",))]


def _is_equal(right: str, answer: str, error: float) -> bool:
    if right and right == answer:
        return True
    if _is_interval(right) and _is_interval(answer) and _same_intervals(right, answer, error):
        return True
    left, other = plain_float(right), plain_float(answer)
    # A percentage may stand for its share.
    scaled = () if left is None or other is None else (left / 100, left, left * 100)
    if any(abs(value - other) <= error * _SLACK for value in scaled):
        return True
    if not ("=" in right and "=" in answer):
        return _same_expression(right, answer, error)
    return _same_equation(right, answer, error)


def _is_interval(text: str) -> bool:
    return text.startswith(("(", "[")) and text.endswith((")", "]"))


def _same_intervals(right: str, answer: str, error: float) -> bool:
    pairs = list(zip(right.split("\\cup"), answer.split("\\cup"), strict=False))
    if right.count("\\cup") != answer.count("\\cup"):
        return False
    for left, other in pairs:
        left, other = left.strip(), other.strip()
        if not left or not other or left[0] != other[0] or left[-1] != other[-1]:
            return False
        ends = zip(left.strip("[]()").split(","), other.strip("[]()").split(","), strict=False)
        if not all(_same_expression(a.strip(), b.strip(), error) for a, b in ends):
            return False
    return True


def _same_expression(right: str, answer: str, error: float) -> bool:
    """The sides behind the equals signs are equal: constants within the error, else as functions."""
    right, answer = (text.split("=")[1].strip() if "=" in text else text.strip() for text in (right, answer))
    if right == answer or not right or not answer:
        return bool(right and answer)
    left, other = tree(right), tree(answer)
    if left is None or other is None:
        return _same_for_worker(right, answer)
    if bool(symbols(left)) != bool(symbols(other)):
        return False
    if not symbols(left):
        values = constant(right), constant(answer)
        return None not in values and abs(values[0] - values[1]) <= error * _SLACK
    try:
        return same_value(left, other)
    except Undecided:
        same = _same_at_whole_numbers(left, other)
        return _same_for_worker(right, answer) if same is None else same
    except TooLarge:
        return False


def _same_at_whole_numbers(left: Node, other: Node) -> bool | None:
    """Whether expressions with factorials agree wherever both have a value; None if that is hardly anywhere."""
    names = sorted(symbols(left) | symbols(other))
    num_agreeing = 0
    for start in range(1, 9):
        for order in (names, names[::-1]):
            point = {name: complex(start + 3 * place) for place, name in enumerate(order)}
            try:
                a, b = to_number(left, point), to_number(other, point)
            except (Undecided, TooLarge):
                continue
            if not cmath.isclose(a, b, rel_tol=1e-9):
                return False
            num_agreeing += 1
    return True if num_agreeing >= _ENOUGH_POINTS else None


def _same_for_worker(right: str, answer: str) -> bool:
    """What our verifier says, which may ask a symbolic engine in a process that can be killed."""
    return verify(f"${answer}$", f"${right}$", template="bare", kind="math").correct


def _same_equation(right: str, answer: str, error: float) -> bool:
    """One equation is a whole multiple of the other, or both name the same thing and its values are equal."""
    named, other_name = ("".join(text.split("=")[0].split()) for text in (right, answer))
    if named == other_name and right.count("=") == answer.count("=") == 1:
        return _same_expression(right, answer, error)
    left, other = _difference(right), _difference(answer)
    if left is None or other is None:
        return _same_for_worker(right, answer)
    try:
        mine, theirs = to_ratio(left), to_ratio(other)
        if mine is None or theirs is None:
            return same_value(left, other) or same_value(left, ("neg", other))
        above, below = proportional(mine.num, theirs.num), proportional(mine.den, theirs.den)
    except (Undecided, TooLarge, ZeroDivisionError):
        return False
    return None not in (above, below) and 1 in (abs((above / below).numerator), (above / below).denominator)


def _difference(equation: str) -> Node | None:
    sides = [tree(side) for side in equation.split("=")]
    return None if len(sides) != 2 or None in sides else ("add", sides[0], ("neg", sides[1]))


def _precisions(row: Row) -> list[float]:
    error = str(row.metadata.get("error") or "")
    if not error or "Tuple" in str(row.metadata.get("answer_type", "")):
        return [_PRECISION]
    return [plain_float(part) or _PRECISION for part in error.split(",")]


def _categories(row: Row) -> dict[str, str]:
    parts = row.split.split("_")
    named = {"answer_type": str(row.metadata.get("answer_type", "")), "subfield": str(row.metadata.get("subfield", ""))}
    if len(parts) == 5:  # such as OE_MM_maths_en_COMP
        named |= {"modality": parts[1], "subject": parts[2], "language": parts[3], "level": parts[4]}
    named |= {axis: str(row.metadata[axis]) for axis in ("modality", "subject", "language") if axis in row.metadata}
    return named


BENCHMARK = Benchmark(
    name="olympiadbench",
    title="OlympiadBench (open questions)",
    citation="arXiv:2402.14008",
    splits=_PARTS,
    sources=(f"Hothan/OlympiadBench:{_PARTS[0]}@train",),
    download="download the data set Hothan/OlympiadBench, or clone github.com/OpenBMB/OlympiadBench and unpack it "
    "to data/ and images/ in {folder}",
    prompt=prompt,
    official=official,
    deviation="expressions are compared by our own grammar and verifier instead of sympy",
    categories=_categories,
)
