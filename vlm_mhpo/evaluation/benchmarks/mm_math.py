"""MM-MATH: middle school problems; the boxes of the response are judged as OlympiadBench judges, within 0.01.

Their judge is OlympiadBench's with other notation taken off, chains of inequalities as intervals, and the gold first.
"""

from __future__ import annotations

import re

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.olympiadbench import contents_of, same_parts
from vlm_mhpo.evaluation.benchmarks.shared import BOXED, axes, bare, pictured, question, verdict
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official

_PRECISION = (1e-2,)
_UNITS = ("\\text{cm}^2", "\\text{cm}", "\\,cm", "\\text{ cm}", "cm", "\\text{分米}^2", "\\ \\text{m}", "\\text{米}")
_REPLACED = {"\\left": "", "\\right": "", "厘米": "", "，": ",", "$": "", "（": "(", "）": ")",
             "\\colon ": ":", "＋": "+", "\\, ": "", "\\,": "", "^\\circ": "", "^{\\circ}": ""}  # fmt: skip
_STRIPPED = "\n,.:;^_=+`!@#%^&*~，。"
_METRE = re.compile(r"(.+)m$")
_DEGREES = re.compile(r"(\\sin|\\cos|\\tan)(\d+)")
_FONT = re.compile(r"\\(?:mathrm|mathbf)\{~?([^}]*)\}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]+")
_MAX_CHARS = 20_000


def prompt(row: Row) -> str:
    """The question alone."""
    return pictured(row, bare(question(row)))


def official(row: Row, response: str) -> Official:
    """Every part of the solution's boxes pairs with one of the response's; without a box nothing is right."""
    right, answer = contents_of(row.solution or f"\\boxed{{{row.answer}}}"), contents_of(response)
    if "\\boxed{" not in response or right is None or answer is None or len(answer) > _MAX_CHARS:
        return verdict(False, None)
    left, other = _prepared(right), _prepared(answer)
    try:
        correct = left == other or same_parts(_mathematics(left), _mathematics(other), _PRECISION)
    except RecursionError:
        correct = False
    return verdict(correct, answer.rstrip(","))


def _prepared(text: str) -> str:
    for unit in _UNITS:
        text = text.replace(unit, "")
    text = _METRE.sub(r"\1", text.strip())
    if "\\in " in text:
        text = text.split("\\in ")[1]
    for old, new in _REPLACED.items():
        text = text.replace(old, new)
    text = text.replace("()", "")  # what a unit in brackets leaves
    return _FONT.sub(r"\1", _DEGREES.sub(r"\1((\2/180)\\pi)", text).strip(_STRIPPED))


def _mathematics(text: str) -> str:
    """Without Chinese words, unless it is one; `a<x<b` as the interval that it is."""
    text = text if _CHINESE.fullmatch(text) else _CHINESE.sub("", text)
    parts = text.split("<")
    return f"({parts[0]}, {parts[-1]})" if len(parts) == 3 else text


BENCHMARK = Benchmark(
    name="mm_math",
    title="MM-MATH",
    citation="arXiv:2404.05091",
    splits=("test",),
    sources=(),
    download="put MM_Math.jsonl of the data set THU-KEG/MM_Math and the images of its archive into {folder} (the "
    "authors' code is github.com/kge-sun/MM-Math)",
    prompt=prompt,
    official=official,
    instruction=BOXED,
    deviation="the authors publish no prompt, so a box is asked for; their sympy is replaced as in OlympiadBench",
    categories=axes("year", "knowledge", difficulty="difficult"),
)
