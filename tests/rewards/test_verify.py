"""Right verdicts on hand-labelled pairs, and no easy way to be paid without answering."""

import itertools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rewards import Item, Verdict, Verifier, verify

CASES = Path(__file__).with_name("labelled_pairs.jsonl")
PAIRS = [json.loads(line) for line in CASES.read_text(encoding="utf-8").splitlines()]
CHOICES = ("12", "$\\frac{1}{2}$", "isosceles triangle", "right triangle")


def _options(pair):
    return {"choices": CHOICES} if pair["group"] == "choices" else pair["options"]


@pytest.mark.parametrize(
    "wrap", ["<answer>{}</answer>", "<think>5</think>\n<answer>\n{}\n</answer>"], ids=["tag", "think"]
)
def test_every_labelled_pair_gets_its_verdict(wrap):
    wrong = []
    for pair in PAIRS:
        score = verify(wrap.format(pair["answer"]), pair["gold"], **_options(pair))
        if score.correct != pair["right"] or score.verdict == Verdict.bad_gold:
            wrong.append((pair, score))
    assert wrong == []
    assert len(PAIRS) >= 400 and sum(not pair["right"] for pair in PAIRS) >= 200


def test_the_template_around_an_answer_does_not_change_the_verdict():
    pairs = [pair for pair in PAIRS if pair["answer"] and pair["group"] != "texts" and "{}" not in pair["answer"]]
    wrong = []
    for pair in pairs:
        for text, template in (
            (f"<think>so 99</think> \\boxed{{{pair['answer']}}}", "think_boxed"),
            (f"Some work.\n\n$$\\boxed{{{pair['answer']}}}$$\n", "boxed"),
            (f"<think>so 99</think>\n\\boxed{{{pair['answer']}}}", "auto"),
        ):
            score = verify(text, pair["gold"], template=template, **_options(pair))
            if score.correct != pair["right"]:
                wrong.append((pair, template, score))
    assert wrong == []


def test_every_gold_verifies_against_itself():
    for pair in PAIRS:
        score = verify(f"<answer>{pair['gold']}</answer>", pair["gold"], **_options(pair))
        assert score.verdict == Verdict.correct, (pair, score)


