"""Soft caps and factors behind the head: log-probs, entropies and gradients against torch's own graph in float64."""

import pytest
import torch
from torch import nn

from vlm_mhpo.models.logit_rule import LogitRule
from vlm_mhpo.models.logprobs import head_logits, token_log_probs

N, H, V = 37, 16, 90
BANNED = (3, 70)


def case(dtype, rule):
    """States, targets, a head with logits of 20 and more, so that a cap of 15 bends them, and the banned words."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(H, V, bias=False, dtype=dtype)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, H, generator=generator) * 3.0)
    head.logit_rule = rule
    hidden = torch.randn(N, H, generator=generator).to(dtype).requires_grad_()
    banned = torch.zeros(V, dtype=torch.bool)
    banned[list(BANNED)] = True
    targets = torch.tensor([index for index in range(V) if index not in BANNED])[torch.arange(N) % (V - len(BANNED))]
    return hidden, targets, head, banned


def exact(hidden, targets, head, banned, temperature):
    """Log-probs, entropies and their gradients by autograd of the written formula."""
    states, weight = (tensor.detach().double().requires_grad_() for tensor in (hidden, head.weight))
    rule = head.logit_rule
    logits = rule.scale * states @ weight.T
    if rule.cap:
        logits = rule.cap * torch.tanh(logits / rule.cap)
    logits = (logits / temperature)[:, ~banned]
    log_probs = logits.log_softmax(dim=-1)
    entropies = -(log_probs.exp() * log_probs).sum(dim=-1)
    chosen = log_probs.gather(-1, ((~banned).cumsum(dim=0)[targets] - 1)[:, None])[:, 0]
    weights = torch.cos(torch.arange(N)).double()
    gradients = torch.autograd.grad((chosen * weights + 0.3 * entropies * weights.flip(0)).sum(), (states, weight))
    return chosen.detach(), entropies.detach(), gradients


@pytest.mark.parametrize("chunk_size", [5, 1000])
@pytest.mark.parametrize("rule", [LogitRule(cap=15.0), LogitRule(scale=0.25), LogitRule(scale=1.5, cap=30.0)])
def test_the_chunked_head_follows_the_rule(rule, chunk_size):
    hidden, targets, head, banned = case(torch.float32, rule)
    options = dict(temperature=0.7, chunk_size=chunk_size, entropy_learns=True)
    log_probs, entropies = token_log_probs(hidden, targets, head, banned, **options)
    weights = torch.cos(torch.arange(N))
    found = torch.autograd.grad((log_probs * weights + 0.3 * entropies * weights.flip(0)).sum(), (hidden, head.weight))
    true, true_entropies, expected = exact(hidden, targets, head, banned, 0.7)
    torch.testing.assert_close(log_probs.double(), true, atol=2e-5, rtol=0)
    torch.testing.assert_close(entropies.double(), true_entropies, atol=2e-5, rtol=0)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, atol=2e-5 * float(other.abs().max()), rtol=1e-4)


def test_in_bfloat16_the_gradient_goes_through_the_cap():
    hidden, targets, head, banned = case(torch.bfloat16, LogitRule(cap=15.0))
    log_probs, entropies = token_log_probs(
        hidden, targets, head, banned, temperature=0.7, chunk_size=5, entropy_learns=True
    )
    weights = torch.cos(torch.arange(N))
    found = torch.autograd.grad((log_probs * weights + 0.3 * entropies * weights.flip(0)).sum(), (hidden, head.weight))
    true, _, expected = exact(hidden, targets, head, banned, 0.7)
    torch.testing.assert_close(log_probs.double(), true, atol=2e-5, rtol=0)
    for one, other in zip(found, expected, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 5e-3


def test_sampler_and_trainer_read_the_same_logits():
    hidden, targets, head, banned = case(torch.float32, LogitRule(scale=1.5, cap=30.0))
    logits = head_logits(hidden, head)
    assert float(logits.abs().max()) <= 30.0
    expected = (logits / 0.7).masked_fill(banned, -torch.inf).log_softmax(dim=-1).gather(-1, targets[:, None])[:, 0]
    found, _ = token_log_probs(hidden, targets, head, banned, temperature=0.7, chunk_size=5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
