"""Responses of real models with the verdicts that the authors of benchmarks recorded; prints how often we agree.

Run as `python -m tests.vlm_mhpo.test_benchmarks.recorded` from the repository; VLM_MHPO_SHARED_DATA names the samples.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from data_prep import Row
from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import find
from vlm_mhpo.evaluation.benchmarks.olympiadbench import judge

REPOSITORY = Path(__file__).resolve().parents[3]
SHARED = Path(os.environ.get("VLM_MHPO_SHARED_DATA") or REPOSITORY.parent / "shared" / "data")
FOLDERS = {"mathvision": "mathvision", "mathvista": "mathvista_extraction", "olympiadbench": "olympiadbench_scoring"}


@dataclass(frozen=True)
class Case:
    """One response; `extraction` and `prediction` as recorded, where the authors keep them."""

    id: str
    row: Row
    response: str
    correct: bool
    extraction: str | None = None
    prediction: str | None = None


def read(benchmark: str) -> list[Case]:
    """All recorded cases of a benchmark."""
    return list(READERS[benchmark](SHARED / FOLDERS[benchmark]))


def is_here(benchmark: str) -> bool:
    """Whether the samples are on this disk."""
    return (SHARED / FOLDERS[benchmark]).is_dir()


def _mathvision(root: Path) -> Iterator[Case]:
    lines = (root / "data" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    problems = {problem["id"]: problem for problem in map(json.loads, lines)}
    for file in sorted((root / "outputs").rglob("*.jsonl")):
        for line in map(json.loads, file.read_text(encoding="utf-8").splitlines()):
            problem = problems[line["id"]]
            row = made(problem["answer"], problem["options"] or None)
            yield Case(f"{file.stem}/{line['id']}", row, line["response"], line["correct"], line["model_answer"])


def _mathvista(root: Path) -> Iterator[Case]:
    for file in sorted((root / "results").rglob("*.json")):
        for line in json.loads(file.read_text(encoding="utf-8")).values():
            precision = None if line["precision"] is None else int(line["precision"])
            row = made(
                line["answer"], line["choices"], precision=precision, unit=line["unit"],
                question_type=line["question_type"], answer_type=line["answer_type"],
            )  # fmt: skip
            verdict, name = line["true_false"], f"{file.stem}/{line['pid']}"
            yield Case(name, row, line["response"], verdict, line["extraction"], line["prediction"])


def _olympiadbench(root: Path) -> Iterator[Case]:
    for number, case in enumerate(json.loads((root / "eval" / "scoring_examples.json").read_text(encoding="utf-8"))):
        for index, answer in enumerate(case["Ans"]):
            error = answer.get("precision", "")
            error = ",".join(map(str, error)) if isinstance(error, list) else str(error)
            yield Case(f"{number}/{index}", made(case["GT"], error=error), answer["answer"], answer["equal"])


READERS = {"mathvision": _mathvision, "mathvista": _mathvista, "olympiadbench": _olympiadbench}


def disagreements(benchmark: str) -> list[tuple[Case, bool]]:
    """Cases on which our reproduction and the recorded verdict differ, with ours."""
    pairs = [(case, _ours(benchmark, case)) for case in read(benchmark)]
    return [(case, ours) for case, ours in pairs if ours != case.correct]


def _ours(benchmark: str, case: Case) -> bool:
    """Our verdict; OlympiadBench's examples give its judge the gold first, its script for models the answer."""
    if benchmark != "olympiadbench":
        return find(benchmark).official(case.row, case.response).correct
    errors = [float(error) for error in str(case.row.metadata["error"]).split(",") if error]
    return judge(case.row.answer, case.response, *([errors] if errors else []))


def main() -> None:
    """Print the agreement with each sample that is here, and the disagreements."""
    from vlm_mhpo.evaluation.benchmarks.mathvista import normalised

    for benchmark in READERS:
        if not is_here(benchmark):
            print(f"{benchmark}: not here ({SHARED / FOLDERS[benchmark]})")
            continue
        cases, differing = read(benchmark), disagreements(benchmark)
        share = 1 - len(differing) / len(cases)
        print(f"{benchmark}: {len(cases) - len(differing)} of {len(cases)} verdicts agree ({100 * share:.1f} %)")
        if benchmark == "mathvista":
            same = sum((normalised(case.row, case.extraction) == case.row.answer) == case.correct for case in cases)
            print(f"  with the recorded extraction: {same} of {len(cases)} ({100 * same / len(cases):.1f} %)")
        for case, ours in differing:
            print(f"  {case.id}: ours {ours}, recorded {case.correct}")


if __name__ == "__main__":
    main()
