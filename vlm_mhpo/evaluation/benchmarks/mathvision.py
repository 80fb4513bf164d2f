"""MATH-Vision: competition problems; the authors' way to cut out an answer and to compare it with letter and text.

Their script evaluates LaTeX with latex2sympy and rounds to two decimals; here our own grammar does.
"""

from __future__ import annotations

import re
from itertools import chain

from data_prep import Row
from rewards.answers import MAX_ANSWER_CHARS
from vlm_mhpo.evaluation.benchmarks.shared import LETTERS, axes, choices, gold, lettered, pictured, question, verdict
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official
from vlm_mhpo.evaluation.benchmarks.values import as_sympy_reads, constant, plain_float

_ASKED = (
    'Please solve the problem step by step and put your answer in one "\\boxed{}". If it is a multiple choice '
    'question, only one letter is allowed in the "\\boxed{}".\n'
)
_FLAGS = ("the final answer is", "the answer is", "the correct answer is", "the answer should be")
_LOST = ("\\,", "\n", "\\text", "\\mbox", "\\left", "\\right", "^{\\circ}", "^\\circ", "{m}^3", "m^3", "{units}",
         "units", "{km}", "km")  # fmt: skip
_LOST_LATER = ("\\!", "^{\\circ}", "^\\circ", "\\$", "$")
_PLAIN_FRACTION = re.compile(r"(-?\d+)/(-?\d+)")
# What their parser, or the evaluation of its result, ends in an error on.
_UNREAD = re.compile(
    r"\\circ|°|(?<!\\)%|\||\*\*|\^-|\\frac(?:[^{]|\{[^{}]*\}[^{])|\\sqrt\[|\\log_\d\d|\\(?:ln|lg|mathrm|overline)\b"
    r"|(?<!\\)sqrt|\\\)"
)
# What makes a value a decimal there, so that an item of a tuple is written 2.0 and not 2.
_INEXACT = re.compile(r"\\frac|/|:|\\sqrt|\\pi|\\sin|\\cos|\\tan|\\log|e")
_DECIMALS = 2
_DISPLAYED = "ABCDE"


def prompt(row: Row) -> str:
    """The authors' wording; choices that stand in the image (A to E for A to E) are not listed."""
    options = choices(row)
    listed = f"{lettered(options)}\n" if options and "".join(options) != _DISPLAYED else ""
    return _ASKED + f"{pictured(row, question(row))}\n{listed}"


def official(row: Row, response: str) -> Official:
    """Right if the answer equals the gold or the text of the choice that the gold names."""
    answer, right, options = model_answer(response), gold(row).strip(), choices(row)
    texts = [right]
    if options and right in list(LETTERS[: len(options)]):
        texts.append(options[LETTERS.index(right)])
    return verdict(any(_is_equal(text, answer) for text in texts), answer)


def model_answer(response: str) -> str:
    """The answer as the authors cut and normalise it: lower case, no spaces."""
    text = response.strip()
    for letter in _DISPLAYED:
        starts = (f"{letter}\n", f"({letter})\n", f"({letter}) {letter}\n")
        if text.endswith((f" {letter}.", f" ({letter}).")) or text.startswith(starts):
            text = letter
    last_word = text.split("is ")[-1].rstrip(".")
    if plain_float(last_word) is not None:
        text = last_word
    if "oxed{" not in text:
        text = _after_flags(text)
    elif text.count("oxed{") > 1:
        text = "\\boxed{" + text.split("oxed{")[-1]
    answer = _normalised(_in_box(text.lower().replace("{}", "")))
    for letter in _DISPLAYED.lower():
        answer = answer.replace(f"({letter})", letter).replace(f"{{{letter}}}", letter)
    return answer.rstrip(".").lstrip(":").strip()


def _after_flags(text: str) -> str:
    for flag in chain.from_iterable((flag, flag.replace("the", "The")) for flag in _FLAGS):
        if flag in text:
            text = text.split(flag)[-1].strip().split("\n")[0].split(". ")[0]
    return text


