"""Charts, several images and yes-or-no questions: official questions, rules and scores by hand."""

import datasets
import pytest

from data_prep import load_rows
from tests.data_prep.benchmark_files import MMMU, MMMU_PRO, MMMU_PRO_VISION, RED, build
from tests.vlm_mhpo.test_benchmarks.rows import made
from vlm_mhpo.evaluation.benchmarks import Judged, benchmark_rows, find


@pytest.fixture
def hub(monkeypatch):
    """Serves one record of a hub table to whoever asks."""

    def serve(record: dict) -> None:
        monkeypatch.setattr(datasets, "load_dataset", lambda *names, split: datasets.Dataset.from_list([record]))

    return serve


# MMMU and MMMU-Pro


def test_mmmu_is_asked_with_its_image_where_the_question_names_it(hub):
    hub(MMMU)
    mmmu = find("mmmu")
    row = benchmark_rows(mmmu)[0]
    assert mmmu.prompt(row) == (
        "Who painted <image>?\n\n(A) Anna\n(B) O'Hara\n\n\n"
        "Answer with the option's letter from the given choices directly."
    )
    assert mmmu.categories(row) == {
        "subject": "Art_Theory", "discipline": "Art and Design", "difficulty": "Easy",
    }  # fmt: skip
    assert len(mmmu.sources) == 30 and "MMMU/MMMU:Public_Health@validation" in mmmu.sources
    hub(MMMU | {"options": "[]", "answer": "1.06", "question": "<image 1> How far?", "question_type": "open"})
    assert mmmu.prompt(benchmark_rows(mmmu)[0]) == (
        "<image> How far?\n\nAnswer the question using a single word or phrase."
    )


def test_mmmu_pro_is_asked_for_a_last_line_with_and_without_the_text_of_the_question(hub):
    ends = (
        "The last line of your response should be of the following format: 'Answer: $LETTER' (without quotes) where "
        "LETTER is one of options. Think step by step before answering."
    )
    hub(MMMU_PRO)
    (row,) = benchmark_rows(find("mmmu_pro"))
    assert find("mmmu_pro").prompt(row) == (
        "What is the area of <image>?\nA. 1\nB. 2\nC. 3\nD. 4\nE. 5\n"
        f"Answer the preceding multiple choice question. {ends}"
    )
    assert find("mmmu_pro").categories(row) == {"subject": "Math", "discipline": "Science", "difficulty": "Hard"}
    hub(MMMU_PRO_VISION)
    (row,) = benchmark_rows(find("mmmu_pro_vision"))
    assert find("mmmu_pro_vision").prompt(row) == (
        f"<image>Write out the multiple-choice question in the image and then solve it. {ends}"
    )
    assert (row.choices, row.answer) == (("1", "2", "3", "4", "5"), "E")


@pytest.mark.parametrize(
    ("gold", "options", "response", "right"),
    [
        ("B", ["x", "y", "z"], "(B)", True),
        ("B", ["x", "y", "z"], "(B) no, (C)", False),  # the one that stands last
        ("B", ["x", "y", "z"], "", False),  # drawn at random there
        ("1.06", None, "So the answer is 1.0599.", True),  # to two decimals
        ("1.06", None, "1.07", False),
        ("Transformation", None, "it is a transformation of energy", True),
    ],
)
def test_mmmu_takes_the_last_option_or_the_end_of_an_open_response(gold, options, response, right):
    assert find("mmmu").official(made(gold, options), response).correct == right


def test_only_mmmu_pro_reads_the_line_it_asks_for():
    row = made("B", ["x", "y", "z"])
    response = "(C) looks good, (A) too.\nAnswer: B"
    assert find("mmmu_pro").official(row, response).correct and not find("mmmu").official(row, response).correct


# CharXiv


def test_charxiv_asks_by_the_kind_of_answer(tmp_path):
    text, number = load_rows(build("charxiv", tmp_path))
    asked = find("charxiv").prompt
    assert asked(text).startswith(
        "<image>Which curve ends highest?\n    * Your final answer must be grounded to some text that is explicitly "
        "written and relevant to the question in the chart.\n    * If you need"
    )
    assert asked(number) == (
        "<image>What is the step of the axis?\n    * Your final answer must be a number with 2 decimal places.\n    "
    )
    assert find("charxiv").categories(number) == {"answer_type": "number in general", "source": "3"}


@pytest.mark.parametrize(
    ("category", "gold", "response", "right"),
    [
        (1, "(b)", "The answer is b.", True),
        (1, "R^2_{t}", "$R^2_t$", True),
        (1, "α", "\\boxed{\\alpha}", True),
        (1, "ACC+", "ACC", False),
        (1, "N = 1", "N=1", True),
        (1, "blue, red", "The answer is \\boxed{red, blue}.", True),  # the order does not matter
        (1, "blue, red", "The answer is \\boxed{red}.", False),
        (2, "increasing then decreasing", "It rises and falls.", False),  # a paraphrase needs a judge
        (3, "0.01", "\\boxed{10^{-2}}", True),
        (3, "0.01", "\\boxed{0.012}", False),
        (4, "1500", "The answer is 1500.", True),
        (4, "1500", "", False),
    ],
)
def test_charxiv_compares_numbers_by_value_and_texts_term_by_term(category, gold, response, right):
    assert find("charxiv").official(made(gold, inst_category=category), response).correct == right


# HallusionBench


