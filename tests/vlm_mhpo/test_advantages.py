"""Advantages are relative to their group: centred, scaled by the chosen spread, and never mixed.

Legend: P prompts, G completions of a prompt.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.reference import advantages as reference
from vlm_mhpo.scoring.advantages import advantages, group_advantages

SCALES = ("group", "batch", "none")


@st.composite
def reward_groups(draw: st.DrawFn, max_prompts: int = 4) -> torch.Tensor:
    """Rewards [P, G] in float64: verdicts, weighted sums, all-equal groups, or any number within +-10."""
    num_prompts, num_generations = draw(st.integers(1, max_prompts)), draw(st.integers(2, 9))
    reward = draw(
        st.sampled_from(
            [
                st.sampled_from([0.0, 1.0]),
                st.sampled_from([0.1, 0.9, 1.0, 1.1]),
                st.sampled_from([0.1]),
                st.floats(-10.0, 10.0),
            ]
        )
    )
    group = st.lists(reward, min_size=num_generations, max_size=num_generations)
    return torch.tensor(draw(st.lists(group, min_size=num_prompts, max_size=num_prompts)), dtype=torch.float64)


def assert_equal_up_to_rounding(computed: torch.Tensor, expected: torch.Tensor, rewards: torch.Tensor) -> None:
    """Equal within what float rounding of the mean does after the division by a spread of at least 1e-4."""
    rounding = 16 * torch.finfo(computed.dtype).eps * rewards.abs().max().item() / 1e-4
    torch.testing.assert_close(computed, expected, rtol=1e-9, atol=rounding)


def test_values_by_hand() -> None:
    # Mean 1/2, unbiased variance 4 * (1/4) / 3 = 1/3.
    half = 0.5 / (math.sqrt(1 / 3) + 1e-4)
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]], dtype=torch.float64)
    expected = torch.tensor([[half, -half, -half, half], [0.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards), expected, rtol=1e-12, atol=0)
    centred = torch.tensor([[0.5, -0.5, -0.5, 0.5], [0.0] * 4], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, scale_rewards="none"), centred, rtol=1e-12, atol=0)
    # All eight: mean 0.4, squared deviations 2 * 0.36 + 2 * 0.16 + 4 * 0.01 = 1.08, variance 1.08 / 7.
    batch = centred / (math.sqrt(1.08 / 7) + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, scale_rewards="batch"), batch, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale_rewards", SCALES)
@settings(max_examples=334, derandomize=True, deadline=None)
@given(rewards=reward_groups())
def test_equals_the_reference_and_sums_to_zero(scale_rewards: str, rewards: torch.Tensor) -> None:
    advantages = group_advantages(rewards, scale_rewards=scale_rewards)
    expected = torch.tensor(reference.group_advantages(rewards.tolist(), scale_rewards), dtype=torch.float64)
    assert_equal_up_to_rounding(advantages, expected, rewards)
    assert advantages.sum(dim=1).abs().max() <= 1e-6 * rewards.shape[1]


@settings(max_examples=300, derandomize=True, deadline=None)
@given(
    ticks=st.integers(2, 9).flatmap(
        lambda size: st.lists(st.lists(st.integers(-32, 32), min_size=size, max_size=size), min_size=1, max_size=4)
    ),
    scale_rewards=st.sampled_from(SCALES),
)
def test_float32_rewards_equal_the_reference(ticks: list[list[int]], scale_rewards: str) -> None:
    rewards = torch.tensor(ticks, dtype=torch.float32) / 16
    advantages = group_advantages(rewards, scale_rewards=scale_rewards)
    expected = torch.tensor(reference.group_advantages(rewards.tolist(), scale_rewards), dtype=torch.float32)
    assert advantages.dtype == torch.float32
    torch.testing.assert_close(advantages, expected, rtol=1e-5, atol=1e-5)
    assert advantages.sum(dim=1).abs().max() <= 1e-6 * rewards.shape[1]


@pytest.mark.parametrize("scale_rewards", SCALES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@settings(max_examples=200, derandomize=True, deadline=None)
@given(reward=st.floats(-1e6, 1e6), num_generations=st.integers(2, 17))
def test_an_all_equal_group_gives_exact_zeros(
    scale_rewards: str, dtype: torch.dtype, reward: float, num_generations: int
) -> None:
    rewards = torch.full((2, num_generations), reward, dtype=dtype)
    rewards[1, 0] = reward / 2 + 1.0
    advantages = group_advantages(rewards, scale_rewards=scale_rewards)
    assert not advantages[0].any() and advantages.isfinite().all()
    assert not group_advantages(rewards[:1], scale_rewards=scale_rewards).any()


@settings(max_examples=300, derandomize=True, deadline=None)
@given(rewards=reward_groups(), shift=st.floats(-5.0, 5.0), scale_rewards=st.sampled_from(SCALES))
def test_a_constant_added_to_a_group_changes_nothing(rewards: torch.Tensor, shift: float, scale_rewards: str) -> None:
    # Under "batch" the constant must reach every group, or the spread of the batch changes.
    shifted = group_advantages(rewards + shift, scale_rewards=scale_rewards)
    assert_equal_up_to_rounding(shifted, group_advantages(rewards, scale_rewards=scale_rewards), rewards.abs() + 5.0)


@pytest.mark.parametrize("scale_rewards", ["group", "batch"])
@settings(max_examples=200, derandomize=True, deadline=None)
@given(rewards=reward_groups(), factor=st.floats(0.01, 100.0))
def test_scaling_the_rewards_changes_nothing_where_they_are_divided_by_their_spread(
    scale_rewards: str, rewards: torch.Tensor, factor: float
) -> None:
    rewards = (rewards * 16).round() / 16
    plain = group_advantages(rewards, scale_rewards=scale_rewards, epsilon=1e-12)
    scaled = group_advantages(rewards * factor, scale_rewards=scale_rewards, epsilon=1e-12)
    torch.testing.assert_close(scaled, plain, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("scale_rewards", ["group", "none"])
def test_groups_never_mix(scale_rewards: str) -> None:
    rewards = torch.rand(5, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = group_advantages(rewards, scale_rewards=scale_rewards)
    for index in range(5):
        alone = group_advantages(rewards[index : index + 1], scale_rewards=scale_rewards)
        torch.testing.assert_close(together[index : index + 1], alone, rtol=1e-12, atol=1e-14)
        changed = rewards.clone()
        changed[index] = 100.0 * changed[index]
        others = torch.arange(5) != index
        assert torch.equal(group_advantages(changed, scale_rewards=scale_rewards)[others], together[others])


def test_batch_scale_keeps_the_mean_of_the_group() -> None:
    # Two groups far apart: centred on the batch they would be all positive and all negative.
    rewards = torch.tensor([[0.0, 1.0], [100.0, 101.0]], dtype=torch.float64)
    std = math.sqrt((50.5**2 + 49.5**2) * 2 / 3)
    expected = torch.tensor([[-0.5, 0.5]] * 2, dtype=torch.float64) / (std + 1e-4)
    torch.testing.assert_close(group_advantages(rewards, scale_rewards="batch"), expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("scale_rewards", SCALES)
def test_bad_rewards_are_refused(scale_rewards: str) -> None:
    with pytest.raises(ValueError, match="2"):
        group_advantages(torch.zeros(4, 1), scale_rewards=scale_rewards)
    for junk in (math.nan, math.inf, -math.inf):
        rewards = torch.zeros(3, 4)
        rewards[1, 2] = junk
        with pytest.raises(ValueError):
            group_advantages(rewards, scale_rewards=scale_rewards)


def test_an_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="scale_rewards"):
        group_advantages(torch.eye(2), scale_rewards="groups")


# ---- other baselines -------------------------------------------------------------------------------------------


def test_other_baselines_by_hand() -> None:
    rewards = torch.tensor([[1.0, 0.0, 0.0], [2.0, 2.0, 2.0]], dtype=torch.float64)
    # Leave one out: 1 - 0, 0 - 1/2, 0 - 1/2; equal rewards are exact zeros.
    expected = torch.tensor([[1.0, -0.5, -0.5], [0.0, 0.0, 0.0]], dtype=torch.float64)
    found = advantages(rewards, kind="rloo", scale_rewards="none")
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)
    assert not found[1].any()
    # The batch has mean 7/6 and squared deviations 1/36 + 2 * 49/36 + 3 * 25/36 = 174/36, variance 174/180.
    centred = rewards - 7 / 6
    found = advantages(rewards, kind="reinforce_plus_plus", scale_rewards="batch")
    torch.testing.assert_close(found, centred / (math.sqrt(174 / 180) + 1e-4), rtol=1e-12, atol=0)


@settings(max_examples=200, derandomize=True, deadline=None)
@given(rewards=reward_groups())
def test_other_baselines_equal_the_reference(rewards: torch.Tensor) -> None:
    groups = rewards.tolist()
    found = advantages(rewards, kind="rloo", scale_rewards="none")
    torch.testing.assert_close(found, torch.tensor(reference.rloo(groups), dtype=torch.float64), rtol=1e-9, atol=1e-12)
    found = advantages(rewards, kind="reinforce_plus_plus", scale_rewards="batch")
    expected = torch.tensor(reference.reinforce_plus_plus(groups), dtype=torch.float64)
    assert_equal_up_to_rounding(found, expected, rewards)
    # Of the whole batch, not of a group, the sum is 0.
    assert abs(float(found.sum())) <= 1e-9 * max(1.0, float(found.abs().sum()))


@pytest.mark.parametrize("scale_rewards", SCALES)
def test_the_kind_group_is_the_advantage_of_the_group(scale_rewards: str) -> None:
    rewards = torch.rand(3, 4, generator=torch.Generator().manual_seed(0))
    assert torch.equal(
        advantages(rewards, scale_rewards=scale_rewards), group_advantages(rewards, scale_rewards=scale_rewards)
    )