def _in_box(text: str) -> str:
    """From the first box to the last closing brace, and of that what stands before a brace that closes nothing."""
    start = text.find("oxed{")
    end = text.rfind("}")
    if start >= 0 and end >= start + len("oxed{"):
        text = text[start + len("oxed{") : end]
    closing, opening = text.find("}"), text.find("{")
    return text[:closing] if closing >= 0 and (opening < 0 or closing < opening) else text


def _normalised(text: str) -> str:
    text = text.split("=")[-1].split("\\approx")[-1].replace(" ", "").replace("∞", "\\infty")
    # Lost spaces bring backslashes together, so they are halved after them.
    text = text.replace("+\\infty", "\\infty").replace("\\\\", "\\").replace("bmatrix", "pmatrix")
    for lost in _LOST:
        text = text.replace(lost, "")
    text = text.replace("\\\\", "\\").replace("tfrac", "frac").replace("dfrac", "frac")
    for lost in _LOST_LATER:
        text = text.replace(lost, "")
    text = text.replace("\\%", "").replace("{.", "{0.")
    if text.startswith("."):
        text = f"0{text}"
    if text == "0.5":
        return "\\frac{1}{2}"
    fraction = _PLAIN_FRACTION.fullmatch(text)
    return f"\\frac{{{fraction[1]}}}{{{fraction[2]}}}" if fraction else text


def _is_equal(right: str, answer: str) -> bool:
    right, answer = right.lower(), answer.lower()
    if not right.replace(" ", "") or not answer.replace(" ", ""):
        return False
    if right.strip() == answer.strip():
        return True
    if len(answer) > MAX_ANSWER_CHARS:  # nothing so long is a value
        return False
    if _rounded_items(right) == _rounded_items(answer):
        return True
    left, other = _value(right), _value(answer)
    return left is not None and other is not None and round(left, _DECIMALS) == round(other, _DECIMALS)


def _rounded_items(text: str) -> str:
    """A tuple or list with its items rounded, whole numbers as 2 and others as 2.0; any other text as it is."""
    items = text[1:-1].split(",")
    if len(items) < 2 or text[0] + text[-1] not in ("()", "[]"):
        return text
    rounded = []
    for item in items:
        value = None if "infty" in item or item in ("a", "-a") else _value(item)
        if value is None and not ("infty" in item or item in ("a", "-a")):
            return text
        rounded.append(item if value is None else _rounded(item, value))
    return f"{text[0]}{','.join(rounded)}{text[-1]}"


def _rounded(item: str, value: float) -> str:
    return str(round(value, _DECIMALS) if _INEXACT.search(item) or not value.is_integer() else int(value))


def _value(text: str) -> float | None:
    text = as_sympy_reads(_before_stray_brace(text))
    # A lone letter is a choice's name there, also e.
    if text is None or text.strip().isalpha() or _UNREAD.search(text):
        return None
    top, colon, bottom = text.replace("$", "").partition(":")
    if not colon:
        return constant(text)
    left, right = constant(top), constant(bottom)  # a colon divides there
    return left / right if left is not None and right else None


def _before_stray_brace(text: str) -> str:
    """Their parser reads up to a brace that closes nothing, and says nothing about the rest."""
    depth = 0
    for index, char in enumerate(text):
        depth += (char == "{") - (char == "}")
        if depth < 0:
            return text[:index]
    return text


BENCHMARK = Benchmark(
    name="mathvision",
    title="MATH-Vision",
    citation="arXiv:2402.14804",
    splits=("test", "testmini"),
    sources=("MathLLMs/MathVision@test",),
    download="download the data set MathLLMs/MathVision, or clone github.com/mathllm/MATH-V with its images, "
    "to {folder}",
    prompt=prompt,
    official=official,
    deviation="answers in LaTeX are evaluated by our own grammar instead of latex2sympy",
    categories=axes("subject", "level"),
)
