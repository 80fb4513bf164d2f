"""DynaMath: variants of seed questions; answers as JSON with a short answer, average and worst-case accuracy."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence

from data_prep import Row
from rewards.response import extract
from vlm_mhpo.evaluation.benchmarks.shared import bare, gold, pictured, verdict
from vlm_mhpo.evaluation.benchmarks.types import ALL, Benchmark, Judged, Official
from vlm_mhpo.evaluation.benchmarks.values import plain_float

_TOLERANCE = 0.001
_GUIDE = (
    "\n## Answer Instruction Please provide an answer to the question outlined above. Your response should adhere \n"
    "to the following JSON format, which includes two keys: 'solution' and 'short answer'. The 'solution' key can "
    "contain \ndetailed steps needed to solve the question, and the 'short answer' key should provide a concise "
    "response. If the problem is a multiple choice problem, just provide the corresponing choice option, \n"
    "such as 'A', 'B', 'C', or 'D'. If the answer is a numerical value, format it as a three-digit floating-point "
    "number.\n\nExample of expected JSON response format:\n\n"
    '{\n    "solution": "[Detailed step-by-step explanation]",\n    "short answer": "[Concise Answer]"\n}'
)


def prompt(row: Row) -> str:
    """The authors' wording, its misspelling and line ends included."""
    ends = "Please answer in a floating-point number." if row.metadata["answer_type"] == "float" else ""
    return pictured(row, f"## Question\n{bare(str(row.metadata['question']))}{ends}{_GUIDE}")


def official(row: Row, response: str) -> Official:
    """Numbers within 0.001 of the gold; the letter alone or among the first three characters; else the gold's text."""
    answer, right = _short_answer(response), gold(row)
    answer_type = row.metadata["answer_type"]
    if answer_type == "float":
        value, wanted = _float(answer), plain_float(right)
        # The difference of two decimals that are 0.001 apart may exceed it by a rounding error, in their script too.
        correct = value is not None and wanted is not None and abs(value - wanted) <= _TOLERANCE
    elif answer_type == "multiple choice":
        correct = right in answer[:3]
    else:
        correct = right in answer
    return verdict(correct, answer)


def _short_answer(response: str) -> str:
    """The "short answer" of the JSON object in a response; of a response without one, the answer our rules find."""
    start, end = response.find("{"), response.rfind("}")
    if 0 <= start < end:
        try:
            # The authors drop every backslash: LaTeX is rarely escaped as JSON asks.
            found = json.loads(response[start : end + 1].replace("\\", ""), strict=False)
        except (ValueError, RecursionError):
            found = None
        if isinstance(found, dict):
            return str(found.get("short answer", ""))
    return (extract(response).answer or "").strip()


def _float(answer: str) -> float | None:
    """What stands before the first space as a number, perhaps with a factor of pi behind it."""
    word = answer.split(" ")[0]
    before, pi, _ = word.partition("π")
    value = plain_float(before)
    return value * math.pi if pi and value is not None else value


def problem(row: Row) -> str:
    """The seed question."""
    return str(row.metadata["question_id"])


def select(rows: list[Row]) -> list[Row]:
    """The authors' trials where a folder holds some: its dataset.json is one more drawing, which they do not score."""
    trials = [row for row in rows if str(row.metadata["variant"]).startswith("trial")]
    return trials or rows


def aggregate(judged: Sequence[Judged]) -> dict[str, float]:
    """Average accuracy, worst case (a seed question counts if all its variants are right) and their quotient.

    With several samples of a row the worst case is that of each sample, averaged.
    """
    if not judged:
        return {}
    variants: dict[tuple[int, str], list[bool]] = defaultdict(list)
    for one in judged:
        variants[one.sample, problem(one.row)].append(one.correct)
    average = sum(one.correct for one in judged) / len(judged)
    worst = sum(all(answers) for answers in variants.values()) / len(variants)
    return {
        "average": average,
        "worst_case": worst,
        "reasoning_robustness": worst / average if average else 0.0,
    }


BENCHMARK = Benchmark(
    name="dynamath",
    title="DynaMath",
    citation="arXiv:2411.00836",
    splits=(ALL,),
    sources=tuple(f"DynaMath/DynaMath_Sample@sample_variant{number}" for number in range(1, 11)),
    download="download the data set DynaMath/DynaMath_Sample (ten variants), or clone github.com/DynaMath/DynaMath "
    "with its trials, to {folder}",
    prompt=prompt,
    official=official,
    deviation="of a response without the JSON object the authors take the last line without its last character (other "
    "harnesses ask a language model); our rules read its declared answer here",
    categories=lambda row: {
        "subject": str(row.metadata.get("subject", "")),
        "level": str(row.metadata.get("level", row.metadata.get("knowledge_level", ""))),
        "answer_type": str(row.metadata["answer_type"]),
    },
    problem=problem,
    aggregate=aggregate,
    select=select,
)