# completion, gold, template, verdict; expected by the extraction rules, read by a person
EXTRACTIONS = [
    ("<think>7</think><answer>7</answer>", "7", "think_answer", "correct"),
    ("reasoning that started in the prompt</think><answer>7</answer>", "7", "think_answer", "correct"),
    ("<think>the answer is 7</think>", "7", "think_answer", "no_answer"),
    ("<think><answer>7</answer></think>", "7", "think_answer", "no_answer"),
    ("<think><answer>7</answer></think>", "7", "auto", "no_answer"),
    ("<think>unclosed <answer>7</answer>", "7", "think_answer", "no_answer"),
    ("<think>x</think><answer>7", "7", "think_answer", "no_answer"),
    ("<think>x</think>7</answer>", "7", "think_answer", "bad_format"),
    ("<think>x</think><answer>  </answer>", "7", "think_answer", "no_answer"),
    ("<think>x</think>7", "7", "think_answer", "no_answer"),
    ("<think>x</think><answer>5</answer><answer>7</answer>", "7", "think_answer", "wrong"),
    ("<think>x</think><answer>7</answer> <answer>7</answer>", "7", "think_answer", "correct"),
    ("<think>x</think><answer><answer>7</answer></answer>", "7", "think_answer", "bad_format"),
    ("<think>x</think></answer>7<answer>", "7", "think_answer", "bad_format"),
    ("<think>a</think><answer>5</answer><think>b</think><answer>7</answer>", "7", "think_answer", "bad_format"),
    ("<think><think>a</think><answer>7</answer>", "7", "think_answer", "bad_format"),
    ("<think>x</think><answer>\\boxed{7}</answer>", "7", "think_answer", "correct"),
    ("<think>x</think><answer><!-- 7 -->8</answer>", "7", "think_answer", "wrong"),
    ("<think>x</think><ans<|im_end|>wer>7</answer>", "7", "think_answer", "bad_format"),
    ("<think>x</think><answer>" + " " * 10_000 + "</answer>", "7", "think_answer", "no_answer"),
    ("<think>x</think><answer>7</answer>", "7", "auto", "correct"),
    ("\\boxed{7}", "7", "boxed", "correct"),
    ("\\boxed{5} then \\boxed{7}", "7", "boxed", "correct"),
    ("\\boxed{7} then \\boxed{5}", "7", "boxed", "wrong"),
    ("\\boxed{5}, \\boxed{7}", "7", "boxed", "wrong"),
    ("\\boxed{5} or \\boxed{7}", "7", "boxed", "wrong"),
    ("$\\boxed{5}$ and $\\boxed{7}$", "5, 7", "boxed", "correct"),
    ("\\boxed{7} \\boxed{7}", "7", "boxed", "correct"),
    ("\\boxed{}", "7", "boxed", "no_answer"),
    ("\\boxed{7", "7", "boxed", "no_answer"),
    ("\\boxed{ \\boxed{7}", "7", "boxed", "no_answer"),
    ("\\boxed{\\boxed{7}}", "7", "boxed", "correct"),
    ("\\fbox{7}", "7", "boxed", "correct"),
    ("\\boxed 7", "7", "boxed", "correct"),
    ("<think>x</think><answer>It is <|begin_of_box|>7<|end_of_box|></answer>", "7", "think_answer", "correct"),
    ("<think><|begin_of_box|>5<|end_of_box|></think>So <|begin_of_box|>7<|end_of_box|>", "7", "think_boxed", "correct"),
    ("<|begin_of_box|>7<|end_of_box|>", "7", "auto", "correct"),
    ("<|begin_of_box|>\\frac{14}{2}<|end_of_box|>", "7", "boxed", "correct"),
    ("<|begin_of_box|>\\boxed{7}<|end_of_box|>", "7", "boxed", "correct"),
    ("<|begin_of_box|>7<|end_of_box|> or <|begin_of_box|>8<|end_of_box|>", "7", "boxed", "wrong"),
    ("<|begin_of_box|>7<|end_of_box|>. Wait, <|begin_of_box|>8", "7", "boxed", "no_answer"),
    ("<|begin_of_box|><|end_of_box|>", "7", "boxed", "no_answer"),
    ("7<|end_of_box|>", "7", "boxed", "no_answer"),
    ("<think>\\boxed{7}</think> so 8", "7", "think_boxed", "no_answer"),
    ("<think>\\boxed{5}</think> \\boxed{7}", "7", "think_boxed", "correct"),
    ("<!-- \\boxed{7} -->", "7", "boxed", "no_answer"),
    ("The answer is 7.", "7", "bare", "correct"),
    ("The final answer is $7$. I hope it is correct.", "7", "bare", "correct"),
    ("**Final Answer**\n\n\\[ 7 \\]", "7", "bare", "correct"),
    ("Final Answer: 7", "7", "bare", "correct"),
    ("First 5, then 2.\n\nSo x = 7.", "7", "bare", "correct"),
    ("5 + 2 = 7. Therefore the total is **7**.\n\nLet me know if you have questions!", "7", "bare", "correct"),
    ("The answer is 7. Wait, actually it is 8.", "7", "bare", "no_answer"),
    ("The answer is 7 or 8.", "7", "bare", "wrong"),
    ("The answer is not 7.", "7", "bare", "wrong"),
    ("7", "7", "bare", "correct"),
    ("I cannot see the image.", "7", "bare", "wrong"),
    ("", "7", "bare", "no_answer"),
    ("5, 6, 7", "7", "bare", "wrong"),
]  # fmt: skip


@pytest.mark.parametrize(("completion", "gold", "template", "verdict"), EXTRACTIONS)
def test_only_the_declared_answer_counts(completion, gold, template, verdict):
    assert verify(completion, gold, template=template).verdict == verdict


HACKS = [
    "7 or 8", "7, 8", "7/8", "{7}{8}", "7 8", "6 7", "all of 5, 6, 7", "1, 2, 3, 4, 5, 6, 7", "not 7", "7 or not 7",
    "either 7 or 9", "the answer might be 7", "7 (maybe)", "x \\in \\{5, 6, 7\\}", "[7, 8]", "(0, 7)", "5 < x < 9",
    "x \\ge 7", "\\{6, 7\\}", "7 \\pm 1", "7?", "7 \\text{ or } 8", "7\\\\8", "7; 8", "7 | 8", "7 & 8", "7 => 8",
    "\\frac{7}{1} or \\frac{8}{1}", "7 % 8", "8 % 7", "7 // 8", "# 7", "7 # 8", "7 <!-- 8 --> 9", "%7", "8 7",
    "7 = 8", "8 = 7",
    "x = 8 = 7", "8 \\approx 7", "6.9999", "7.0001", "\\approx 7.2", "7x", "7 apples or 8 pears", "0 7", "77", "7e1",
    "-7", "|x|",
    "gold", "the gold answer", "{{gold}}", "correct", "True", "solution", "\\infty", "\\emptyset", "nan", "inf",
    "None", "7, ...",
    "\\cdots 7", "5\\ldots 7", "\\{x : x > 0\\}", "any number", "{5, 6, 7, 8, 9}", "5-9", "5--9", "5 to 9",
    "7\u202e8", "<answer>7",
    "\\text{not } 7", "\\not 7", "\\neq 7", "\\neg 7", "\\sim 7", "\\lnot 7", "\\min(6,7)", "f(7)", "g(x) = 7x",
    "\\overline{7}8",
    "\\boxed{5}, \\boxed{7}", "\\vdots 7", "7\\\\ \\text{or} \\\\ 8", "\\begin{cases} 7 \\\\ 8 \\end{cases}",
    "7 \\lor 8",
]  # fmt: skip


