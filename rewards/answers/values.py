"""Structured answers: lists, sets, tuples, intervals, unions, equations, inequalities, ratios and matrices."""

from __future__ import annotations

import re
from fractions import Fraction
from functools import reduce
from itertools import pairwise

from rewards.answers.brackets import bracketed, split_top, without_brackets
from rewards.answers.denials import head_denies
from rewards.answers.environments import as_text, is_one_value, lines_of, pieces_of
from rewards.answers.equality import Undecided, symbols
from rewards.answers.equations import INFINITY, excluded, related
from rewards.answers.grammar import NotAnExpression, without_thousands_commas
from rewards.answers.matrix import read_matrix
from rewards.answers.names import are_roots, is_name
from rewards.answers.number import Quantity, compound_quantity, parse_quantity, plain_number, same_quantity
from rewards.answers.number_words import in_digits
from rewards.answers.region import REALS, Interval, Region, intersection
from rewards.answers.restated import is_marked, two_readings, without_rounding
from rewards.answers.structures import Chain, Many, Named, Value, as_region
from rewards.answers.wording import look_through, without_reason
from rewards.workers.limits import TooLarge

MAX_ITEMS = 40
_RELATION = re.compile(r"\\(?:le|ge|ne|approx|in|to|rightarrow)(?![A-Za-z])|<=|>=|!=|[=<>]")
_SEPARATOR = re.compile(
    r"[,;]|\b(?:and|or|und|oder|et|ou)\b|&(?!\s*\w+;)|\bwith\b(?=\s*\w\s*\\ne)|并且|[且和與与及]|或者?|还是"
)
_COLON, _COMMA, _CUP = re.compile(":"), re.compile("[,;]"), re.compile(r"\\cup(?![A-Za-z])")
_JOINS = dict.fromkeys(("或", "或者", "还是", "oder", "ou"), "or") | dict.fromkeys(
    ("with", "且", "并且", "和", "與", "与", "及", "und", "et"), "and"
)
# P(3, 2) is a point, P(A) = 1/4 a probability.
_POINT = re.compile(r"^(?:[A-Z]'?|point\s+[A-Z]'?)\s*=?\s*(?=\((?![^()]*\)\s*=))")
_CLOCK = re.compile(
    r"^(?P<hour>\d{1,2})(?::(?P<minute>[0-5]\d)(?::(?P<second>[0-5]\d))?)?(?:\s*(?P<half>[ap])\.?\s?m\.?)?$",
    re.IGNORECASE | re.ASCII,
)
_SLASHED = re.compile(r"(?:\\(?:setminus|backslash)(?![A-Za-z])\s*|-\s*)?(?=\\?\{)")
_ALL_REALS = re.compile(r"^(?:\\mathbb\s*\{R\}|all real numbers|all reals)\s*", re.IGNORECASE)
_EXCEPT = re.compile(r"^(?:except|but|other than)\s+(?:for\s+)?", re.IGNORECASE)
_BUILDER = re.compile(r"^\\\{\s*([A-Za-z])\s*(?:\\in\s*\\mathbb\s*\{R\})?\s*[|:](.*)\\\}$")
_LABELLED = re.compile(r"^([A-Za-z]{3,}(?: [a-z]{2,}){0,3})\s*[:=]\s*(\S[^:=]*)$")
# The parameter of a general solution: (k \in \mathbb{Z}).
_PARAMETER = re.compile(r"[,\s]*\(\s*([a-z])\s*\\in\s*(?:\\mathbb\s*\{\s*)?([NZ])(?:\s*\})?\s*\)$")
_CHEVRONS = re.compile(r"^<([^<>=]*,[^<>=]*)>$")


def parse_value(text: str, depth: int = 0) -> Value | Chain:
    """Read a cleaned answer as a typed value.

    Raises:
        NotAnExpression: it is not in our grammar.
        TooLarge: it has too many parts.
    """
    if depth > 6:
        raise TooLarge("lists are nested more than 6 deep")
    if plain := plain_number(text := text.strip()):
        return plain
    if depth == 0:
        text = _asserted(text)
        if (restated := _restated(text)) is not None:
            return restated
        text = _with_labels(text)
    text = _POINT.sub("", text)
    text = without_brackets(text, _SEPARATOR)
    if "\\begin" in text and (lines := lines_of(text)) and is_one_value(text):
        pieces = pieces_of(lines)
        if pieces:
            return _piecewise(pieces, depth)
        text = as_text(lines)
    compound = compound_quantity(text)
    if compound:
        return compound
    if "\\begin" in text or text.startswith(("[", "\\det")):
        matrix = _matrix(text, depth)
        if matrix is not None:
            return matrix
    if depth == 0:
        text = _CHEVRONS.sub(r"(\1)", _ungroup(text))
    pieces, separators = split_top(text, _SEPARATOR)
    if len(pieces) > 1:
        return _listed(pieces, [_JOINS.get(separator, separator) for separator in separators], depth)
    pieces, ops = split_top(text, _RELATION)
    if len(pieces) > 1:
        return related(pieces, ops, lambda piece: parse_value(piece, depth + 1))
    if text == "\\emptyset":
        return Many("set", ())
    region = _region(text)
    if region is not None:
        return region
    if "\\cup" in text:
        parts, _ = split_top(text, _CUP)
        return _many("union", parts, depth)
    inner = bracketed(text)
    if inner is not None:
        return _enclosed(text, inner, depth)
    if "\\pm" in text or "\\mp" in text:
        both = [text.replace("\\pm", a).replace("\\mp", b) for a, b in (("+", "-"), ("-", "+"))]
        return _many("list", both, depth)
    clock = _clock(text)
    if clock is not None:
        return clock
    ratio, _ = split_top(text, _COLON)
    if len(ratio) > 1:
        return _many("ratio", ratio, depth)
    return parse_quantity(text.replace("infinity", "\\infty") if text in INFINITY else text)


