"""The authors' rules side by side with ours on cases of our own: `theirs` is what their function said of each.

The functions were run as they stand at the commits below, outside of this repository. Where a language model judges
(LogicVista extracts with one, MathVerse does both with one) its part is what a reader of their prompt writes. `differs`
names the differences that stay, with the words by which docs/benchmarks.md gives the reason.
"""

import json
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from data_prep import Row, load_rows
from tests.data_prep.benchmark_files import RED, put
from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import find

COMMITS = {
    "mathvision": ("mathllm/MATH-V", "a1f5cc3"),
    "dynamath": ("DynaMath/DynaMath", "598c3c3"),
    "we_math": ("We-Math/We-Math", "a57a0e8"),
    "olympiadbench": ("OpenBMB/OlympiadBench", "ba5b26a"),
    "logicvista": ("Yijia-Xiao/LogicVista", "e5795f1"),
    "mathverse": ("ZrrSkywalker/MathVerse", "937b090"),
    "mmmu": ("MMMU-Benchmark/MMMU", "bb0b95a"),
    "mmmu_pro": ("MMMU-Benchmark/MMMU", "bb0b95a"),
    "m3cot": ("LightChen233/M3CoT", "ee50d5a"),
    "mm_math": ("kge-sun/MM-Math", "a8072fc"),
}
CASES = [json.loads(line) for line in Path(__file__).with_name("authors_verdicts.jsonl").read_text().splitlines()]
DOCUMENT = Path(__file__).parents[3] / "docs" / "benchmarks.md"


@cache
def of(benchmark: str) -> list[dict]:
    return [case for case in CASES if case["benchmark"] == benchmark]


def rows_of(benchmark: str, folder: Path) -> list[Row]:
    """The rows of the cases, read from the benchmark's layout where the rule needs what its reader finds."""
    cases = of(benchmark)
    if benchmark == "logicvista":
        put(folder / "data" / "images" / "a.png", RED)
        shared = {"imagename": "a.png", "skill": ["inductive"]}
        named = {f"v1_{i}": shared | {"question": c["question"], "answer": c["gold"]} for i, c in enumerate(cases)}
        put(folder / "data" / "dataset.json", named)
        return list(load_rows(folder))
    if benchmark == "mathverse":
        put(folder / "images_version_1-4" / "a.png", RED)
        shared = {"problem_index": "1", "problem_version": "any", "image": "images_version_1-4/a.png"}
        records = [
            shared | {name: c.get(name) for name in ("question", "question_type", "question_for_eval")}
            | {"answer": c["gold"], "sample_index": str(i)} for i, c in enumerate(cases)
        ]  # fmt: skip
        put(folder / "testmini.json", records)
        return list(load_rows(folder))
    columns = ("answer_type", "error", "answers")
    return [made(c["gold"], c.get("options"), **{name: c[name] for name in columns if c.get(name)}) for c in cases]


@pytest.mark.parametrize("benchmark", COMMITS)
def test_our_verdict_is_the_authors_or_differs_as_it_is_named(benchmark, tmp_path):
    official = find(benchmark).official
    rows = rows_of(benchmark, tmp_path)
    assert len(rows) == len(of(benchmark)) >= 50
    other = [
        (case["gold"], case["response"], case["theirs"])
        for case, row in zip(of(benchmark), rows, strict=True)
        if official(row, case["response"]).correct != (case["theirs"] != ("differs" in case))
    ]
    assert other == []


def test_the_document_counts_the_cases_and_gives_a_reason_for_every_difference():
    text = DOCUMENT.read_text(encoding="utf-8")
    for benchmark, (repository, commit) in COMMITS.items():
        differing = Counter(case["differs"] for case in of(benchmark) if "differs" in case)
        total = len(of(benchmark))
        title = find(benchmark).title
        assert f"| {title} | {repository} {commit} | {total} | {total - differing.total()} |" in text
        for words in differing:
            assert re.search(rf"- \*\*{words}\*\* \({re.escape(title)}\): .{{20,}}", text), words
