"""The registry: names, official questions over real layouts, and data that is not there."""

import subprocess
import sys
from pathlib import Path

import pytest

from data_prep import DataError, load_rows
from tests.data_prep.benchmark_files import build
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.evaluation.benchmarks import BENCHMARKS, Benchmark, Judged, benchmark_rows, find

# Benchmarks and the hand-made layout that their rows are read from.
LAYOUTS = {
    "mathvista": "mathvista", "mathverse": "mathverse", "mathvision": "mathvision", "dynamath": "dynamath",
    "we_math": "we_math", "mmk12": "mmk12", "puzzlevqa": "puzzlevqa", "algopuzzlevqa": "puzzlevqa",
    "logicvista": "logicvista", "olympiadbench": "olympiadbench", "charxiv": "charxiv",
    "hallusionbench": "hallusionbench", "mm_math": "mm_math", "m3cot": "m3cot", "chartqa": "chartqa",
}  # fmt: skip
ASKED_FOR = {"mathvista", "mathverse", "mathvision", "dynamath", "we_math", "geometry3k", "geometry3k_choice", "geoqa",
             "mmk12", "puzzlevqa", "algopuzzlevqa", "logicvista", "olympiadbench", "math500", "aime24", "aime25",
             "amc23", "hmmt25", "gsm8k", "mmmu", "mmmu_pro", "mmmu_pro_vision", "charxiv", "hallusionbench", "mm_math",
             "m3cot", "chartqa"}  # fmt: skip


def planted(name: str, folder: Path):
    """The rows of a benchmark's hand-made layout."""
    split = {"puzzlevqa": "PuzzleVQA", "algopuzzlevqa": "AlgoPuzzleVQA"}.get(name)
    return list(load_rows(build(LAYOUTS[name], folder), split=split))


def test_all_benchmarks_are_registered_under_their_names():
    assert set(BENCHMARKS) == ASKED_FOR
    assert all(benchmark.name == name for name, benchmark in BENCHMARKS.items())


@pytest.mark.parametrize("benchmark", BENCHMARKS.values(), ids=BENCHMARKS)
def test_a_benchmark_says_where_it_comes_from_and_how_to_get_it(benchmark: Benchmark):
    assert benchmark.title and benchmark.citation and benchmark.splits
    assert benchmark.download.count("{folder}") == 1 and not benchmark.download.endswith(".")
    assert "\n" not in benchmark.download + benchmark.deviation
    assert benchmark.aggregate([]) == {}


@pytest.mark.parametrize(("wrong", "near"), [("mathvist", "mathvista"), ("wemath", "we_math"), ("gsm-8k", "gsm8k")])
def test_an_unknown_benchmark_names_its_neighbour(wrong, near):
    with pytest.raises(ConfigError, match=f"'{wrong}' is no known benchmark; did you mean {near}"):
        find(wrong)
    with pytest.raises(ConfigError, match="use one of mathvista, mathverse"):
        find("zzzzzz")


@pytest.mark.parametrize("name", LAYOUTS)
def test_every_row_is_asked_with_its_pictures_and_judged_without_an_error(tmp_path, name):
    benchmark, rows = find(name), planted(name, tmp_path)
    assert rows
    for row in rows:
        question = benchmark.prompt(row)
        assert question.count("<image>") == len(row.images)
        assert benchmark.problem(row)
        categories = benchmark.categories(row)
        assert all(isinstance(axis, str) and isinstance(value, str) for axis, value in categories.items())
        for response in ("", "I cannot tell.", "\x00\ud800{", "}{" * 50, "<answer>" + row.answer):
            assert benchmark.official(row, response).correct in (True, False)
    scores = benchmark.aggregate([Judged(row, True) for row in rows])
    assert all(0 <= score <= 1 for score in scores.values())


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_gold_in_the_form_that_the_question_asks_for_is_right_and_an_empty_response_is_wrong(tmp_path, name):
    benchmark = find(name)
    right = {
        "dynamath": '{{"solution": "", "short answer": "{}"}}', "we_math": "<Answer>: <<{}>>",
        "puzzlevqa": "So it is ({}).", "algopuzzlevqa": "So it is ({}).",
        "olympiadbench": "So the final answer is \\boxed{{{}}}.", "m3cot": "({})",
    }  # fmt: skip
    for row in planted(name, tmp_path):
        letter = "ABCDEFGH"[row.choices.index(row.answer)] if "puzzle" in name else row.answer
        assert benchmark.official(row, right.get(name, "\\boxed{{{}}}").format(letter)).correct
        # In MathVista an empty response is the choice with the fewest letters; in HallusionBench saying nothing about
        # a figure that is not shown is right.
        if name != "mathvista" and (name != "hallusionbench" or row.images):
            assert not benchmark.official(row, "").correct


# Data