def looked_at(gold="no", *, category="VD", figure="0", question="0", visual="1", images=1):
    return made(gold, kind="text", images=images, category=category, subcategory="map", set_id="0", figure_id=figure,
                question_id=question, visual_input=visual)  # fmt: skip


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("no", "No.", True), ("no", "No, yes would be wrong.", True), ("no", "Yes", False),
        ("yes", "The circles are equal, so yes.", True), ("yes", "\\boxed{Yes}", True),
        ("yes", "It may be yes or no.", False), ("no", "I do not know.", False), ("no", "", False),
        ("no", "Nobody says so.", False),
    ],
)  # fmt: skip
def test_hallusionbench_reads_yes_or_no(gold, response, right):
    assert find("hallusionbench").official(looked_at(gold), response).correct == right


def test_saying_nothing_is_right_where_no_figure_is_shown():
    blind = looked_at("yes", category="VS", visual="0", images=0)
    official = find("hallusionbench").official
    assert official(blind, "I cannot tell without the chart.").correct
    assert not official(blind, "No.").correct and not official(looked_at("yes"), "I cannot tell.").correct


def test_hallusionbench_scores_by_hand():
    # Two questions about a figure and its changed copy: (right, right), (right, wrong); and one without a figure.
    answers = [
        Judged(looked_at(question="0"), True),
        Judged(looked_at(question="1"), True),
        Judged(looked_at(question="0", figure="1", visual="2"), True),
        Judged(looked_at(question="1", figure="1", visual="2"), False),
        Judged(looked_at(question="0", category="VS", visual="0", images=0), True),
    ]
    assert find("hallusionbench").aggregate(answers) == pytest.approx(
        {"question_pairs": 2 / 3, "figures": 1 / 2, "easy_pairs": 1, "hard_pairs": 1 / 2}
    )


# MM-MATH, M3CoT, ChartQA


@pytest.mark.parametrize(
    ("response", "right"),
    [
        ("\\boxed{\\sqrt{18}}", True), ("\\boxed{4.25}", True), ("\\boxed{4.26}", False),  # within 0.01
        ("\\boxed{3\\sqrt{2}\\text{ cm}}", True), ("It is $3\\sqrt{2}$.", False),  # no box
    ],
)  # fmt: skip
def test_mm_math_judges_the_box_of_the_response_against_that_of_the_solution(tmp_path, response, right):
    (row,) = load_rows(build("mm_math", tmp_path))
    assert (row.answer, row.metadata["difficult"]) == ("3\\sqrt{2}", "普通")
    assert find("mm_math").official(row, response).correct == right


def test_m3cot_is_asked_with_its_context(tmp_path):
    square, bare = load_rows(build("m3cot", tmp_path))
    assert find("m3cot").prompt(square) == (
        "<image>[Context]\nA square.\n[Question]\nWhat is its area?\n[Choices]\n(A) 4\n(B) 9\n\n"
        "Let's think step-by-step!"
    )
    assert find("m3cot").prompt(bare).startswith("<image>[Question]\nWhat is its area?")
    assert square.problem == "<image>A square.\nWhat is its area?"


@pytest.mark.parametrize(
    ("gold", "response", "right"),
    [
        ("14", "14.7", True), ("14", "14.71", False), ("14", "13.3", True), ("14", "13.29", False),  # 5 %
        ("14", "14 people", False), ("14", "\\boxed{14}", True), ("14", "<answer>14</answer>", True),
        ("0", "0", True), ("0", "0.0", False),  # of a gold 0 the text decides
        ("50%", "0.51", True), ("50%", "51%", True), ("50%", "51", False),
        ("-10", "-10.5", True), ("-10", "10", False),
        ("Yes", "yes", True), ("Yes", "The answer is yes.", True), ("Yes", "no", False),
        ("2,000", "2000", False), ("2,000", "2,000", True),
    ],
)  # fmt: skip
def test_chartqa_is_relaxed_about_numbers_only(gold, response, right):
    assert find("chartqa").official(made(gold), response).correct == right


# Parts of a split


def test_named_parts_of_a_split_are_its_rows(tmp_path):
    root = build("mathverse", tmp_path)
    only = benchmark_rows(find("mathverse"), source=root, split="vision_only")
    assert [row.metadata["problem_version"] for row in only] == ["Vision Only"]
    assert len(benchmark_rows(find("mathverse"), source=root)) == 2
    root = build("chartqa", tmp_path)
    halves = {half: benchmark_rows(find("chartqa"), source=root, split=half) for half in ("human", "augmented")}
    assert {half: [row.answer for row in rows] for half, rows in halves.items()} == {
        "human": ["14"],
        "augmented": ["Yes"],
    }
    root = build("hallusionbench", tmp_path)
    assert len(benchmark_rows(find("hallusionbench"), source=root)) == 2
    (seen,) = benchmark_rows(find("hallusionbench"), source=root, split="image")
    assert seen.images[0].read_bytes() == RED


def test_a_part_is_asked_of_the_hub_as_the_split_that_it_belongs_to(monkeypatch):
    asked = []

    def load(name, *configuration, split):
        asked.append((name, *configuration, split))
        return datasets.Dataset.from_list([MMMU_PRO_VISION])

    monkeypatch.setattr(datasets, "load_dataset", load)
    with pytest.raises(KeyError):  # these rows have no versions
        benchmark_rows(find("mathverse"), split="vision_only")
    benchmark_rows(find("mmmu_pro"))
    assert asked == [
        ("AI4Math/MathVerse", "testmini", "testmini"), ("MMMU/MMMU_Pro", "standard (10 options)", "test"),
    ]  # fmt: skip