def _asserted(text: str) -> str:
    """What a whole answer says without the words around it; raises NotAnExpression where they deny it."""
    text = look_through(without_reason(_with_labels(text)))
    if "\\begin" not in text and head_denies(text):
        raise NotAnExpression("words deny what follows them")
    text = without_rounding(text)
    return _PARAMETER.sub(r", \1\\in \2", text) if "\\in" in text else text


def _restated(text: str) -> Chain | None:
    """A value written twice as a chain, in which both have to agree; None if the text is no such thing."""
    both = two_readings(text)
    if both is None:
        return None
    try:
        first, second = (_plain(parse_value(in_digits(part.strip()), 1)) for part in both)
    except NotAnExpression:
        return None
    if first is None or second is None:
        return None
    chain = Chain(first if first.quantum is None or second.quantum is not None else second, ((first, second, "="),))
    return chain if is_marked(text) or same_quantity(first, second) or same_quantity(second, first) else None


def _plain(value: Value | Chain) -> Quantity | None:
    """The constant of a value or a name's value; None for anything else."""
    while isinstance(value, Chain | Named):
        value = value.value
    return value if isinstance(value, Quantity) and not symbols(value.node) else None


def _with_labels(text: str) -> str:
    """Domain: [-4, 4] and Range: [0, 2] as values of names, where all pieces have a label."""
    if ":" not in text and "=" not in text:
        return text
    pieces, _ = split_top(text, _SEPARATOR)
    labels = [_LABELLED.match(piece) for piece in pieces]
    if len(pieces) < 2 or not all(labels):
        return text
    return ", ".join(f"{label[1].lower()} = {label[2]}" for label in labels if label)


def _piecewise(pieces: list[tuple[str, str]], depth: int) -> Many:
    """A function by cases as the set of its (value, condition)."""
    rows = []
    for value, condition in pieces:
        rest = Quantity(("sym", "otherwise")) if condition == "otherwise" else parse_value(condition, depth + 1)
        rows.append(Many("tuple", (parse_value(value, depth + 1), rest), "()"))
    return Many("set", tuple(rows))


def _matrix(text: str, depth: int) -> Value | Chain | None:
    """A matrix, a determinant's value, or a name with either."""
    name, equals, rest = text.partition("=")
    if equals and "\\begin" in rest and is_name(name.strip()):
        return Named(name.strip(), parse_value(rest, depth + 1))
    rows = read_matrix(text)
    if rows is None or isinstance(rows, Quantity):
        return rows
    return Many("matrix", tuple(Many("tuple", row) for row in rows))


def _clock(text: str) -> Many | None:
    """A time of day: with am or pm, or with a minute that starts with a zero (a ratio has none)."""
    time = _CLOCK.match(text)
    if not time or not (time["half"] or (time["minute"] or "1").startswith("0")):
        return None
    if int(time["hour"]) > (12 if time["half"] else 24):
        raise NotAnExpression("an hour that no clock shows")
    parts = (Quantity(("num", Fraction(int(time[part] or 0)))) for part in ("hour", "minute", "second"))
    return Many("clock", tuple(parts), f"{time['half'].lower()}m" if time["half"] else "")


def _region(text: str) -> Value | None:
    """The reals, the reals without some points, or a set-builder."""
    builder = _BUILDER.match(text)
    if builder:
        condition = parse_value(builder.group(2), 1)
        if _are_roots_of(builder.group(2), builder.group(1), condition):
            return Many("set", condition.items if isinstance(condition, Many) else (condition.value,))
        if isinstance(condition, Named) and condition.name == builder.group(1):
            return condition.value
        if isinstance(condition, Many) and condition.kind == "union":
            return condition
        raise NotAnExpression("a set-builder whose condition is no interval")
    reals = _ALL_REALS.match(text)
    if not reals:
        return None
    rest = text[reals.end() :]
    if not rest:
        return REALS
    minus = _SLASHED.match(rest) or _EXCEPT.match(rest)
    if not minus:
        raise NotAnExpression("a set of reals that is cut in an unknown way")
    points = parse_value(rest[minus.end() :], 1)
    if isinstance(points, Named):
        points = points.value
    return excluded("", list(points.items) if isinstance(points, Many) else [points]).value


