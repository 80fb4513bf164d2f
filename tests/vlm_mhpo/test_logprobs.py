"""Log-probs are torch's cross-entropy over the allowed vocabulary, in whatever chunks they are computed."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from vlm_mhpo.models.logprobs import entropy, scaled_logits, token_log_probs

N, H, V = 23, 16, 37
BANNED = (0, 5, 6, 36)


@pytest.fixture(autouse=True, scope="module", params=["tokens", "words"])
def backward_over(request):
    """Everything holds for backward over chunks of tokens (float32) and over blocks of words (lower precision)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_mhpo.models.logprobs.rounds", lambda weight: request.param == "words")
        yield request.param


def case(seed: int = 0, scale: float = 1.0):
    """Hidden states, targets among allowed tokens, head, ban."""
    generator = torch.Generator().manual_seed(seed)
    head = nn.Linear(H, V, bias=False)
    with torch.no_grad():
        head.weight.copy_(torch.randn(V, H, generator=generator) * scale)
    hidden = torch.randn(N, H, generator=generator).requires_grad_()
    allowed = [index for index in range(V) if index not in BANNED]
    targets = torch.tensor(allowed)[torch.randint(len(allowed), (N,), generator=generator)]
    banned = torch.zeros(V, dtype=torch.bool)
    banned[list(BANNED)] = True
    return hidden, targets, head, banned, allowed


def run(hidden, targets, head, banned, *, chunk_size, temperature=1.0, weights=None):
    log_probs, entropies = token_log_probs(
        hidden, targets, head, banned, temperature=temperature, chunk_size=chunk_size
    )
    weights = torch.linspace(-1.0, 2.0, len(targets)) if weights is None else weights
    grads = torch.autograd.grad((log_probs * weights).sum(), [hidden, head.weight])
    return log_probs.detach(), entropies, grads


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("chunk_size", [1, 7, 23, 1000])
def test_values_and_gradients_are_those_of_cross_entropy_over_the_allowed_tokens(chunk_size, temperature):
    hidden, targets, head, banned, allowed = case()
    log_probs, _, grads = run(hidden, targets, head, banned, chunk_size=chunk_size, temperature=temperature)
    logits = (hidden @ head.weight.T)[:, allowed] / temperature
    renumbered = torch.tensor([allowed.index(index) for index in targets.tolist()])
    expected = -nn.functional.cross_entropy(logits, renumbered, reduction="none")
    expected_grads = torch.autograd.grad((expected * torch.linspace(-1.0, 2.0, N)).sum(), [hidden, head.weight])
    torch.testing.assert_close(log_probs, expected.detach(), atol=1e-6, rtol=1e-6)
    for found, right in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("chunk_size", [1, 2, 11, 22])
def test_chunks_change_nothing(chunk_size):
    tensors = case(seed=3)[:4]
    whole, chunked = run(*tensors, chunk_size=N), run(*tensors, chunk_size=chunk_size)
    torch.testing.assert_close(chunked[0], whole[0], atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(chunked[1], whole[1], atol=1e-6, rtol=1e-6)
    for found, right in zip(chunked[2], whole[2], strict=True):
        torch.testing.assert_close(found, right, atol=1e-5, rtol=1e-5)


class Largest(TorchDispatchMode):
    """Remembers the most entries of any matrix that is neither states nor a weight."""

    entries = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, tuple | list) else (result,):
            if isinstance(tensor, torch.Tensor) and tensor.ndim == 2 and H not in tensor.shape:
                self.entries = max(self.entries, tensor.numel())
        return result


def test_no_more_logits_than_those_of_a_chunk_exist_at_once():
    hidden, targets, head, banned, _ = case()
    with Largest() as watched:
        run(hidden, targets, head, banned, chunk_size=5)
    assert watched.entries == 5 * V


def test_the_head_is_called_as_a_module_once_and_is_itself_again_afterwards():
    hidden, targets, head, banned, _ = case()
    calls = []
    head.register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape))
    run(hidden, targets, head, banned, chunk_size=5)
    assert calls == [(N, H)]
    assert head(hidden).shape == (N, V)
    with pytest.raises(RuntimeError, match="out of bounds"):
        token_log_probs(hidden, targets + 1000, head, banned, temperature=1.0, chunk_size=5)
    assert head(hidden).shape == (N, V)


