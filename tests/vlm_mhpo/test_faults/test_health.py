"""A run that learns nothing is noticed; one that has bad luck is left alone."""

import json
import random

import pytest

from tests.vlm_mhpo.config_cases import minimal, with_values
from vlm_mhpo.config import Config, parse_config
from vlm_mhpo.faults.guard import read_history
from vlm_mhpo.faults.health import Alarm, Vitals, alarms, vitals_of

GOOD = Vitals(idle=False, truncated=False, timeouts=0.0, accuracy=0.5)
IDLE = Vitals(idle=True, truncated=False, timeouts=0.0, accuracy=0.5)
# Steps far apart, and steps after them.
WHEN_APART = [(0, []), (1, []), (2, []), (1, [GOOD]), (1, [GOOD, Vitals(False, False, 0.0, 0.5, 0.31)])]
CUT = Vitals(idle=False, truncated=True, timeouts=0.0, accuracy=0.5)


def alarms_of(history: list[Vitals], config: Config) -> list[Alarm]:
    """The alarms under a whole configuration."""
    return alarms(history, config.faults, config.rewards, config.rollout, config.train.num_prompts_per_step)


def config_of(prompts=16, generations=4, **changes):
    sizes = {"train.num_prompts_per_step": prompts, "train.num_minibatches": 1}
    return parse_config(with_values(minimal(), sizes | {"rollout.num_generations": generations} | changes))


def of(timeouts=0.0, accuracy=0.5):
    return Vitals(idle=False, truncated=False, timeouts=timeouts, accuracy=accuracy)


def row(**more):
    return {"step": 1, "reward": 0.5, "frac_reward_zero_std": 0.0, "completions/clipped_ratio": 0.0, **more}


def test_vitals_are_read_from_a_row_of_metrics():
    assert vitals_of(row(**{"verdicts/correct": 0.25, "verdicts/timeout": 0.1, "frac_reward_zero_std": 1.0})) == Vitals(
        idle=True, truncated=False, timeouts=0.1, accuracy=0.25
    )
    assert vitals_of(row(**{"verdicts/wrong": 1.0, "completions/clipped_ratio": 1.0})) == Vitals(
        idle=False, truncated=True, timeouts=0.0, accuracy=0.0
    )
    # Without an accuracy reward nothing is verified: that is not an accuracy of 0.
    assert vitals_of(row(**{"verdicts/not_verified": 1.0})).accuracy is None
    assert vitals_of(row(**{"verdicts/not_verified": 1.0})).timeouts is None


@pytest.mark.parametrize(("bad", "key"), [(IDLE, "idle"), (CUT, "truncated")])
@pytest.mark.parametrize("action", ["warn", "stop"])
def test_a_streak_is_told_once_when_it_reaches_its_limit(bad, key, action):
    config = config_of(**{f"faults.max_{key}_steps": 3, f"faults.on_{key}": action})
    told = [alarms_of([GOOD, *[bad] * count], config) for count in range(6)]
    assert [len(found) for found in told] == [0, 0, 0, 1, 0, 0]
    assert told[3][0].stops == (action == "stop")
    assert told[3][0].message.startswith("3 steps in a row every ")
    # A good step in between starts the count again.
    assert alarms_of([bad, bad, GOOD, bad, bad], config) == []
    assert alarms_of([bad] * 3, config_of(**{f"faults.max_{key}_steps": 0})) == []


def test_truncation_names_the_budget_to_raise():
    found = alarms_of([CUT] * 2, config_of(**{"faults.max_truncated_steps": 2, "rollout.max_completion_length": 77}))
    assert "rollout.max_completion_length=77: raise it" in found[0].message


def apart(gap: float | None) -> Vitals:
    return Vitals(idle=False, truncated=False, timeouts=0.0, accuracy=0.5, sampling_gap=gap)


def test_a_sampler_that_is_far_from_the_trainer_is_told_once_or_stops_every_time():
    near, far = apart(0.05), apart(0.31)
    assert vitals_of(row(**{"sampling/sampling_logp_difference/mean": 0.31})) == Vitals(False, False, None, None, 0.31)
    told = [alarms_of([near, apart(None), *[far] * count, *after], config_of()) for count, after in WHEN_APART]
    assert [len(found) for found in told] == [0, 1, 0, 0, 0]
    assert not told[1][0].stops and "differ by 0.31 nats per token" in told[1][0].message
    assert "vlm-mhpo doctor CONFIG --parity" in told[1][0].message
    # A run that goes on with another setting stops although its history was told before.
    stopping = config_of(**{"faults.on_sampling_gap": "stop"})
    assert [[a.stops for a in alarms_of([far] * count, stopping)] for count in (1, 2)] == [[True], [True]]
    assert alarms_of([far, near], stopping) == []
    assert alarms_of([far], config_of(**{"faults.max_sampling_gap": 0.0})) == []
    assert alarms_of([far], config_of(**{"faults.max_sampling_gap": 0.4})) == []


