"""Benchmarks out of tables with the columns that the hub's data sets have (planted; none is fetched)."""

import datasets
import pytest

from tests.data_prep.benchmark_files import RED, hub_record
from vlm_mhpo.evaluation.benchmarks import benchmark_rows, find

IMAGE = {"bytes": RED, "path": None}
# Columns as the data sets' cards and public loaders show them.
TABLES = {
    "math500": {"problem": "Find $x$.", "solution": "It is $\\boxed{7}$.", "answer": "7", "subject": "Algebra",
                "level": 2, "unique_id": "test/algebra/1.json"},
    "aime24": {"id": 60, "problem": "Find $m+n$.", "solution": "We get $\\boxed{204}$.", "answer": "204", "url": "x",
               "year": "2024"},
    "aime25": {"problem": "Find the sum.", "answer": "70", "id": "0"},
    "amc23": {"id": 0, "answer": 27.0, "url": "x", "question": "How far?"},
    "hmmt25": {"problem_idx": 1, "problem": "Compute.", "answer": "\\frac{1}{576}", "problem_type": ["Algebra"]},
    "gsm8k": {"question": "How many?", "answer": "She has 3 * 6 = <<3*6=18>>18.\n#### 1,018"},
    "geometry3k": {"images": [IMAGE], "problem": "<image>Find $x$.", "answer": "5 \\sqrt { 3 }"},
    "geometry3k_choice": {"images": [IMAGE], "problem": "<image>Find $x$.", "choices": ["5", "6", "7", "8"],
                          "ground_truth": "C"},
} | {name: hub_record(name)[0] for name in
     ("mathvista", "mathverse", "mathvision", "dynamath", "we_math", "mmk12", "olympiadbench", "charxiv",
      "hallusionbench", "m3cot", "chartqa", "mmmu", "mmmu_pro", "mmmu_pro_vision")}  # fmt: skip
RIGHT = {
    "math500": "\\boxed{7}", "aime24": "\\boxed{204}", "aime25": "\\boxed{70}", "amc23": "\\boxed{27}",
    "hmmt25": "\\boxed{1/576}", "gsm8k": "#### 1018", "geometry3k": "\\boxed{5\\sqrt{3}}",
    "geometry3k_choice": "\\boxed{C}", "mathvista": "(A)", "mathverse": "\\boxed{B}", "mathvision": "\\boxed{B}",
    "dynamath": '{"short answer": "2.094"}', "we_math": "Answer: A", "mmk12": "\\boxed{2\\sin(2x)}",
    "olympiadbench": "So the final answer is \\boxed{0.5}.", "charxiv": "joint-cnn", "hallusionbench": "No, it is not.",
    "m3cot": "The answer is (B).", "chartqa": "yes", "mmmu": "B", "mmmu_pro": "Answer: E",
    "mmmu_pro_vision": "Answer: E",
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
def test_rows_of_the_hub_are_asked_and_judged(name, monkeypatch):
    table = datasets.Dataset.from_list([TABLES[name]])
    asked = []

    def load(*args, split=None, **kwargs):
        asked.append((*args, split))
        return table

    monkeypatch.setattr(datasets, "load_dataset", load)
    benchmark = find(name)
    rows = benchmark_rows(benchmark)
    assert [f"{':'.join(parts[:-1])}@{parts[-1]}" for parts in asked] == list(benchmark.sources)
    assert len(rows) == len(benchmark.sources) and len({row.id for row in rows}) == len(rows)
    row = rows[0]
    assert benchmark.prompt(row).count("<image>") == len(row.images)
    assert benchmark.official(row, RIGHT[name]).correct
    assert not benchmark.official(row, "\\boxed{12345}" if name != "mathvista" else "(B)").correct
    if name == "dynamath":
        assert {benchmark.problem(row) for row in rows} == {"1"}


def test_the_geoqa_file_of_r1_v(tmp_path):
    import json

    folder = tmp_path / "geoqa"
    (folder / "Geo170K").mkdir(parents=True)
    (folder / "Geo170K" / "0.png").write_bytes(RED)
    line = {"image_path": "./Geo170K/0.png", "question": "What is the angle?", "ground_truth": "140°"}
    (folder / "geoqa_test_prompts.jsonl").write_text(json.dumps(line) + "\n")
    benchmark = find("geoqa")
    (row,) = benchmark_rows(benchmark, folder=tmp_path)
    assert benchmark.prompt(row) == (
        "<image>What is the angle? Output the thinking process in <think> </think> and final answer (number) in "
        "<answer> </answer> tags."
    )
    assert benchmark.official(row, "<think>x</think><answer>140</answer>").correct
    assert benchmark.official(row, "<think>x</think><answer>140°</answer>").correct
    assert not benchmark.official(row, "<think>x</think><answer>14</answer>").correct
