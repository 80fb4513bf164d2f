"""CharXiv, reasoning questions about charts of papers: official prompts, and rules in the place of GPT-4o."""

from __future__ import annotations

import math
import re
import unicodedata

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks import judging
from vlm_mhpo.evaluation.benchmarks.shared import axes, bare, by_verifier, pictured, question, verdict
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Official
from vlm_mhpo.evaluation.benchmarks.values import constant

_ENDS = {
    1: "    * Your final answer must be grounded to some text that is explicitly written and relevant to the "
    "question in the chart.\n    * If you need to answer multiple terms, separate them with commas.\n    * Unless "
    "specified in the question (such as answering with a letter), you are required to answer the full "
    "names of subplots and/or labels by default.\n    ",
    2: "    * If there are options in the question, your final answer must conform to one of the options.\n    * If "
    "there are additional instructions in the question, follow them accordingly.\n    * If there are neither options "
    "nor additional instructions, you are allowed to respond with a short phrase only.\n    ",
    3: "    * Your final answer must be grounded to a number that is exlicitly written and relevant to the question in "
    "the chart, even if it's an approximate value.\n    * You are allowed to extract numbers within some text when "
    "needed.\n    ",
}
_KINDS = {1: "text in chart", 2: "text in general", 3: "number in chart", 4: "number in general"}
# What a term may be written with or without.
_DRESS = re.compile(r"[\s$\\{}_^\"'`*()]|\b(?:mathrm|text|mathbf)\b")


def prompt(row: Row) -> str:
    """The authors' wording by kind of answer; of a general number the decimals of the gold are asked for."""
    category = _category(row)
    ends = _ENDS.get(category) or f"    {_number_form(row.answer)}\n    "
    return pictured(row, f"{bare(question(row))}\n{ends}")


def _number_form(answer: str) -> str:
    decimals = answer.split(".")[1:]
    if not decimals:
        return "* Your final answer must be an exact integer."
    return f"* Your final answer must be a number with {len(decimals[0])} decimal places."


def official(row: Row, response: str) -> Official:
    """The number is the gold's; or the terms of the text are the gold's, in any order and dress."""
    if _category(row) > 2:
        score = by_verifier(row, response)
        return score if _is_exact(row.answer, score.extracted) else Official(False, score.extracted)
    # "N = 1" as a whole line is a name in a chart; what is declared is the side behind the sign.
    last_line = response.strip().rpartition("\n")[2]
    answer = extract(response).answer or last_line
    right = _terms(row.answer)
    return verdict(right in (_terms(answer), _terms(last_line)) and right != [], answer)


def _is_exact(gold: str, answer: str | None) -> bool:
    """Whether two numbers are equal and not only when rounded; whatever is no number is left to the verifier."""
    right, value = constant(gold), constant(answer or "")
    return right is None or value is None or math.isclose(right, value, rel_tol=1e-9)


def _terms(text: str) -> list[str]:
    text = "".join(_latin(char) for char in text.lower())
    terms = [_DRESS.sub("", term).rstrip(".") for term in text.split(",")]
    return sorted(term for term in terms if term)


def _latin(char: str) -> str:
    """A Greek letter by its name, as LaTeX writes it."""
    name = unicodedata.name(char, "")
    return name.rpartition(" ")[2].lower() if name.startswith("GREEK SMALL LETTER") else char


def _category(row: Row) -> int:
    return int(str(row.metadata.get("inst_category", 1)))


def _categories(row: Row) -> dict[str, str]:
    return {"answer_type": _KINDS[_category(row)], **_OTHERS(row)}


_OTHERS = axes(subject="category", source="qa_source")

BENCHMARK = Benchmark(
    name="charxiv",
    title="CharXiv (reasoning)",
    citation="arXiv:2406.18521",
    splits=("validation",),
    sources=("princeton-nlp/CharXiv@validation",),
    download="download the data set princeton-nlp/CharXiv, or clone github.com/princeton-nlp/CharXiv and unpack its "
    "images to images/, to {folder}",
    prompt=prompt,
    official=official,
    deviation="GPT-4o extracts and scores there (eval.judge takes its place); numbers are compared by value here and "
    "texts term by term, so that a "
    "paraphrase counts as wrong and the score of texts is a rule-only lower bound",
    categories=_categories,
    judge=judging.CHARXIV,
)