@pytest.mark.parametrize("name", [name for name, benchmark in BENCHMARKS.items() if not benchmark.sources])
def test_a_benchmark_that_the_hub_does_not_hold_says_what_to_download_and_where_to_put_it(tmp_path, name):
    with pytest.raises(DataError) as error:
        benchmark_rows(find(name), folder=tmp_path)
    assert str(tmp_path / name) in str(error.value) and "github.com/" in str(error.value)
    assert "\n" not in str(error.value)


def test_without_network_a_hub_benchmark_says_what_to_download(tmp_path, monkeypatch):
    import datasets

    def offline(*args, **kwargs):
        raise ConnectionError("offline mode is enabled")

    monkeypatch.setattr(datasets, "load_dataset", offline)
    for benchmark in BENCHMARKS.values():
        if benchmark.sources:
            with pytest.raises(DataError) as error:
                benchmark_rows(benchmark, folder=tmp_path)
            assert benchmark.download.format(folder=tmp_path / benchmark.name) in str(error.value)


def test_the_splits_of_the_hub_are_asked_by_their_names(monkeypatch):
    import datasets

    asked = []

    def load(name, *configuration, split):
        asked.append((name, *configuration, split))
        raise ConnectionError("offline")

    monkeypatch.setattr(datasets, "load_dataset", load)
    for name, split in (("mathverse", None), ("mathverse", "testmini_text_only"), ("mathvision", "testmini"),
                        ("olympiadbench", "OE_TO_maths_en_COMP"), ("dynamath", None)):  # fmt: skip
        with pytest.raises(DataError):
            benchmark_rows(find(name), split=split)
    assert asked == [
        ("AI4Math/MathVerse", "testmini", "testmini"),
        ("AI4Math/MathVerse", "testmini_text_only", "testmini_text_only"),
        ("MathLLMs/MathVision", "testmini"),
        ("Hothan/OlympiadBench", "OE_TO_maths_en_COMP", "train"),
        ("DynaMath/DynaMath_Sample", "sample_variant1"),
    ]


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_folder_of_the_benchmarks_name_is_found(tmp_path, name):
    build(LAYOUTS[name], tmp_path).rename(tmp_path / name)
    assert {row.source for row in benchmark_rows(find(name), folder=tmp_path)} == {LAYOUTS[name]}


def test_a_split_of_a_folder_and_one_file_of_it(tmp_path):
    root = build("mathvision", tmp_path)
    benchmark = find("mathvision")
    assert [row.id for row in benchmark_rows(benchmark, source=root)] == ["mathvision/19", "mathvision/1"]
    assert [row.id for row in benchmark_rows(benchmark, source=root, split="testmini")] == ["mathvision/1"]
    assert [row.id for row in benchmark_rows(benchmark, source=root / "data" / "testmini.jsonl")] == ["mathvision/1"]
    with pytest.raises(ConfigError, match="mathvision has no split 'train'; use test or testmini"):
        benchmark_rows(benchmark, source=root, split="train")


def test_dynamath_asks_the_trials_of_a_folder_or_the_only_drawing_that_there_is(tmp_path):
    root, benchmark = build("dynamath", tmp_path), find("dynamath")
    assert {row.split for row in load_rows(root)} == {"dataset", "trial1"}
    assert {row.split for row in benchmark_rows(benchmark, source=root)} == {"trial1"}
    assert {row.split for row in benchmark_rows(benchmark, source=root / "dataset")} == {"dataset"}


def test_the_registry_loads_no_tensor_library():
    program = (
        "import sys, vlm_mhpo.evaluation.benchmarks; print(*{'torch', 'transformers', 'sympy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_rows_of_the_shipped_geometry3k_folders_are_asked_with_and_without_choices():
    rows = list(load_rows(Path(__file__).parents[2] / "data" / "geometry3k"))
    free, choice = find("geometry3k"), find("geometry3k_choice")
    assert rows
    for row in rows:
        letter = "ABCD"[row.choices.index(row.answer)]
        assert "(A)" not in free.prompt(row)
        assert choice.prompt(row).startswith(free.prompt(row) + "\nChoices:\n(A) " + row.choices[0] + "\n(B) ")
        assert free.official(row, f"\\boxed{{{row.answer}}}").correct
        assert choice.official(row, f"\\boxed{{{letter}}}").correct
        assert not free.official(row, f"\\boxed{{{letter}}}").correct
        assert not choice.official(row, f"\\boxed{{{'BCDA'['ABCD'.index(letter)]}}}").correct


def test_the_document_names_every_benchmark_and_what_it_replaces():
    text = (Path(__file__).parents[3] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    for name, benchmark in BENCHMARKS.items():
        assert f"| {name} | {benchmark.title} ({benchmark.citation}) | {benchmark.splits[0]}" in text
        assert f"| {name} | {benchmark.download.format(folder=f'`{name}/`')} |" in text
        assert not benchmark.deviation or f"- {benchmark.title}: {benchmark.deviation}." in text