def test_a_head_with_a_bias_and_no_token_at_all():
    hidden, targets, head, banned, allowed = case()
    head.bias = nn.Parameter(torch.linspace(-1.0, 1.0, V))
    log_probs, _ = token_log_probs(hidden, targets, head, banned, temperature=0.7, chunk_size=5)
    weights = torch.linspace(-1.0, 2.0, N)
    found = torch.autograd.grad((log_probs * weights).sum(), [hidden, head.weight, head.bias])
    logits = head(hidden)[:, allowed] / 0.7
    renumbered = torch.tensor([allowed.index(index) for index in targets.tolist()])
    expected = -nn.functional.cross_entropy(logits, renumbered, reduction="none")
    right = torch.autograd.grad((expected * weights).sum(), [hidden, head.weight, head.bias])
    torch.testing.assert_close(log_probs, expected, atol=1e-6, rtol=1e-6)
    for one, other in zip(found, right, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    # A rank without tokens takes part all the same: its gradients are there, and zero.
    none, _ = token_log_probs(hidden[:0], targets[:0], head, banned, temperature=0.7, chunk_size=5)
    assert [grad.abs().sum() for grad in torch.autograd.grad(none.sum(), [head.weight, head.bias])] == [0.0, 0.0]


def test_the_gradient_is_the_derivative():
    hidden, targets, head, banned, _ = case()
    # In float32 a difference quotient is good to some 1e-3; the step is large and the function smooth.
    log_probs, _ = token_log_probs(hidden, targets, head, banned, temperature=1.3, chunk_size=4)
    (gradient,) = torch.autograd.grad(log_probs.sum(), [hidden])
    direction = torch.randn(N, H, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ahead, behind = (
            token_log_probs(hidden + sign * 0.01 * direction, targets, head, banned, temperature=1.3, chunk_size=4)[0]
            for sign in (1, -1)
        )
    quotient = float((ahead.double() - behind.double()).sum() / 0.02)
    assert float((gradient * direction).sum()) == pytest.approx(quotient, rel=2e-3)


def test_banned_tokens_have_no_probability_and_no_gradient():
    hidden, targets, head, banned, allowed = case()
    every = torch.arange(V)
    states = hidden[:1].detach().expand(V, H)
    log_probs, _ = token_log_probs(states, every, head, banned, temperature=1.0, chunk_size=8)
    assert torch.isneginf(log_probs[list(BANNED)]).all()
    assert math.isclose(float(log_probs.detach()[allowed].double().exp().sum()), 1.0, rel_tol=1e-6)
    _, _, (_, weight_gradient) = run(hidden, targets, head, banned, chunk_size=8)
    assert (weight_gradient[list(BANNED)] == 0).all()
    assert (weight_gradient[allowed] != 0).any(dim=1).all()


@pytest.mark.parametrize("chunk_size", [4, 1000])
def test_a_banned_target_is_minus_infinity_and_leaves_the_others_finite(chunk_size):
    hidden, targets, head, banned, _ = case()
    targets[2] = BANNED[1]
    log_probs, entropies, _ = run(hidden, targets, head, banned, chunk_size=chunk_size)
    assert torch.isneginf(log_probs[2])
    keep = torch.arange(N) != 2
    assert torch.isfinite(log_probs[keep]).all()
    assert torch.isfinite(entropies).all()
    # With the bad token masked out of the loss nothing of it may reach the gradient.
    weights = keep.float()
    masked, _ = token_log_probs(hidden, targets, head, banned, temperature=1.0, chunk_size=chunk_size)
    loss = torch.where(keep, masked * weights, 0.0).sum()
    assert all(torch.isfinite(grad).all() for grad in torch.autograd.grad(loss, [hidden, head.weight]))


def test_the_banned_logit_may_be_infinite_or_nan():
    logits = torch.tensor([[1.0, 2.0, 3.0, 4.0]]).repeat(3, 1)
    logits[:, 1] = torch.tensor([math.inf, -math.inf, math.nan])
    allowed = scaled_logits(logits, torch.tensor([False, True, False, False]), 2.0)
    assert allowed.tolist() == [[0.5, -math.inf, 1.5, 2.0]] * 3


@settings(max_examples=100)
@given(st.integers(0, 10_000), st.floats(0.1, 30.0), st.sampled_from([0.5, 1.0, 2.0]))
def test_entropy_against_float64(seed, scale, temperature):
    hidden, targets, head, banned, allowed = case(seed, scale)
    _, entropies = token_log_probs(hidden, targets, head, banned, temperature=temperature, chunk_size=10)
    logits = (hidden.detach().double() @ head.weight.detach().double().T)[:, allowed] / temperature
    expected = []
    for row in logits.tolist():
        top = max(row)
        weights = [math.exp(value - top) for value in row]
        total = math.fsum(weights)
        expected.append(
            -math.fsum(w / total * (value - top - math.log(total)) for w, value in zip(weights, row, strict=True))
        )
    assert entropies.tolist() == pytest.approx(expected, abs=2e-4, rel=2e-4)
    assert not entropies.requires_grad


def test_entropy_of_known_distributions():
    uniform = torch.zeros(1, 8)
    uniform[0, 4:] = -torch.inf
    assert float(entropy(uniform)) == pytest.approx(math.log(4), abs=1e-6)
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert float(entropy(certain)) == 0.0


def test_bfloat16_states_give_float32_log_probs():
    hidden, targets, head, banned, _ = case()
    with torch.no_grad():
        log_probs, entropies = token_log_probs(
            hidden.bfloat16(), targets, head.bfloat16(), banned, temperature=1.0, chunk_size=8
        )
    assert log_probs.dtype == entropies.dtype == torch.float32
    logits = head(hidden.bfloat16()).float().masked_fill(banned, -torch.inf)
    expected = logits.log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)
    torch.testing.assert_close(log_probs, expected.detach(), atol=1e-5, rtol=0)


def test_chunks_do_not_round_the_gradient_of_a_bfloat16_head(backward_over):
    """8,192 tokens in chunks of 64: the error is that of the logits' own rounding, as without chunks."""
    generator = torch.Generator().manual_seed(0)
    head = nn.Linear(64, 500, bias=False).bfloat16()
    hidden = torch.randn(8192, 64, generator=generator).bfloat16().requires_grad_()
    targets = torch.randint(500, (8192,), generator=generator)
    weights = torch.randn(8192, generator=generator)
    none = torch.zeros(500, dtype=torch.bool)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, head.weight)]
    log_probs = (exact[0] @ exact[1].T).log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)
    expected = torch.autograd.grad((log_probs * weights).sum(), exact)
    errors = []
    for chunk_size in (8192, 64):
        _, _, found = run(hidden, targets, head, none, chunk_size=chunk_size, weights=weights)
        errors.append([float((a.double() - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)])
    assert max(errors[0]) < 0.004
    if backward_over == "tokens":
        # Which is why this way is for float32.
        assert errors[1][1] > 3.0 * errors[0][1]
    else:
        # The gradient of the states is a sum of products that were rounded one by one.
        assert errors[1][0] < 1.5 * errors[0][0] and errors[1][1] < 1.1 * errors[0][1]


def test_huge_logits_stay_finite():
    hidden, targets, head, banned, _ = case(scale=1e4)
    log_probs, entropies, grads = run(hidden, targets, head, banned, chunk_size=5)
    assert torch.isfinite(log_probs).all()
    assert torch.isfinite(entropies).all()
    assert all(torch.isfinite(grad).all() for grad in grads)


@pytest.mark.parametrize("chunk_size", [5, 1000])
def test_a_frozen_head_and_grad_disabled_both_work(chunk_size):
    hidden, targets, head, banned, _ = case()
    expected, _, (hidden_gradient, _) = run(hidden, targets, head, banned, chunk_size=chunk_size)
    head.requires_grad_(False)
    log_probs, _ = token_log_probs(hidden, targets, head, banned, temperature=1.0, chunk_size=chunk_size)
    (found,) = torch.autograd.grad((log_probs * torch.linspace(-1.0, 2.0, N)).sum(), [hidden])
    torch.testing.assert_close(found, hidden_gradient)
    with torch.no_grad():
        quiet, _ = token_log_probs(hidden, targets, head, banned, temperature=1.0, chunk_size=chunk_size)
    assert torch.equal(quiet, expected)
