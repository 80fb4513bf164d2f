"""How a language model judges, where `eval.judge` names one: the authors' questions, and what counts as an answer.

An answer that is not of the form that was asked for is no verdict, so that neither a refusal nor garbage makes a
response right. `prompts/README.md` says whose the texts are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.shared import bare, gold, question, verdict
from vlm_mhpo.evaluation.benchmarks.types import JudgeRule, JudgeSteps, Official

_PLACE = re.compile(r"<\|(\w+)\|>")
# "Judgement: 1", with markdown or not.
_JUDGEMENT = re.compile(r"[\s*`]*(?:judge?ment[\s*:`]*)?([01])[\s*.`]*", re.IGNORECASE)
_YES_OR_NO = re.compile(r"[\s*`\"']*(yes|no)[\s*.`\"']*", re.IGNORECASE)
_LABEL = re.compile(r"[\s*]*(?:extracted answer|answer|letters)[\s*]*:[\s*]*", re.IGNORECASE)
_NOTHING = {"null", "none"}
# From the outermost brace to the last: the object may stand in a fence, or behind a sentence.
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


@cache
def text_of(name: str) -> str:
    """A file of `prompts`."""
    return (Path(__file__).parent / "prompts" / f"{name}.txt").read_text(encoding="utf-8")


def filled(name: str, **words: str) -> str:
    """A prompt with its places filled; a place that a filled-in text names stays as it is."""
    return _PLACE.sub(lambda place: words[place[1]], text_of(name))


def extracted(answer: str) -> str | None:
    """The answer that the judge took from a response, without the label that it may repeat; None for an empty one."""
    label = _LABEL.match(answer)
    return answer[label.end() if label else 0 :].strip() or None


def _mathverse(row: Row, response: str) -> JudgeSteps:
    """Extract the answer, then compare it with the gold."""
    taken = extracted((yield filled("mathverse_extract", response=response)))
    if taken is None:
        return None
    if taken.lower() in _NOTHING:
        return Official(False, None)
    # "Vision Only" rows have no question of their own; this is what their authors published for it.
    asked = str(row.metadata.get("question_for_eval") or row.metadata.get("question") or question(row))
    found = _JUDGEMENT.fullmatch(
        (yield filled("mathverse_score", question=bare(asked), gold=gold(row), extraction=taken))
    )
    return verdict(found[1] == "1", taken) if found else None


def _mmk12(row: Row, response: str) -> JudgeSteps:
    """Ask whether the response has the right result."""
    asked = filled("mmk12", question=bare(question(row)), gold=gold(row), response=response)
    found = _YES_OR_NO.fullmatch((yield asked))
    return verdict(found[1].lower() == "yes", None) if found else None


def _charxiv(row: Row, response: str) -> JudgeSteps:
    """Extract and score in one object; the rules depend on the category of the question's answer."""
    category = min(int(str(row.metadata["inst_category"])), 3)
    asked = filled(f"charxiv_{category}", question=bare(question(row)), gold=gold(row), response=response)
    return scored((yield asked))


def scored(answer: str) -> Official | None:
    """The verdict in {"extracted_answer": ..., "score": 0 or 1}; None for anything else."""
    found = _OBJECT.search(answer)
    try:
        said = json.loads(found[0]) if found else None
    except (ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or str(said.get("score")) not in ("0", "1"):
        return None
    taken = said.get("extracted_answer", said.get("extract_answer"))
    return verdict(str(said["score"]) == "1", None if taken is None else str(taken))


def _rule(steps: Callable[[Row, str], JudgeSteps], *names: str, source: str) -> JudgeRule:
    return JudgeRule(steps, tuple(map(text_of, names)), source)


MATHVERSE = _rule(
    _mathverse, "mathverse_extract", "mathverse_score", source="the authors' prompts (MIT): extraction, then comparison"
)
MMK12 = _rule(_mmk12, "mmk12", source="the authors' prompt (Apache 2.0)")
CHARXIV = _rule(
    _charxiv, "charxiv_1", "charxiv_2", "charxiv_3", source="the authors' prompts (Apache 2.0), by category of answer"
)
