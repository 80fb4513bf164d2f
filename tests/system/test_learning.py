"""Training goes in the direction of the reward, for every seed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.system.ranks import run_ranks

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

BASE = Path(__file__).with_name("base.yaml")
SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def rewards_by_run(tmp_path_factory) -> dict[str, list[float]]:
    """Mean share of even tokens in each step of runs that reward it, that punish it, and that climb the loss."""
    folder = tmp_path_factory.mktemp("learning")
    (folder / "rows.jsonl").write_text(
        "".join(json.dumps({"problem": f"What is {n} + 1 ?", "answer": str(n + 1)}) + "\n" for n in range(16))
    )
    common = [
        "model.path=tiny:qwen2",
        f"data.train={folder / 'rows.jsonl'}",
        "data.eval=null",
        "rollout.num_generations=8",
        "rollout.max_completion_length=3",
        "rollout.old_log_probs=sampler",
        "train.num_prompts_per_step=8",
        "train.num_minibatches=4",
        "train.max_steps=12",
        "train.learning_rate=1.0e-3",
        "checkpoint.save_steps=0",
    ]
    runs = {f"even{seed}": ("even_tokens", seed) for seed in SEEDS} | {"odd0": ("odd_tokens", 0)}
    runs["uphill0"] = ("even_tokens", 0)
    uphill = "objective={name: custom, path: 'tests/system/user_losses.py:negated_mhpo'}"
    requests = [
        {
            "config": str(BASE),
            "output_dir": str(folder / name),
            "overrides": [
                *common,
                f"seed={seed}",
                f"rewards.functions=[{{name: parity, path: 'tests/system/user_rewards.py:{function}'}}]",
                *([uphill] if name.startswith("uphill") else []),
            ],
        }
        for name, (function, seed) in runs.items()
    ]
    (folder / "requests.json").write_text(json.dumps(requests))
    (ended,) = run_ranks(("-m", "tests.system.drive_runs", folder / "requests.json"), folder, timeout_s=150)
    assert ended.code == 0, ended.stderr[-3000:]
    return {
        name: [abs(json.loads(line)["reward"]) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
        for name in runs
    }


def rise(rewards: list[float]) -> float:
    """Mean of the last three steps above the mean of the first two."""
    return sum(rewards[-3:]) / 3 - sum(rewards[:2]) / 2


@pytest.mark.parametrize("seed", SEEDS)
def test_the_reward_rises_by_a_third_of_its_range(seed, rewards_by_run):
    assert rise(rewards_by_run[f"even{seed}"]) >= 0.3


def test_with_the_reward_negated_the_same_share_falls(rewards_by_run):
    assert rise(rewards_by_run["odd0"]) <= -0.3


def test_with_the_loss_negated_the_same_share_falls(rewards_by_run):
    assert rise(rewards_by_run["uphill0"]) <= -0.3
