"""Any text at all: no exception, one verdict, the same one twice."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import Verdict, format_score, verify

TEMPLATES = ("auto", "think_answer", "think_boxed", "boxed", "bare")
# Gold, and the options that make it a case of its own route.
GOLDS = [
    ("7", {}), ("\\frac{\\sqrt{3}}{2}", {}), ("(1,2]", {}), ("\\{1,2\\}", {}), ("y = 2x + 3", {}), ("25 °C", {}),
    ("\\begin{pmatrix} 1 & 2 \\\\ 3 & 4 \\end{pmatrix}", {}), ("1011_2", {}), ("x^2 + 2x + 1", {}), ("4:09", {}),
    ("yes", {}), ("S 23.5° W", {}), ("B", {"choices": ("12", "\\frac{1}{2}", "a red cube", "12")}),
    ("3.14", {"precision": 2}), ("5", {"unit": "cm"}), ("7", {"kind": "number"}), ("7", {"kind": "text"}),
]  # fmt: skip
WORDS = [
    "7", "12", "0", "1e9", ".5", "-", "+", "*", "/", "^", "_", "=", "<", ">", "!", "%", "°", ":", ";", ",", "|", "&",
    "(", ")", "[", "]", "{", "}", "\\{", "\\}", "\\", "\\\\", "$", "$$", "\\frac", "\\sqrt", "\\pi", "\\pm", "\\infty",
    "\\cup", "\\le", "\\ne", "\\in", "\\mathbb{R}", "\\setminus", "\\text{", "\\left(", "\\right)", "\\det",
    "\\begin{pmatrix}", "\\end{pmatrix}", "\\begin{vmatrix}", "\\end{vmatrix}", "\\langle", "\\rangle", "\\binom",
    "\\boxed{", "\\fbox", "<answer>", "</answer>", "<think>", "</think>", "<!--", "-->", "**", "The answer is ",
    " or ", " and ", " not ", " cm", " °F", " pm", "base 2", "A", "(B)", "C.", "x", "xy", "e", "i", "sin", "log",
    "\x00", "\x1b[0m", "\ud800", "\udfff", "\u202e", "\u2066", "\u200b", "\ufeff", "½", "²", "√", "∞", "７", "ℝ", "🙂",
    "\n", "\r", "\t", " ", "<|im_end|>", "<|begin_of_box|>", "<|end_of_box|>", "None",
]  # fmt: skip
LARGEST = 2**16


def _nested(inner):
    wraps = st.sampled_from([
        ("\\frac{", "}{2}"), ("\\sqrt{", "}"), ("(", ")"), ("[", "]"), ("x^{", "}"), ("\\{", "\\}"), ("|", "|"),
        ("\\boxed{", "}"), ("<answer>", "</answer>"), ("<think>", "</think>"), ("$", "$"), ("\\text{", "}"),
        ("\\begin{pmatrix}", "\\end{pmatrix}"), ("log_{", "} 8"), ("(", ")_2"),
    ])  # fmt: skip
    return st.tuples(wraps, inner).map(lambda pair: pair[0][0] + pair[1] + pair[0][1])


PIECES = st.recursive(st.one_of(st.sampled_from(WORDS), st.text(max_size=4)), _nested, max_leaves=6)
SHORT = st.lists(PIECES, max_size=8).map("".join)
LONG = st.tuples(st.sampled_from(WORDS), st.integers(1, LARGEST), SHORT).map(
    lambda parts: (parts[0] * (parts[1] // len(parts[0])))[:LARGEST] + parts[2]
)
TEXTS = st.one_of(SHORT, SHORT, SHORT, SHORT.map(lambda text: f"<think>q</think><answer>{text}</answer>"), LONG)


def _check(text, gold, template):
    answer, options = gold
    first = verify(text, answer, template=template, **options)
    assert first.verdict in set(Verdict) - {Verdict.bad_gold, Verdict.worker_lost}
    assert first.correct == (first.verdict == Verdict.correct)
    assert first.reason
    # A worker's timeout depends on the machine; every other verdict is a function of the text.
    if first.verdict != Verdict.timeout:
        again = verify(text, answer, template=template, **options)
        assert again == first or again.verdict == Verdict.timeout
    if template not in ("auto", "bare"):
        assert format_score(text, template) in (True, False)


@settings(max_examples=2_000)
@given(TEXTS, st.sampled_from(GOLDS), st.sampled_from(TEMPLATES))
def test_two_thousand_texts_get_the_same_verdict_twice_and_never_raise(text, gold, template):
    _check(text, gold, template)


@pytest.mark.full
@pytest.mark.timeout(600)
@settings(max_examples=20_000)
@given(TEXTS, st.sampled_from(GOLDS), st.sampled_from(TEMPLATES))
def test_twenty_thousand_texts_get_the_same_verdict_twice_and_never_raise(text, gold, template):
    _check(text, gold, template)


@pytest.mark.long
@pytest.mark.timeout(3600)
@settings(max_examples=200_000, derandomize=False, print_blob=True)
@given(TEXTS, st.sampled_from(GOLDS), st.sampled_from(TEMPLATES))
def test_two_hundred_thousand_new_texts_get_the_same_verdict_twice_and_never_raise(text, gold, template):
    _check(text, gold, template)


@settings(max_examples=500)
@given(SHORT)
def test_any_text_as_a_gold_is_a_verdict(gold):
    score = verify("<think>q</think><answer>7.5 kg</answer>", gold)
    assert score.correct == (score.verdict == Verdict.correct)
