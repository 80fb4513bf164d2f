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
from vlm_mhpo.evaluation.benchmarks.values import as_sympy_reads, constant, plain_float, tree

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
_UNREAD = re.compile(r"\\sqrt\d|\\[{}]|\\%|\.$")
_RELATION = re.compile(r"[<>]|\\(?:leq?|geq?|lt|gt)(?![A-Za-z])")
# What is a symbol for sympy's parser of LaTeX, or has one inside.
_LETTER = re.compile(r"(?<![A-Za-z\\])[ei](?![A-Za-z])|\\(?:int|sum|prod|lim|text|mathrm|operatorname)(?![A-Za-z])")
_ANNOUNCED, _ANNOUNCED_IN_CHINESE = "So the final answer is ", "所以最终答案是"
_PRECISION = 1e-8
_SLACK = 1.01
_TINY, _NOISE = 1e-3, 1e-12
_MAX_CHARS = 20_000
_ENOUGH_POINTS = 6


def official(row: Row, response: str) -> Official:
    """The last "So the final answer is", else the whole response, judged with the row's allowed error."""
    answer = final_answer(response, _ANNOUNCED_IN_CHINESE if is_chinese(row) else _ANNOUNCED)
    try:
        correct = judge(answer, _first_gold(row), _precisions(row))
    except RecursionError:
        correct = False
    return verdict(correct, contents_of(answer))


def _first_gold(row: Row) -> str:
    """The first of the authors' answers, which is all that their grader reads."""
    answers = row.metadata.get("final_answer")
    return str(answers[0]) if isinstance(answers, tuple) and answers else row.answer


def final_answer(response: str, announcement: str = _ANNOUNCED) -> str:
    """What stands behind the last announcement of a final answer in its line; else all of it."""
    found = response.rfind(announcement)
    return response if found < 0 else response[found + len(announcement) :].split("\n")[0].strip()


def judge(first: str, second: str, precision: Sequence[float] = (_PRECISION,)) -> bool:
    """Whether the parts of two texts pair up, in the order of the first; `precision` is for all its parts, or one each.

    The first text may stand for its percentage or share, too. The authors' script gives the answer first and the gold
    second, so an error of several is that of the answer's place.
    """
    left, right = _prepared(first), _prepared(second)
    if left is None or right is None:
        return False
    return left == right or same_parts(_CHINESE.sub("", left), _CHINESE.sub("", right), precision)


def same_parts(left: str, right: str, precision: Sequence[float]) -> bool:
    """As `judge`, of texts without anything around their mathematics."""
    lefts, rights = _parts(left), _parts(right)
    errors = list(precision) if len(precision) > 1 else [*precision] * len(lefts)
    # With too few errors their script stops.
    return len(lefts) == len(rights) <= len(errors) and _pair_up(lefts, rights, errors)


def _pair_up(lefts: list[str], rights: list[str], errors: list[float]) -> bool:
    """The authors' order: each second one of what is left, the first equal partner, and no second try."""
    index = -1
    while lefts:
        index = (index + 1) % len(lefts)
        left, error = lefts[index], errors[index]
        partner = next((right for right in rights if _is_equal(left, right, error)), None)
        if partner is None:
            return False
        for parts, one in ((lefts, left), (rights, partner), (errors, error)):
            parts.remove(one)
    return True


def _prepared(text: str) -> str | None:
    """Boxes (or the dollars of the last line) in plain notation; None if a box is left open or all is too long."""
    contents = contents_of(text)
    if contents is None or len(contents) > _MAX_CHARS:
        return None
    if "\\in " in contents:
        contents = contents.split("\\in ")[1]
    for old, new in _REPLACED.items():
        contents = contents.replace(old, new)
    return _FONT.sub(r"\1", contents.strip(_STRIPPED))


def contents_of(text: str) -> str | None:
    """Boxes, or the dollars of the last line, each with a comma behind it; else the text. None: a box is open."""
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


def _is_equal(left: str, right: str, error: float) -> bool:
    if left and left == right:
        return True
    if _is_interval(left) and _is_interval(right) and _same_intervals(left, right, error):
        return True
    value, other = plain_float(left), plain_float(right)
    # A percentage may stand for its share.
    scaled = () if value is None or other is None else (value / 100, value, value * 100)
    if any(abs(each - other) <= error * _SLACK for each in scaled):
        return True
    if not ("=" in left and "=" in right):
        return _same_expression(left, right, error)
    return _same_equation(left, right)