@pytest.mark.parametrize("hack", HACKS)
def test_hedges_lists_and_comments_are_not_paid(hack):
    assert not verify(f"<think>7</think><answer>{hack}</answer>", "7").correct


def test_a_bad_gold_is_a_verdict_of_its_own():
    for gold, options in [
        ("", {}), ("  ", {}), ("$$", {}), ("((((", {"kind": "math"}), ("seven", {"kind": "number"}),
    ("F", {"choices": CHOICES}), ("13", {"choices": CHOICES}), ("9" * 3000, {}), ("2^{10^{10}}", {"kind": "number"}),
    ]:  # fmt: skip
        score = verify("<answer>7</answer>", gold, **options)
        assert not score.correct
        assert score.verdict in ((Verdict.bad_gold,) if "10^" not in gold else (Verdict.too_large, Verdict.wrong)), gold


def test_programming_errors_are_raised_and_name_the_allowed_words():
    with pytest.raises(ValueError, match="think_answer"):
        verify("7", "7", template="xml")
    with pytest.raises(ValueError, match="choice"):
        verify("7", "7", kind="numeric")


def test_scores_keep_the_order_of_items():
    items = [Item(f"<answer>{i}</answer>", str(i if i % 3 else i + 1)) for i in range(50)]
    items.insert(25, Item("<answer>\\sum_{i=1}^{3} i</answer>", "6"))
    with Verifier(num_workers=1) as verifier:
        rights = [score.correct for score in verifier.score(items)]
    expected = [i % 3 != 0 for i in range(50)]
    assert rights == [*expected[:25], True, *expected[25:]]


def test_import_loads_neither_sympy_nor_torch():
    code = "import sys, rewards; print([m for m in ('sympy', 'math_verify', 'torch', 'vlm_mhpo') if m in sys.modules])"
    root = str(Path(__file__).resolve().parents[2])
    environment = os.environ | {"PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=30)
    assert done.stdout.strip() == "[]", done.stderr


def _data(*parts):
    folder = os.environ.get("VLM_MHPO_SHARED_DATA") or Path(__file__).resolve().parents[3] / "shared" / "data"
    path = Path(folder).joinpath(*parts)
    if not path.exists():
        pytest.skip(f"the shared data is not here: {path.name} (set VLM_MHPO_SHARED_DATA)")
    return path


def test_every_geometry3k_gold_verifies_against_itself_and_not_against_its_neighbour():
    golds = []
    for split in ("train", "test"):
        lines = _data("formalgeo7k_geometry3k", "derived", f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        golds += [json.loads(line)["answer"] for line in lines]
    for gold, other in itertools.pairwise(golds):
        assert verify(f"<answer>{gold}</answer>", gold).correct
        assert verify(f"<answer>{other}</answer>", gold).correct == (gold == other), (gold, other)


def test_formalgeo_sympy_answers_equal_their_latex():
    folder = _data("formalgeo7k_geometry3k")
    wrong = []
    for split in ("train", "test"):
        numbers = (folder / f"split_{split}.txt").read_text().split()
        rows = [json.loads(line) for line in (folder / "derived" / f"{split}.jsonl").read_text().splitlines()]
        assert len(numbers) == len(rows)
        for row in rows:
            problem = folder / "datasets" / "problems" / f"{Path(row['images'][0]).stem}.json"
            answer = json.loads(problem.read_text(encoding="utf-8"))["problem_answer"]
            if not verify(f"<answer>{answer}</answer>", row["answer"]).correct:
                wrong.append((answer, row["answer"]))
    assert wrong == []