def _are_roots_of(text: str, name: str, condition: Value | Chain) -> bool:
    """Whether the condition of a set-builder says name = value, or so for several values."""
    pieces, _ = split_top(text, _SEPARATOR)
    is_values = isinstance(condition, Named | Many) and (isinstance(condition, Named) or condition.kind == "list")
    return is_values and all(re.match(rf"^\s*{name}\s*=(?!=)[^<>]*$", piece) for piece in pieces)


def _shared(name: str, regions: list[Region], separators: list[str]) -> Named:
    """What several conditions on one name leave: all of them hold ("and", a comma) or one of them ("or")."""
    joins = set(separators)
    if joins == {"or"}:
        return Named(name, Many("union", tuple(part for region in regions for part in region)))
    if "or" in joins:
        raise NotAnExpression("and beside or")
    try:
        common = reduce(intersection, regions)
    except Undecided as error:
        raise NotAnExpression(f"conditions that cannot be compared: {error}") from None
    if not common:
        raise NotAnExpression("conditions that nothing meets")
    return Named(name, Many("union", common))


def _many(kind: str, pieces: list[str], depth: int, ends: str = "") -> Many:
    if len(pieces) > MAX_ITEMS:
        raise TooLarge(f"the answer lists {len(pieces)} values, the limit is {MAX_ITEMS}")
    return Many(kind, tuple(parse_value(piece, depth + 1) for piece in pieces), ends)


def _ungroup(text: str) -> str:
    """Remove correctly placed thousands commas outside brackets, where a comma cannot separate."""
    if "," not in text:
        return text
    parts, level, start = [], 0, 0
    for match in re.finditer(r"[(\[{)\]}]", text):
        piece = text[start : match.start()]
        parts += [without_thousands_commas(piece) if level == 0 else piece, match.group()]
        level += 1 if match.group() in "([{" else -1
        start = match.end()
    parts.append(without_thousands_commas(text[start:]) if level == 0 else text[start:])
    return "".join(parts)


def _listed(pieces: list[str], separators: list[str], depth: int) -> Value:
    # "5, and 7" leaves an empty piece between its two separators.
    kept = [piece for piece in pieces if piece]
    if len(kept) < len(pieces) - sum(a in ",;" and b in ("and", "or") for a, b in pairwise(separators)):
        raise NotAnExpression("an empty place in a list")
    many = _many("list", kept, depth)
    if all(isinstance(item, Many) and item.kind in ("named", "tuple") for item in many.items):
        return _solutions(many)
    values = [item.value for item in many.items if isinstance(item, Named)]
    if len(values) != len(many.items):
        first = many.items[0]
        if isinstance(first, Named) and first.relation and first.relation.op == "!=" and "or" not in separators:
            return excluded(first.name, [first.relation.right, *many.items[1:]])
        if all(isinstance(item, Interval) for item in many.items) and "or" in separators:
            return Many("union", many.items)
        return many
    names = tuple(item.name for item in many.items)
    if all(isinstance(value, Interval) for value in values) and set(separators) == {"or"}:
        return Many("union", tuple(values))
    bases = {name.partition("_")[0] for name in names}
    regions = [as_region(value) for value in values if not isinstance(value, Many) or value.kind == "union"]
    if len(bases) == 1 and len(regions) == len(values) and all(regions):
        return _shared(names[0], [region for region in regions if region], separators)
    return _named_values(names, tuple(values))


def _solutions(many: Many) -> Many:
    """Several tuples, of which the first may name the parts of all: (p, q) = (5, 2), (7, 2)."""
    names = many.items[0].names
    if not names or any(len(item.items) != len(names) for item in many.items):
        return many
    return Many("list", tuple(Many("named", item.items, names=item.names or names) for item in many.items))


def _named_values(names: tuple[str, ...], values: tuple[Value, ...]) -> Many:
    """Several named values: roots of one unknown, one value of each name, or several solutions of the same names."""
    if len(set(names)) == 1 or are_roots(names):
        return Many("list", values)
    period = names.index(names[0], 1) if names[0] in names[1:] else len(names)
    group = set(names[:period])
    starts = range(0, len(names), period)
    if len(group) < period or any(set(names[start : start + period]) != group for start in starts):
        raise NotAnExpression("some names have several values")
    solutions = [Many("named", values[s : s + period], names=names[s : s + period]) for s in starts]
    return solutions[0] if len(solutions) == 1 else Many("list", tuple(solutions))


def _enclosed(text: str, inner: str, depth: int) -> Value:
    pieces, _ = split_top(inner, _COMMA)
    if text.startswith("\\{"):
        return _many("set", [p for p in pieces if p] if inner.strip() else [], depth)
    if len(pieces) == 1:
        return parse_value(inner, depth + 1) if text[0] + text[-1] in ("()", "[]") else parse_quantity(text)
    ends = text[0] + text[-1]
    infinite = [INFINITY.get(piece.strip()) for piece in pieces]
    if len(pieces) == 2 and (ends in ("(]", "[)") or any(infinite)):
        low, high = (inf or parse_quantity(piece) for inf, piece in zip(infinite, pieces, strict=True))
        return Interval(low, high, text[0] == "[", text[-1] == "]")
    return _many("tuple", pieces, depth, ends)