def _is_interval(text: str) -> bool:
    return text.startswith(("(", "[")) and text.endswith((")", "]"))


def _same_intervals(left: str, right: str, error: float) -> bool:
    if left.count("\\cup") != right.count("\\cup"):
        return False
    for one, other in zip(left.split("\\cup"), right.split("\\cup"), strict=True):
        # A space beside \\cup keeps their script from taking the brackets off.
        if not one or not other or one[0] != other[0] or one[-1] != other[-1] or one != one.strip():
            return False
        ends = zip(one.strip("[]()").split(","), other.strip("[]()").split(","), strict=False)
        if not all(_same_expression(a.strip(), b.strip(), error) for a, b in ends):
            return False
    return True


def _same_expression(left: str, right: str, error: float) -> bool:
    """The sides behind the equals signs are equal: constants within the error, else functions but for a tiny constant.

    Of what sympy does not read nothing is equal: tuples, sets, chains of inequalities.
    """
    sides = [as_sympy_reads(text.split("=")[1].strip() if "=" in text else text.strip()) for text in (left, right)]
    if not all(sides) or any(_UNREAD.search(side) or (_is_interval(side) and "," in side) for side in sides):
        return False
    if any(_RELATION.search(side) for side in sides):
        return all(len(_RELATION.findall(side)) == 1 for side in sides) and _bare(sides[0]) == _bare(sides[1])
    if sides[0] == sides[1]:
        return True
    nodes = [tree(side) for side in sides]
    have_letters = [_has_letters(side, node) for side, node in zip(sides, nodes, strict=True)]
    if {True, False} <= set(have_letters):
        return False
    if None in nodes:
        return _same_for_worker(*sides)
    if not any(have_letters):
        values = constant(sides[0]), constant(sides[1])
        return None not in values and abs(values[0] - values[1]) <= error * _SLACK
    try:
        return same_value(*nodes) or _differ_by_little(*nodes)
    except Undecided:
        same = _same_at_whole_numbers(*nodes)
        return _same_for_worker(*sides) if same is None else same
    except TooLarge:
        return False


def _has_letters(text: str, node: Node | None) -> bool | None:
    """Whether sympy sees a symbol, as it does in e, i and whatever has a bound variable; None: not to be known."""
    return True if _LETTER.search(text) else None if node is None else bool(symbols(node))


def _differ_by_little(left: Node, right: Node) -> bool:
    """Whether the difference is one constant below 0.001, which passes there."""
    names = sorted(symbols(left) | symbols(right))
    differences = []
    for start in (-1.3, 0.3, 1.1, 2.7):
        point = {name: complex(start + 0.7 * place) for place, name in enumerate(names)}
        try:
            differences.append(to_number(left, point) - to_number(right, point))
        except (Undecided, TooLarge):
            return False
    return abs(differences[0]) < _TINY and all(abs(one - differences[0]) < _NOISE for one in differences)


def _bare(relation: str) -> str:
    return "".join(relation.split()).replace("\\leq", "\\le").replace("\\geq", "\\ge")


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


def _same_for_worker(left: str, right: str) -> bool:
    """What our verifier says, which may ask a symbolic engine in a process that can be killed."""
    return verify(f"${left}$", f"${right}$", template="bare", kind="math").correct


def _same_equation(left: str, right: str) -> bool:
    """One equation is a whole multiple of the other, or both name the same thing and its values are equal."""
    # The quotient of an equation with decimals and one without is no whole number to sympy.
    if not left.count("=") == right.count("=") == 1 or ("." in left) != ("." in right):
        return False
    named, other_name = ("".join(text.split("=")[0].split()) for text in (left, right))
    if named == other_name:
        return _same_expression(left, right, _PRECISION)
    one, other = _difference(left), _difference(right)
    if one is None or other is None:
        return _same_for_worker(left, right)
    try:
        mine, theirs = to_ratio(one), to_ratio(other)
        if mine is None or theirs is None:
            return same_value(one, other) or same_value(one, ("neg", other))
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
    errors = [plain_float(part) if part else _PRECISION for part in error.split(",")]
    return [_PRECISION if each is None else each for each in errors]


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
