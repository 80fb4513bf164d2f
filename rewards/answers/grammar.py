"""Own tokenizer and recursive-descent grammar: one cleaned expression to a small tree of tuples.

Nodes: ("num", Fraction), ("sym", name), ("add" | "mul" | "div" | "pow", a, b), ("neg", a), ("root", index, a),
("fn", name, a), ("log", base, a), ("fact", a), ("binom", a, b), ("abs", a). Nothing is evaluated here.
Not covered: relations, lists, intervals, matrices (structure.py); sums, integrals and limits (left to a worker).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from rewards.workers.limits import MAX_DEPTH, MAX_TOKENS, TooLarge

Node = tuple
_FUNCTION_NAMES = "sin cos tan cot sec csc arcsin arccos arctan sinh cosh tanh ln log lg exp asin acos atan"
_GREEK_NAMES = """alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta kappa lambda mu nu xi rho sigma tau
phi varphi chi psi omega ell Gamma Delta Theta Lambda Sigma Phi Psi Omega hbar"""
# Short words that are never a product of variables.
_SHORT_WORDS = """or and is of to in no not the an if as at by on so we it be am up my he do us for was any all but yes
why how you one two six ten odd new old red day may can are has had out its few"""
FUNCTIONS = frozenset(_FUNCTION_NAMES.split())
GREEK = frozenset(_GREEK_NAMES.split())
KNOWN_WORDS = FUNCTIONS | {"sqrt", "pi"}
NOT_PRODUCTS = frozenset(_SHORT_WORDS.split())
_TOKEN = re.compile(
    r"\s*(?:(?P<num>(?:\d+(?:\.\d+)?|\.\d+)(?:[eE][+-]?\d+(?![A-Za-z\d.]))?)|(?P<cmd>\\[A-Za-z]+)|(?P<word>[^\W\d_]+)"
    r"|(?P<op>\*\*|[-+*/^_!%°(){}\[\]|']))"
)
_BASE = r"(\d{1,2}|two|three|four|five|six|seven|eight|nine|ten|twelve|sixteen)"
# Digits above nine need a digit in front of them, or base 16: a letter is a variable first.
_NUMERAL = r"(?:\(\s*(\d[0-9A-Za-z]{0,63}|[0-9A-F]{2,64})\s*\)|(\d[0-9A-Za-z]{0,63}|[A-F][0-9A-F]{1,63}))"
_BASED = re.compile(
    rf"(?<![\w.,\\)}}\]^]){_NUMERAL}\s*(?:_\s*(?:\{{\s*(?:base\s*)?{_BASE}\s*\}}|(\d{{1,2}})(?!\d))"
    rf"|\(?\s*(?:in\s+)?base[\s-]+{_BASE}(?![\w.])\s*\)?)"
)
_BASE_WORDS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9, "ten": 10,
               "twelve": 12, "sixteen": 16}  # fmt: skip
# v^2_0 is the square of v_0.
_RAISED_INDEX = re.compile(r"(?<![A-Za-z])(\\?[A-Za-z]+)\s*\^\s*(\{[^{}]*\}|\w)\s*(_\s*(?:\{[^{}]*\}|\w))")
_GROUPED = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?![\d,])")
_SIGNS = (("op", "+"), ("op", "-"))
_POSTFIX, _POWER = frozenset("!%°"), ("^", "**")
_HUNDRED, _DEGREE = ("num", Fraction(100)), ("div", ("sym", "pi"), ("num", Fraction(180)))
_OPENERS = {"(": ")", "{": "}", "[": "]"}
_MAX_NUMBER_CHARS = 400


class NotAnExpression(ValueError):
    """The text is not an expression of this grammar (it may still be one for a symbolic engine)."""


def without_thousands_commas(text: str) -> str:
    """The text with 1,000 as 1000; commas that are placed otherwise stay."""
    return _GROUPED.sub(lambda match: match.group().replace(",", ""), text) if "," in text else text


def parse_expression(text: str) -> Node:
    """Tree of one expression in the notation of notation.clean.

    Raises:
        NotAnExpression: some part is outside the grammar.
        TooLarge: too many tokens, too deep, or a number literal that is too long.
    """
    text = without_thousands_commas(text)
    if "_" in text or "base" in text:
        text = _BASED.sub(_in_decimal, _RAISED_INDEX.sub(r"\1\3^\2", text))
    parser = _Parser(_tokens(text))
    node = parser.sum(0)
    if parser.at < len(parser.tokens) - 1:
        raise NotAnExpression(f"unexpected {parser.tokens[parser.at][1]!r}")
    return node


def _tokens(text: str) -> list[tuple[str, str]]:
    """(kind, text) of each token."""
    tokens, position, end = [], 0, len(text.rstrip())
    while position < end:
        match = _TOKEN.match(text, position)
        if not match:
            raise NotAnExpression(f"unexpected {text[position : position + 10]!r}")
        kind = match.lastgroup or ""
        tokens += _letters(match[kind], tokens) if kind == "word" else [(kind, match[kind])]
        position = match.end()
        if len(tokens) > MAX_TOKENS:
            raise TooLarge(f"the answer has more than {MAX_TOKENS} tokens")
    return tokens


def _letters(word: str, before: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """A short run of letters is a product of variables, each of which may carry its own exponent."""
    short = 2 <= len(word) <= 3 and word.isascii() and word.lower() not in NOT_PRODUCTS and word not in KNOWN_WORDS
    follows = before and (before[-1][0] in ("num", "cmd") or before[-1][1] in (")", "}"))
    mixed = len(word) == 2 and not word.isupper() and follows
    return [("word", letter) for letter in word] if short and (word.islower() or mixed) else [("word", word)]


def _in_decimal(numeral: re.Match[str]) -> str:
    """The value of a numeral with its base; the text as it is where a letter is a variable (3x_2).

    Raises:
        NotAnExpression: the base is not from 2 to 36, or lacks a digit.
    """
    digits = numeral[1] or numeral[2]
    name = numeral[3] or numeral[4] or numeral[5]
    base = _BASE_WORDS.get(name) or int(name)
    if not digits.isdigit() and (base <= 10 or (base != 16 and (digits.upper() != digits or digits[0].isalpha()))):
        return numeral.group()
    if not 2 <= base <= 36 or any(int(digit, 36) >= base for digit in digits):
        raise NotAnExpression(f"{digits!r} is no numeral in base {base}")
    return f" {int(digits, base)} "


def number_value(text: str) -> Fraction:
    """Exact value of a decimal literal, with its exponent; raises TooLarge for absurd ones."""
    mantissa, _, exponent = text.lower().partition("e")
    if len(mantissa) > _MAX_NUMBER_CHARS or len(exponent) > 4 or abs(int(exponent or 0)) > 400:
        raise TooLarge("a number literal is too large")
    if text.isdigit():
        return Fraction(int(text))
    whole, _, decimals = mantissa.partition(".")
    value = Fraction(int((whole + decimals) or "0"), 10 ** len(decimals))
    return value * Fraction(10) ** int(exponent) if exponent else value


class _Parser:
    """Holds the cursor over the tokens."""

    def __init__(self, tokens: list[tuple[str, str]]) -> None:
        self.tokens = [*tokens, ("end", "")]
        self.at = 0

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at]

    def take(self, text: str) -> bool:
        if self.tokens[self.at][1] == text:
            self.at += 1
            return True
        return False

    def sum(self, depth: int, stop: str = "") -> Node:
        node = self.signed(self.product, depth, stop)
        while self.tokens[self.at] in _SIGNS:
            node = ("add", node, self.signed(self.product, depth, stop))
        return node

    def signed(self, part: Callable[[int, str], Node], depth: int, stop: str) -> Node:
        """A part behind any number of signs."""
        is_negative = False
        while (token := self.peek()) in _SIGNS:
            is_negative ^= token[1] == "-"
            self.at += 1
        node = part(depth, stop)
        return ("neg", node) if is_negative else node

    def product(self, depth: int, stop: str) -> Node:
        node = self.power(depth, stop)
        while True:
            kind, sign = self.tokens[self.at]
            if sign == "*" or sign == "/":
                self.at += 1
                node = ("mul" if sign == "*" else "div", node, self.signed(self.power, depth, stop))
            elif self.starts_factor(stop):
                mixed = self.mixed_number(node, depth)
                if mixed is None and kind == "num":
                    raise NotAnExpression("two numbers side by side")
                node = mixed or ("mul", node, self.power(depth, stop))
            else:
                return node

    def starts_factor(self, stop: str) -> bool:
        kind, text = self.peek()
        return kind in ("num", "cmd", "word") or (kind == "op" and text in ("(", "{", "[", "|") and text != stop)

    def mixed_number(self, node: Node, depth: int) -> Node | None:
        """3 1/2 or 3\\frac{1}{2}, where the whole part is an integer literal."""
        if node[0] != "num" or node[1].denominator != 1 or self.tokens[self.at - 1][0] != "num":
            return None
        if self.peek()[1] == "\\frac":
            start = self.at
            fraction = self.primary(depth, "")
            if all(part[0] == "num" and part[1].denominator == 1 for part in fraction[1:]):
                return ("add", node, fraction)
            self.at = start
            return None
        ahead = self.tokens[self.at : self.at + 3]
        if [t[0] for t in ahead] == ["num", "op", "num"] and ahead[1][1] == "/":
            top, bottom = number_value(ahead[0][1]), number_value(ahead[2][1])
            if top.denominator == bottom.denominator == 1 and top < bottom:
                self.at += 3
                return ("add", node, ("div", ("num", top), ("num", bottom)))
        return None

    def power(self, depth: int, stop: str) -> Node:
        node = self.postfix(self.primary(depth + 1, stop))
        if self.tokens[self.at][1] in _POWER:
            self.at += 1
            node = ("pow", node, self.signed(self.power, depth + 1, stop))
        return node

    def postfix(self, node: Node) -> Node:
        while (sign := self.tokens[self.at][1]) in _POSTFIX:
            self.at += 1
            node = ("fact", node) if sign == "!" else ("div", node, _HUNDRED) if sign == "%" else ("mul", node, _DEGREE)
        return node

    def primary(self, depth: int, stop: str) -> Node:
        if depth > MAX_DEPTH:
            raise TooLarge(f"the answer is nested more than {MAX_DEPTH} deep")
        kind, text = self.peek()
        self.at += 1
        if kind == "num":
            return ("num", number_value(text))
        if kind == "word":
            return self.word(text, depth, stop)
        if kind == "cmd":
            return self.command(text[1:], depth, stop)
        if text in _OPENERS:
            node = self.sum(depth + 1)
            self.expect(_OPENERS[text])
            return node
        if text == "|" and stop != "|":
            node = self.sum(depth + 1, "|")
            self.expect("|")
            return ("abs", node)
        raise NotAnExpression(f"unexpected {text!r}" if text else "the expression ends early")

    def expect(self, text: str) -> None:
        if not self.take(text):
            raise NotAnExpression(f"{text!r} is missing")

    def word(self, text: str, depth: int, stop: str) -> Node:
        if text in KNOWN_WORDS:
            return self.command(text, depth, stop)
        # A Chinese character is a word, never a variable.
        if len(text) == 1 and text < "\u2e80":
            return self.symbol(text, depth)
        raise NotAnExpression(f"the word {text!r}")

    def symbol(self, name: str, depth: int) -> Node:
        if self.take("_"):
            kind, text = self.peek()
            if text == "{":
                end = next((i for i in range(self.at, len(self.tokens)) if self.tokens[i][1] == "}"), -1)
                if end < 0:
                    raise NotAnExpression("a subscript is not closed")
                text = "".join(token[1] for token in self.tokens[self.at + 1 : end])
                self.at = end + 1
            elif kind in ("num", "word", "cmd"):
                self.at += 1
            else:
                raise NotAnExpression("an empty subscript")
            name = f"{name}_{text}"
        while self.take("'"):
            name += "'"
        return ("sym", name)

    def command(self, name: str, depth: int, stop: str) -> Node:
        if name in ("frac", "binom"):
            return ("div" if name == "frac" else name, self.group_or_token(depth), self.group_or_token(depth))
        if name == "sqrt":
            return self.square_root(depth)
        if name in ("pi", "infty"):
            return ("sym", name)
        if name in GREEK:
            return self.symbol(name, depth)
        if name in FUNCTIONS:
            return self.function(name, depth, stop)
        raise NotAnExpression(f"the command {name!r}")

    def square_root(self, depth: int) -> Node:
        index: Node = ("num", Fraction(2))
        if self.take("["):
            index = self.sum(depth + 1)
            self.expect("]")
        kind, text = self.peek()
        if kind == "num":
            self.at += 1
            return ("root", index, ("num", number_value(text)))
        return ("root", index, self.primary(depth + 1, ""))

    def group_or_token(self, depth: int) -> Node:
        """The argument of a LaTeX command: a braced group, or one digit or token."""
        kind, text = self.peek()
        if kind == "num" and len(text) > 1 and text.isdigit():
            self.tokens[self.at] = (kind, text[1:])
            return ("num", Fraction(int(text[0])))
        if kind == "op" and text not in ("{", "("):
            raise NotAnExpression("an argument is missing")
        return self.primary(depth + 1, "")

    def function(self, name: str, depth: int, stop: str) -> Node:
        base = self.group_or_token(depth) if name == "log" and self.take("_") else None
        exponent = self.power(depth + 1, stop) if self.take("^") else None
        argument = self.argument(depth, stop)
        if base is not None:
            node: Node = ("log", base, argument)
        elif exponent == ("neg", ("num", Fraction(1))):
            node, exponent = ("fn", "arc" + name, argument), None
        else:
            node = ("fn", name, argument)
        return node if exponent is None else ("pow", node, exponent)

    def argument(self, depth: int, stop: str) -> Node:
        if self.peek()[1] in ("(", "{", "["):
            return self.postfix(self.primary(depth + 1, stop))
        node = self.power(depth + 1, stop)
        while self.starts_factor(stop) and self.peek()[1].lstrip("\\") not in FUNCTIONS and self.peek()[0] != "op":
            node = ("mul", node, self.power(depth + 1, stop))
        return node
