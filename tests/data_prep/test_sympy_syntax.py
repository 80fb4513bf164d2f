"""sympy's syntax to LaTeX, against sympy's own printer."""

import pytest
import sympy

from data_prep.formats.sympy_syntax import to_latex
from data_prep.schema import DataError


@pytest.mark.parametrize(
    "expression",
    [
        "12", "-72", "27/5", "-27/5", "5*sqrt(3)", "-5*sqrt(3)", "9*pi", "pi/4", "2*sqrt(2)/5", "29*sqrt(133)/2",
        "4*sqrt(3)+4*sqrt(6)+52", "-1/2+sqrt(33)/2", "-72+72*pi", "80-8*pi", "266*pi/5", "sqrt(690)/5", "8.5",
        "sqrt(2*sqrt(3)+7)", "tan(35)", "3*sin(40)", "sqrt(3)*pi", "-sqrt(3)", "sin(pi/7)", "3+4*I",
        "sqrt(3)*I/2", "-4*I", "-1/2+sqrt(3)*I/2", "+".join(f"{n}*sqrt({n}+pi)" for n in range(2, 60)),
    ],
)  # fmt: skip
def test_answers_are_spelled_as_sympy_spells_them(expression):
    with sympy.evaluate(False):
        parsed = sympy.sympify(expression)
    # Evaluated or not, sympy must have this spelling for the value.
    assert to_latex(expression) in (sympy.latex(sympy.sympify(expression), order="none"), sympy.latex(parsed),
                                    sympy.latex(sympy.sympify(expression)))  # fmt: skip


@pytest.mark.parametrize(
    ("expression", "latex"),
    [
        ("2*3", r"2 \cdot 3"),
        ("(1+sqrt(5))/2", r"\frac{1 + \sqrt{5}}{2}"),
        ("2*(1+sqrt(5))", r"2 \left(1 + \sqrt{5}\right)"),
        ("3**(1/2)", r"3^{\frac{1}{2}}"),
        ("(1+pi)**2", r"\left(1 + \pi\right)^{2}"),
        ("5-(2+pi)", r"5 - \left(2 + \pi\right)"),
        ("-(2+pi)", r"- \left(2 + \pi\right)"),
        ("12/5*pi", r"\frac{12 \pi}{5}"),
        ("asin(4/5)", r"\arcsin{\left(\frac{4}{5} \right)}"),
        ("1/2/3", r"\frac{1}{2 \cdot 3}"),
        (" 7 ", "7"),
        ("(3, 4)", r"\left(3, 4\right)"),
        ("((1+pi)/2, -3*I, 5)", r"\left(\frac{1 + \pi}{2}, - 3 i, 5\right)"),
        ("(1+2)*(3+4)", r"\left(1 + 2\right) \left(3 + 4\right)"),
        ("(1+I)**2", r"\left(1 + i\right)^{2}"),
    ],
)
def test_grouping_keeps_the_value(expression, latex):
    assert to_latex(expression) == latex


@pytest.mark.parametrize(
    "expression",
    ["", " ", "x", "2x", "5*", "*5", "sqrt", "sqrt(", "sqrt(2", "(2", "2)", "2,3", "1e5", "__import__('os')", "pi pi",
     "Rational(1,2)", "sqrt(2).evalf()", "[1]", "5;6", "(" * 150 + "1" + ")" * 150, "(" * 61 + "1" + ")" * 61,
     "1" + "**1" * 61, "(1,)", "(1,2", "(,1)", "((1,2),3)", "1,(2)", "(1,2)+3", "sqrt(1,2)", "()", "2I", "J", "(1,2),",
     "1+" * 5000 + "1", "\u0665"],
)  # fmt: skip
def test_anything_else_is_refused(expression):
    with pytest.raises(DataError):
        to_latex(expression)
