"""The reader of tags and boxes: equal to a slow plain reference, and linear in the length of the text."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rewards import format_score, verify
from rewards.response import find_boxes

PIECES = [
    "<think>",
    "</think>",
    "<answer>",
    "</answer>",
    " ",
    "\n",
    "7",
    "x",
    "\\boxed{",
    "\\boxed{7}",
    "}",
    "{",
    "\\}",
]
TEXTS = st.lists(st.sampled_from(PIECES), max_size=14).map("".join)


def reference_think_answer(text):
    """The rule in one (quadratic) regular expression, plus counts."""
    text = text.strip()
    if any(text.count(tag) != 1 for tag in ("<think>", "</think>", "<answer>", "</answer>")):
        return False
    match = re.fullmatch(r"<think>.*</think>\s*<answer>(.*)</answer>", text, re.DOTALL)
    return bool(match and match.group(1).strip())


def reference_boxes(text):
    """Outermost closed boxes, by trying every start and counting braces."""
    boxes, position = [], 0
    while (start := text.find("\\boxed{", position)) >= 0:
        depth, at = 0, start + len("\\boxed")
        while at < len(text):
            if text[at] == "\\":
                at += 2
                continue
            depth += {"{": 1, "}": -1}.get(text[at], 0)
            at += 1
            if depth == 0:
                break
        if depth or text[at - 1] != "}":
            return boxes, True
        boxes.append((start, at, text[start + len("\\boxed{") : at - 1]))
        position = at
    return boxes, False


@settings(max_examples=2500, deadline=None, derandomize=True)
@given(TEXTS)
def test_format_of_tags_agrees_with_the_reference(text):
    assert format_score(text, "think_answer") == reference_think_answer(text)


@settings(max_examples=2500, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from([p for p in PIECES if p[0] != "<"]), max_size=14).map("".join))
def test_boxes_agree_with_the_reference(text):
    assert find_boxes(text) == reference_boxes(text)


MARKED = ["<|begin_of_box|>", "<|end_of_box|>", "7", "x", "\\{", " "]


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(st.lists(st.sampled_from(MARKED), max_size=14).map("".join))
def test_a_box_in_marks_is_one_in_braces(text):
    (found, is_open), (boxes, stays_open) = (
        find_boxes(text),
        reference_boxes(text.replace(MARKED[0], "\\boxed{").replace(MARKED[1], "}")),
    )
    # The reference stops at a box that stays open; what stood before it is the same.
    contents = [content.replace(MARKED[0], "\\boxed{").replace(MARKED[1], "}") for _, _, content in found]
    assert is_open == stays_open and contents[: len(boxes)] == [content for _, _, content in boxes]
    assert all(text[start:end] == f"{MARKED[0]}{content}{MARKED[1]}" for start, end, content in found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("<|begin_of_box|>{1<|end_of_box|>", ([(0, 32, "{1")], False)),
        ("<|begin_of_box|>}1<|end_of_box|>", ([(0, 32, "}1")], False)),
        ("{<|end_of_box|>}", ([], False)),
        ("<|begin_of_box|>\\boxed{7<|end_of_box|>", ([], True)),
    ],
)
def test_a_brace_between_the_marks_of_a_box_needs_no_partner(text, expected):
    assert find_boxes(text) == expected


@pytest.mark.parametrize(
    ("text", "template", "kept"),
    [
        ("<think>a</think><answer>7</answer>", "think_answer", True),
        ("  <think>\na\n</think>\n\n<answer>\n7\n</answer>\n", "think_answer", True),
        ("<think></think><answer>7</answer>", "think_answer", True),
        ("<think>a</think> so <answer>7</answer>", "think_answer", False),
        ("<think>a</think><answer>7</answer> done", "think_answer", False),
        ("Hi <think>a</think><answer>7</answer>", "think_answer", False),
        ("<think>a</think><answer> \u200b </answer>", "think_answer", False),
        ("<think>a<answer>7</answer></think><answer>7</answer>", "think_answer", False),
        ("<THINK>a</THINK><answer>7</answer>", "think_answer", False),
        ("<answer>7</answer><think>a</think>", "think_answer", False),
        ("<think>a</think> so \\boxed{7}.", "think_boxed", True),
        ("<think>a</think> so \\boxed{}", "think_boxed", False),
        ("<think>a</think> so \\boxed{7", "think_boxed", False),
        ("<think>\\boxed{7}</think> so 7", "think_boxed", False),
        ("so \\boxed{7}", "think_boxed", False),
        ("x <think>a</think> \\boxed{7}", "think_boxed", False),
        ("<think>a</think><think>b</think>\\boxed{7}", "think_boxed", False),
        ("so \\boxed{7}", "boxed", True),
        ("<think>a</think>\\boxed{\\frac{1}{2}}", "boxed", True),
        ("<think>a \\boxed{7}", "boxed", False),
        ("no box", "boxed", False),
    ],
)
def test_format_is_kept_only_by_the_whole_response(text, template, kept):
    assert format_score(text, template) is kept


def test_a_template_without_a_form_is_refused_by_name():
    with pytest.raises(ValueError, match="'bare'"):
        format_score("7", "bare")


HOSTILE = [
    "</think><answer>", "<think>", "<answer></answer>", "\\boxed{", "\\boxed{}", "<!--", "\\boxed ", "{}", "answer is ",
    "\\boxed{7},", "**", "= ", "is 7. ", "\n", " ", "The answer", "final answer: ", "(((", "}", "\\", "$",
    "<think></think>", "\\[", "the answer is ", "是", "   ",
]  # fmt: skip


def _cpu_seconds(text, template):
    """Processor time of one reading: the best of three, so that other processes count as little as may be."""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        verify(text, "7", template=template)
        if template != "auto":
            format_score(text, template)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.parametrize("shape", HOSTILE)
def test_reading_time_grows_linearly(shape):
    for template in ("think_answer", "think_boxed", "auto"):
        for before in ("<think>", ""):
            small, large = (before + shape * (size // len(shape)) for size in (2**16, 2**20))
            # Sixteen times the text may take at most forty times as long; a quadratic reader takes 256 times. The
            # constant is far below what one quadratic pass over a megabyte costs.
            assert _cpu_seconds(large, template) <= 40 * _cpu_seconds(small, template) + 0.02
