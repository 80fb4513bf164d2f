"""Learning rates are those of transformers' schedules, one warm-up step ahead: the first step is not taken at 0."""

from __future__ import annotations

import pytest
import torch
import transformers

from vlm_mhpo.config import TrainConfig
from vlm_mhpo.engine.optimizer import learning_rate_at

STEPS, WARM, PEAK = 20, 5, 3e-4


def rates_of(**changes) -> list[float]:
    values = {"max_steps": STEPS, "num_prompts_per_step": 4, "learning_rate": PEAK} | changes
    return [learning_rate_at(step, TrainConfig(**values), STEPS) for step in range(STEPS)]


def by_transformers(name: str, warmup_steps: int, **settings) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=PEAK)
    schedule = transformers.get_scheduler(name, optimizer, warmup_steps, STEPS, scheduler_specific_kwargs=settings)
    found = []
    for _ in range(STEPS):
        found.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(
    ("name", "ours", "its"),
    [
        ("constant_with_warmup", {"lr_scheduler_type": "constant"}, {}),
        ("linear", {"lr_scheduler_type": "linear"}, {}),
        ("cosine", {"lr_scheduler_type": "cosine"}, {}),
        ("cosine_with_min_lr", {"lr_scheduler_type": "cosine_with_min_lr", "min_lr_ratio": 0.2}, {"min_lr_rate": 0.2}),
    ],
)
def test_schedules_are_those_of_transformers(name, ours, its):
    expected = by_transformers(name, WARM, **its)
    warm = [PEAK * (step + 1) / WARM for step in range(WARM)]
    assert rates_of(**ours, warmup_steps=WARM) == pytest.approx(warm + expected[WARM:], rel=1e-12)
    # A quarter of 20 steps.
    assert rates_of(**ours, warmup_ratio=0.25) == rates_of(**ours, warmup_steps=WARM)


@pytest.mark.parametrize(("ratio", "warm"), [(0.0, 0), (0.01, 1), (0.05, 1), (0.06, 2), (0.5, 10)])
def test_a_ratio_of_the_steps_is_rounded_up(ratio, warm):
    rates = rates_of(warmup_ratio=ratio)
    assert rates == pytest.approx([PEAK * min(1.0, (step + 1) / max(1, warm)) for step in range(STEPS)])
