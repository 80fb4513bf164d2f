"""In bfloat16 the sampler is the policy that is trained, and log-ratios are those of the policies, not of rounding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from tests.builders import prompts_of
from tests.vlm_mhpo.bfloat16_cases import (
    BIASES,
    FAMILIES,
    build_and_load_bfloat16,
    sampled_groups,
    three_log_probs,
)
from vlm_mhpo.models.logprobs import BLOCK, head_logits, product, token_log_probs
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler

# Nats per token on average. With scores in bfloat16 the sampler was 0.15 to 0.9 away at 20 and 60, 0.26 to 4.8 at 150.
ROOM = {0.0: 0.05, 20.0: 0.1, 60.0: 0.1, 150.0: 0.2}


@pytest.mark.parametrize("bias", BIASES)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_sampler_is_no_farther_from_the_truth_than_the_trainers_sdpa(tmp_path, family, bias):
    model = build_and_load_bfloat16(tmp_path, family, bias)
    sampled, trained, truth = three_log_probs(model, sampled_groups(model))
    own = (trained - truth).abs().mean()
    assert (sampled - truth).abs().mean() <= 1.25 * own
    # Two roundings of that size, independent of each other.
    between = (sampled - trained).abs().mean()
    assert between <= math.sqrt(2.0) * own and between < ROOM[bias]


def head_and_states(num_states: int = 2000, width: int = 256, vocabulary: int = 2000):
    """A bfloat16 head with logits of std 7, states, and tokens drawn from their softmax: chosen ones have some 23."""
    random = torch.Generator().manual_seed(0)
    head = nn.Linear(width, vocabulary, bias=False).bfloat16()
    with torch.no_grad():
        head.weight.copy_(torch.randn(vocabulary, width, generator=random) * 7.0 / math.sqrt(width))
    states = torch.randn(num_states, width, generator=random).bfloat16()
    uniform = torch.rand(num_states, vocabulary, generator=random, dtype=torch.float64)
    # Gumbel's way to draw.
    logits = states.double() @ head.weight.detach().double().T
    return head, states, (logits - (-uniform.log()).log()).argmax(dim=-1), random


@torch.no_grad()
def moved(head: nn.Linear, share: float, random: torch.Generator) -> nn.Linear:
    """The head after a step of `share` of its weights' size, in bfloat16 again: most weights stay what they were."""
    other = nn.Linear(head.in_features, head.out_features, bias=False).bfloat16()
    step = share * float(head.weight.float().std()) * torch.randn(head.weight.shape, generator=random)
    other.weight.copy_(head.weight.float() + step)
    return other


@pytest.mark.parametrize("share", [2e-4, 6e-4, 2e-3])
def test_the_log_ratio_of_two_policies_has_its_true_spread_at_logits_of_twenty_and_more(share):
    head, states, targets, random = head_and_states()
    other = moved(head, share, random)
    none = torch.zeros(head.out_features, dtype=torch.bool)

    def of_trainer(one: nn.Linear) -> torch.Tensor:
        return token_log_probs(states, targets, one, none, temperature=1.0, chunk_size=384)[0].detach().double()

    def of_sampler(one: nn.Linear) -> torch.Tensor:
        logits = head_logits(states, one)
        return (logits.gather(-1, targets[:, None]).squeeze(-1) - logits.logsumexp(dim=-1)).detach().double()

    def true(one: nn.Linear) -> torch.Tensor:
        logits = states.double() @ one.weight.detach().double().T
        assert 20.0 < logits.gather(-1, targets[:, None]).mean() < 25.0
        return logits.log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)

    expected = true(other) - true(head)
    assert 1e-4 < expected.std() < 0.02
    for found in (of_trainer(other) - of_trainer(head), of_sampler(other) - of_sampler(head)):
        assert float(found.std()) == pytest.approx(float(expected.std()), rel=0.1)
        # Token by token: float32 rounds logits of 23 by 1e-6, sums of 256 products by some more.
        assert (found - expected).abs().max() < 1e-4


def test_entropies_are_those_of_the_unrounded_logits():
    head, states, targets, _ = head_and_states()
    none = torch.zeros(head.out_features, dtype=torch.bool)
    _, found = token_log_probs(states, targets, head, none, temperature=0.7, chunk_size=384)
    logits = states.double() @ head.weight.detach().double().T / 0.7
    assert (found.double() - torch.distributions.Categorical(logits=logits).entropy()).abs().max() < 1e-4


@pytest.mark.parametrize("shape", [(1, 16, 3), (2 * BLOCK + 1, 40, BLOCK - 1), (5, 1, 3 * BLOCK), (0, 8, 4), (4, 8, 0)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_product_is_rounded_to_float32_at_most_whatever_its_blocks(shape, dtype):
    rows, inner, columns = shape
    random = torch.Generator().manual_seed(1)
    left = torch.randn(rows, inner, generator=random).to(dtype)
    # Transposed, as the weight of a head is.
    right = torch.randn(columns, inner, generator=random).to(dtype).T
    found = product(left, right)
    exact = left.double() @ right.double()
    room = inner * torch.finfo(torch.float32).eps * (left.double().abs() @ right.double().abs())
    assert found.dtype == torch.float32 and found.shape == exact.shape
    assert ((found.double() - exact).abs() <= room).all()


def test_float32_is_what_it_was():
    """The head's own product, to the bit."""
    head = nn.Linear(48, 301, bias=False)
    states = torch.randn(70, 48, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        assert torch.equal(head_logits(states, head), head(states))


def test_gradients_are_rounded_with_the_gradient_of_a_logit_and_at_the_end_and_not_before():
    """From rounded logits they were off by 1.7 %, whatever the blocks of backward."""
    head, states, targets, random = head_and_states(num_states=500)
    states.requires_grad_()
    none = torch.zeros(head.out_features, dtype=torch.bool)
    weights = torch.randn(len(states), generator=random)
    log_probs, _ = token_log_probs(states, targets, head, none, temperature=1.0, chunk_size=50)
    found = torch.autograd.grad((log_probs * weights).sum(), [states, head.weight])
    exact = [tensor.detach().double().requires_grad_() for tensor in (states, head.weight)]
    log_probs = (exact[0] @ exact[1].T).log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)
    for gradient, right in zip(found, torch.autograd.grad((log_probs * weights).sum(), exact), strict=True):
        # A rounding to bfloat16 is off by 2^-8 at most, evenly spread; there are two.
        assert (gradient.double() - right).norm() / right.norm() < 2**-8 * math.sqrt(2.0 / 3.0)


def test_the_sampler_chooses_and_judges_by_the_unrounded_logits(tmp_path):
    """Rounded, several words share the largest logit, and the first of them is taken."""
    model = build_and_load_bfloat16(tmp_path, "qwen2", 0.0)
    states = []
    watch = model.policy.model.lm_head.register_forward_pre_hook(lambda module, given: states.append(given[0][0]))
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=100_000)
    allowed = torch.where(model.policy.banned_V, -math.inf, 0.0).double()
    for prompt in prompts_of(model):
        states.clear()
        ((one,),) = (
            group.completions for group in sampler.sample([prompt], SamplingParams(1, 128, temperature=0.0), (5,))
        )
        truth = torch.stack(states).double() @ model.policy.model.lm_head.weight.detach().double().T + allowed
        assert one.token_ids == tuple(truth.argmax(dim=-1).tolist())
        expected = truth.log_softmax(dim=-1).amax(dim=-1)
        assert torch.allclose(one.log_probs.double(), expected, rtol=0, atol=1e-4)
    watch.remove()
