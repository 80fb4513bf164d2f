"""We-Math: problems with their sub-problems; the last option letter, and the four-way score (strict and loose)."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Sequence

from data_prep import Row
from vlm_mhpo.evaluation.benchmarks.shared import axes, bare, choices, gold, lettered, pictured, question
from vlm_mhpo.evaluation.benchmarks.types import Benchmark, Judged, Official

_ASKED = (
    "Now, we require you to solve a multiple-choice math question. Please briefly describe your thought process and "
    "provide the final answer(option).\nQuestion: {question}\nOption: {option}\nRegarding the format, please answer "
    "following the template below, and be sure to include two <> symbols:\n"
    "<Thought process>: <<your thought process>>\n<Answer>: <<your option>>"
)
_MARKS = re.compile(r"[<>:.]")
_KEY = re.compile(r"([23])steps_(\d|multi)")


def prompt(row: Row) -> str:
    """The authors' wording."""
    option = row.metadata.get("option") or lettered(choices(row))
    return pictured(row, _ASKED.format(question=bare(question(row)), option=option))


def official(row: Row, response: str) -> Official:
    """The first letter behind the last "Answer"."""
    text = _MARKS.sub("", response.split("Answer")[-1].strip()).strip()
    letter = text[0] if text and text[0] in "ABCDEFGH" else None
    return Official(letter == gold(row).strip(), letter)


def problem(row: Row) -> str:
    """The composite problem."""
    return str(row.metadata["ID"])


def aggregate(judged: Sequence[Judged]) -> dict[str, float]:
    """The authors' scores over composite problems whose parts were all judged; several samples count as so many runs.

    A composite problem is insufficient knowledge (it and a part are wrong), inadequate generalization (only it is
    wrong), rote memorization (it is right, and strictly a part, loosely every part is wrong) or complete mastery. The
    score is 1 - insufficient - inadequate / 2 - rote; the rate of rote memorization is of the problems solved.
    """
    steps: dict[tuple[int, str], dict[str, bool]] = defaultdict(dict)
    for one in judged:
        if key := _KEY.fullmatch(str(one.row.metadata["key"])):
            steps[one.sample, problem(one.row)][key[2]] = one.correct
            steps[one.sample, problem(one.row)]["num"] = int(key[1])
    complete = [parts for parts in steps.values() if len(parts) == parts["num"] + 2]
    if not complete:
        return {}
    counts: Counter[str] = Counter()
    for parts in complete:
        ones = [parts[str(number)] for number in range(1, parts["num"] + 1)]
        counts["one_step_right"] += sum(ones)
        counts["one_step"] += len(ones)
        name = "two_step" if parts["num"] == 2 else "three_step"
        counts[f"{name}_right"] += parts["multi"]
        counts[name] += 1
        counts.update(_conditions(ones, parts["multi"]))
    return _scores(counts, len(complete))


def _conditions(ones: list[bool], multi: bool) -> list[str]:
    """Names of what a composite problem counts as."""
    if not multi:
        return ["inadequate_generalization" if all(ones) else "insufficient_knowledge"]
    strict = "complete_mastery_strict" if all(ones) else "rote_memorization_strict"
    return [strict, "complete_mastery_loose" if any(ones) else "rote_memorization_loose"]


def _scores(counts: Counter[str], total: int) -> dict[str, float]:
    scores = {name: counts[name] / total for name in ("insufficient_knowledge", "inadequate_generalization")}
    lost = scores["insufficient_knowledge"] + scores["inadequate_generalization"] / 2
    for way in ("strict", "loose"):
        mastery, rote = counts[f"complete_mastery_{way}"], counts[f"rote_memorization_{way}"]
        scores[f"score_{way}"] = 1 - lost - rote / total
        scores[f"complete_mastery_{way}"] = mastery / total
        scores[f"rote_memorization_{way}"] = rote / (mastery + rote) if mastery + rote else 0.0
    for name in ("one_step", "two_step", "three_step"):
        if counts[name]:
            scores[f"accuracy_{name}"] = counts[f"{name}_right"] / counts[name]
    return scores


BENCHMARK = Benchmark(
    name="we_math",
    title="We-Math testmini",
    citation="arXiv:2407.01284",
    splits=("testmini",),
    sources=("We-Math/We-Math@testmini",),
    download="download the data set We-Math/We-Math, or clone github.com/We-Math/We-Math with its images, to {folder}",
    prompt=prompt,
    official=official,
    categories=axes("key", concept="knowledge concept"),
    problem=problem,
    aggregate=aggregate,
)
