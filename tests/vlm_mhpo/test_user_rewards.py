"""What reward functions of users see of a rollout and log of it, through the trainer's own nouns."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from rewards import RewardSpec, build_scorer
from tests.builders import picture, problem_row
from vlm_mhpo.config import LoggingConfig
from vlm_mhpo.records.recorder import Recorder
from vlm_mhpo.scoring import samples as samples_module
from vlm_mhpo.scoring.metrics import reward_metrics
from vlm_mhpo.scoring.samples import to_samples
from vlm_mhpo.scoring.scorer import Scoring, score_groups
from vlm_mhpo.types import Completion, Group

FUNCTION = """
def f(completions, solution, image, trainer_state, log_metric, log_extra, **kwargs):
    log_metric("progress", trainer_state.global_step / trainer_state.max_steps)
    log_extra("width", [i.width for i in image])
    return [float(c == s) for c, s in zip(completions, solution)]
"""


def group_of(name: str, width: int, texts: list[str], solution: str | None = None) -> Group:
    row = problem_row(name, "<image>What is 3 + 4?", [picture(width, 28)], solution=solution)
    prompt = SimpleNamespace(id=name, row=row, num_tokens=9, opens="")
    return Group(prompt, tuple(Completion((1, 2), torch.zeros(2), text, False) for text in texts))


def test_images_solution_and_state_go_in_and_metrics_and_columns_come_out(tmp_path):
    (tmp_path / "mine.py").write_text(FUNCTION)
    groups = [group_of("a", 56, ["7", "3 + 4 = 7"], solution="3 + 4 = 7"), group_of("b", 84, ["7", "8"])]
    spec = RewardSpec("mine", 1.0, f"{tmp_path}/mine.py:f")
    scorer = build_scorer([spec], num_workers=1, timeout_s=2.0, memory_limit_bytes=1 << 30)
    with scorer, Scoring(scorer, "boxed", max_steps=8) as scoring:
        scoring.begin(groups)
        scored = scoring(groups, 2)
    # The first row has a worked solution, the second its gold in that place.
    assert [group.rewards for group in scored] == [(0.0, 1.0), (1.0, 0.0)]
    assert [group.columns for group in scored] == [{"width": (56, 56)}, {"width": (84, 84)}]
    assert reward_metrics(scored)["logged/progress"] == 0.25
    recorder = Recorder(tmp_path / "run", LoggingConfig(tensorboard=False, sample_steps=1), start_step=0)
    recorder.write_samples(1, scored)
    recorder.close()
    lines = (tmp_path / "run" / "samples" / "step_000001.jsonl").read_text().splitlines()
    assert [json.loads(line)["logged"] for line in lines] == [{"width": 56}] * 2 + [{"width": 84}] * 2


def test_the_share_that_a_worker_judged_is_counted_and_workers_start_when_one_is_needed():
    plain = group_of("a", 56, ["\\boxed{7}", "\\boxed{3+4}"])
    symbolic = group_of("b", 56, ["\\boxed{7}", "\\boxed{\\prod_{i=7}^{7} i}"])
    limits = {"num_workers": 1, "timeout_s": 5.0, "memory_limit_bytes": 1 << 30}
    with build_scorer([RewardSpec("accuracy")], **limits) as scorer:
        first = score_groups(scorer, [plain], "boxed")
        assert scorer._verifier.pool.nursery is None
        second = score_groups(scorer, [symbolic], "boxed")
        assert len(scorer._verifier.pool.workers) == 1
    assert [group.rewards for group in (*first, *second)] == [(1.0, 1.0)] * 2
    metrics = reward_metrics([*first, *second])
    assert metrics["verdicts/by_worker"] == 0.25 and metrics["verdicts/correct"] == 1.0


def test_an_image_is_decoded_once_for_its_group_and_only_when_looked_at(monkeypatch):
    opened = []
    monkeypatch.setattr(samples_module, "open_image", lambda source: opened.append(source) or "image")
    first, second = to_samples([group_of("a", 56, ["7", "8"])], "boxed")
    assert opened == []
    assert [list(first.columns["images"]), list(second.columns["images"])] == [["image"], ["image"]]
    assert len(opened) == len(first.columns["images"]) == 1
    with pytest.raises(IndexError):
        first.columns["images"][1]
