"""Readers and comparisons of answers, one file per kind; what the rules of benchmarks need of them stands here."""

from rewards.answers.choice import read_choices
from rewards.answers.equality import Undecided, same_value, symbols, to_number, to_ratio
from rewards.answers.exact import proportional
from rewards.answers.grammar import Node, NotAnExpression, parse_expression
from rewards.answers.notation import clean
from rewards.answers.number import constant_value
from rewards.workers.limits import MAX_ANSWER_CHARS, TooLarge, check_size

__all__ = [
    "MAX_ANSWER_CHARS",
    "Node",
    "NotAnExpression",
    "TooLarge",
    "Undecided",
    "check_size",
    "clean",
    "constant_value",
    "parse_expression",
    "proportional",
    "read_choices",
    "same_value",
    "symbols",
    "to_number",
    "to_ratio",
]