@pytest.mark.parametrize(
    ("generations", "shares", "stops"),
    [
        (4, [0.2], False),
        (4, [0.21], True),
        # 16 x 2 = 32 verifications are too few to judge alone: with the step before they are 64.
        (2, [1.0], False),
        (2, [0.0, 0.4], False),
        (2, [0.0, 0.5], True),
        (2, [1.0, 0.0, 0.3], False),
        (8, [1.0, 0.0], False),
    ],
)
def test_more_than_a_fifth_of_timeouts_stops_the_run(generations, shares, stops):
    history = [of(timeouts=share) for share in shares]
    found = alarms_of(history, config_of(generations=generations))
    assert [finding.stops for finding in found] == ([True] if stops else [])
    assert alarms_of(history, config_of(generations=generations, **{"rewards.max_timeout_share": 1.0})) == []
    if stops:
        assert "raise rewards.timeout_s" in found[0].message


def test_three_steps_without_a_correct_answer_after_good_ones_stop_the_run():
    zero, good = of(accuracy=0.0), [of(accuracy=0.3)] * 10
    assert alarms_of([*good, zero, zero], config_of()) == []
    (found,) = alarms_of([*good, zero, zero, zero], config_of())
    assert found.stops and found.message.startswith("no completion was right in the last 3 steps")
    assert alarms_of([*good, zero, zero, zero], config_of(**{"rewards.max_zero_accuracy_steps": 0})) == []
    # With a batch of 128 prompts a single good step says enough.
    assert len(alarms_of([good[0], zero, zero, zero], config_of(prompts=128))) == 1
    # Never right is a hard start, not a collapse; and without verification there is no accuracy.
    assert alarms_of([zero] * 50, config_of()) == []
    assert alarms_of([*good, *[Vitals(False, False, None, None)] * 9], config_of()) == []


def chance(right, wrong, failures):
    """Laplace's rule of succession, one failure after the other."""
    product = 1.0
    for more in range(failures):
        product *= (wrong + more + 1) / (right + wrong + more + 2)
    return product


@pytest.mark.parametrize(
    ("accuracy", "steps", "prompts"), [(0.5, 20, 1), (0.25, 8, 2), (0.125, 4, 8), (0.03125, 20, 32)]
)
def test_zeros_that_chance_explains_do_not_stop_a_run(accuracy, steps, prompts):
    right = accuracy * steps * prompts
    zeros = next(n for n in range(3, 10**6) if chance(right, steps * prompts - right, n * prompts) < 1e-6)
    before = [of(accuracy=accuracy)] * steps
    config = config_of(prompts=prompts, generations=32)
    assert alarms_of([*before, *[of(accuracy=0.0)] * (zeros - 1)], config) == []
    assert len(alarms_of([*before, *[of(accuracy=0.0)] * zeros], config)) == 1


def test_honest_tiny_runs_are_not_stopped():
    """A policy that is right with probability p, all completions of a prompt alike: 40 runs of 300 steps."""
    draw = random.Random(0)
    config = config_of(prompts=2, generations=8)
    for run in range(40):
        share = 0.02 + 0.01 * run
        history = []
        for _ in range(300):
            history.append(of(accuracy=sum(draw.random() < share for _ in range(2)) / 2))
            assert alarms_of(history, config) == [], (share, len(history))


def test_a_continued_run_takes_its_history_from_the_metrics(tmp_path):
    file = tmp_path / "metrics.jsonl"
    assert read_history(file, 5) == []
    rows = [
        {"step": 0, "eval/accuracy": 0.5},
        row(),
        row(step=2, frac_reward_zero_std=1.0),
        row(step=3, frac_reward_zero_std=1.0),
    ]
    file.write_text("".join(json.dumps(each) + "\n" for each in rows))
    assert [vitals.idle for vitals in read_history(file, 2)] == [False, True]
