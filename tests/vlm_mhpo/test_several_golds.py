"""Rows with several right answers in a run: rewards, early verdicts, evaluation, records and what tells rows apart."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from data_prep.schema import make_row
from rewards import RewardSpec, Verifier, build_scorer
from vlm_mhpo.commands.doctor.rows import _examine_golds
from vlm_mhpo.commands.pass_rate import with_pass_rates
from vlm_mhpo.config import RewardsConfig, parse_config
from vlm_mhpo.evaluation.benchmarks.shared import by_verifier
from vlm_mhpo.evaluation.protocol import identity
from vlm_mhpo.evaluation.tasks import verify_groups
from vlm_mhpo.prompts.content import digest_of_rows
from vlm_mhpo.prompts.rows import read_rows
from vlm_mhpo.records.evaluation import EvalItem
from vlm_mhpo.records.nouns import Sample as SampleRecord
from vlm_mhpo.records.recorder import sample_rows
from vlm_mhpo.scoring.golds import gold_scores
from vlm_mhpo.scoring.scorer import Scoring, score_groups
from vlm_mhpo.types import Completion, Group, ScoredGroup

ROW = make_row(id="a", problem="Which city?", answer="NYC", equivalent_answers=("New York City",))
TEXTS = [f"<think>so</think><answer>{answer}</answer>" for answer in ("NYC", "new york city", "Boston")]
TRAIN = {"max_steps": 4, "num_prompts_per_step": 4}
RIGHT = [True, True, False]


def group(row=ROW) -> Group:
    prompt = SimpleNamespace(id=row.id, row=row, opens="")
    return Group(prompt, tuple(Completion((1,), torch.zeros(1), text, False) for text in TEXTS))


def test_rewards_and_early_verdicts_pay_each_of_them():
    specs = [RewardSpec("accuracy")]
    with build_scorer(specs, num_workers=1, timeout_s=5.0, memory_limit_bytes=2**30) as scorer:
        expected = score_groups(scorer, [group()], "think_answer")
        first = group()
        with Scoring(scorer, "think_answer") as scoring:
            scoring.begin([first])
            assert scoring([first])[0].rewards == expected[0].rewards
    assert list(expected[0].rewards) == [1.0, 1.0, 0.0]


OTHERS = {
    "trl": "def f(completions, equivalent_answers, **kwargs):\n    return [len(each) for each in equivalent_answers]\n",
    "easyr1": "def f(reward_input):\n    return {'overall': len(reward_input['equivalent_answers'])}\n",
    "verl": "def f(solution_str, ground_truth, extra_info):\n    return len(extra_info['equivalent_answers'])\n",
}


@pytest.mark.parametrize("form", OTHERS)
@pytest.mark.parametrize("others", [(), ("New York City",)])
def test_a_reward_function_gets_the_other_answers_of_every_row(tmp_path, form, others):
    (tmp_path / "mine.py").write_text(OTHERS[form])
    spec = RewardSpec("mine", 1.0, f"{tmp_path}/mine.py:f")
    with build_scorer([spec], num_workers=1, timeout_s=2.0, memory_limit_bytes=1 << 30) as scorer:
        (scored,) = score_groups(scorer, [group(replace(ROW, equivalent_answers=others))], "think_answer")
    assert scored.rewards == (float(len(others)),) * 3


def test_held_out_rows_and_benchmarks_are_judged_by_all_of_them():
    with Verifier(num_workers=1) as verifier:
        (scores,) = verify_groups([ROW], [group()], verifier, "think_answer")
    assert [score.correct for score in scores] == RIGHT
    assert [by_verifier(ROW, text).correct for text in TEXTS] == RIGHT


def test_every_gold_of_a_row_is_checked():
    bad = replace(ROW, kind="number", answer="7", equivalent_answers=("8", "many"))
    good = replace(bad, equivalent_answers=("8",))
    scores = list(gold_scores([good, bad, ROW], RewardsConfig()))
    assert [(gold, score.correct) for gold, score in scores] == [("7", True), ("many", False), ("NYC", True)]
    config = parse_config({"output_dir": "run", "model": {"path": "m"}, "data": {"train": "x"}, "train": TRAIN})
    check = _examine_golds([bad, good], 2, "training", config)
    assert check.state == "warning" and "1 of 2 golds verify" in check.text
    assert "row a: 'many': " in check.text and "'7'" not in check.text


def test_rows_with_other_golds_are_other_rows(tmp_path):
    plain = replace(ROW, equivalent_answers=())
    assert digest_of_rows([ROW]) != digest_of_rows([plain])
    assert identity(ROW) != identity(plain) and identity(plain)[2] == "NYC"
    asked = []

    def judge(rows):
        asked.append([row.gold for row in rows])
        return [0.5 for _ in rows]

    for row in (plain, ROW, ROW):
        list(with_pass_rates([row], judge, tmp_path / "cache.jsonl", "s"))
    assert asked == [["NYC"], [("NYC", "New York City")]]


def test_records_and_pages_name_all_of_them(tmp_path):
    scored = ScoredGroup(
        group=group(),
        rewards=(1.0, 1.0, 0.0),
        rewards_by_name={},
        verdicts=("correct", "correct", "wrong"),
        extracted=("NYC", "new york city", "Boston"),
    )
    record = sample_rows(tmp_path, 1, scored)[0]
    record = SampleRecord.model_validate_json(json.dumps(record))
    assert record.shown_gold == "NYC or New York City"
    item = EvalItem(
        id="a", problem="Which?", gold="NYC", equivalent_answers=("New York City",), num_images=0, images=(), source="",
        kind="auto", choices=None, completions=(),
    )  # fmt: skip
    assert item.shown_gold == "NYC or New York City"
    assert EvalItem.model_validate(item.model_dump() | {"equivalent_answers": ()}).shown_gold == "NYC"


@pytest.mark.parametrize(("meaning", "gold"), [("any", ("3", "5")), ("all", "3, 5")])
def test_the_configuration_says_what_a_list_means(tmp_path, meaning, gold):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"problem": "Which?", "answer": ["3", "5"]}) + "\n")
    values = {"output_dir": "run", "model": {"path": "m"}, "train": TRAIN}
    data = {"train": str(tmp_path / "rows.jsonl"), "answer_lists": meaning}
    config = parse_config(values | {"data": data})
    (row,) = read_rows(config.data.train, config.data, None, None)
    assert row.gold == gold
