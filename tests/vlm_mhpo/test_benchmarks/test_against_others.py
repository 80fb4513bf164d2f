"""The authors' rules against independent implementations, and on random text."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import find
from vlm_mhpo.evaluation.benchmarks.mathvista import edit_distance
from vlm_mhpo.evaluation.benchmarks.olympiadbench import judge

EXPRESSIONS = (
    r"\frac{1}{2}", "0.5", r"\sqrt{2}", "1.41421356237", r"\frac{\sqrt{8}}{2}", "2^{10}", "1024", r"2\pi",
    "6.28318530718", "x+1", "1+x", "x^2-1", "(x-1)(x+1)", r"\sin x", r"\cos x", r"\frac{n(n+1)}{2}", "n^2/2+n/2",
    r"\log_2 8", "3", "-3", r"\frac{6}{2}", r"1\times 10^3", r"10^{3}", r"\frac{a}{b}", "a/b", "2n-1", "2k-1",
)  # fmt: skip


@pytest.mark.full
def test_expressions_are_judged_as_a_symbolic_engine_judges_them():
    sympy = pytest.importorskip("sympy")
    engine = pytest.importorskip("latex2sympy2_extended")
    values = {text: engine.latex2sympy(text) for text in EXPRESSIONS}

    def same(left, right):
        if bool(left.free_symbols) != bool(right.free_symbols):
            return False
        difference = sympy.simplify(left - right)
        if left.free_symbols:
            return difference == 0
        return abs(sympy.N(difference)) <= 1e-8 * 1.01

    different = [
        (a, b)
        for a, b in itertools.combinations(EXPRESSIONS, 2)
        if judge(a, b) != same(values[a], values[b]) or judge(b, a) != judge(a, b)
    ]
    assert different == []


@given(st.text("ab(", max_size=6), st.text("ab(", max_size=6))
@settings(max_examples=80, deadline=None)
def test_the_edit_distance_against_its_recursive_definition(a, b):
    def distance(i, j):
        if not i or not j:
            return i + j
        if a[i - 1] == b[j - 1]:
            return distance(i - 1, j - 1)
        return 1 + min(distance(i - 1, j), distance(i, j - 1), distance(i - 1, j - 1))

    assert edit_distance(a, b) == distance(len(a), len(b))


PIECES = st.sampled_from([
    "The answer is ", "Answer: ", "(A)", "(B)", "B", " E.", "7", "-1.5", "1,000", "\\boxed{", "}", "{", "$", "=",
    '{"short answer": "', '"}', "\\frac{1}{2}", "^\\circ", "[", "]", ",", ":", "#### ", "<answer>", "</answer>", "\\pm",
    "\n", "not", "two", "\x00", "\u0661", "∞", "π", "%", "is ", "</think>", "\\cup", "\\in ", "!",
])  # fmt: skip
ROWS = {
    "mathvista": [
        made("Yes", ["Yes", "No"], question_type="multi_choice", answer_type="text"),
        made("7", question_type="free_form", answer_type="integer"),
        made("1.5", question_type="free_form", answer_type="float", precision=1),
        made("[1, 2]", question_type="free_form", answer_type="list"),
    ],
    "mathvision": [made("B", ["$1$", "$\\frac{1}{2}$"]), made("7")],
    "dynamath": [
        made("7", answer_type="float"),
        made("B", answer_type="multiple choice"),
        made("x", answer_type="text"),
    ],
    "we_math": [made("B", ["1", "2"])],
    "puzzlevqa": [made("2", ["1", "2"])],
    "logicvista": [made("A, B", kind="choice", question="?"), made("7", question="?")],
    "gsm8k": [made("7")],
}


@pytest.mark.parametrize("name", ROWS)
@given(pieces=st.lists(PIECES, max_size=12))
@settings(max_examples=60, deadline=None)
def test_no_response_raises_and_the_same_response_gets_the_same_verdict(name, pieces):
    response, official = "".join(pieces), find(name).official
    for row in ROWS[name]:
        assert official(row, response) == official(row, response)
