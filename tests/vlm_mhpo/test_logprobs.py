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
# Of the tokens in the loss.
WEIGHTS = torch.linspace(-1.0, 2.0, N)
# The largest relative error of one float32 operation.
UNIT = torch.finfo(torch.float32).eps / 2


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


def parameters(hidden, head):
    return [hidden, head.weight] if head.bias is None else [hidden, head.weight, head.bias]


def run(hidden, targets, head, banned, *, chunk_size, temperature=1.0, weights=WEIGHTS):
    log_probs, entropies = token_log_probs(
        hidden, targets, head, banned, temperature=temperature, chunk_size=chunk_size
    )
    grads = torch.autograd.grad((log_probs * weights).sum(), parameters(hidden, head))
    return log_probs.detach(), entropies, grads


def exact(hidden, targets, head, banned, *, temperature=1.0):
    """What `run` finds, by torch's cross-entropy over the allowed tokens in float64."""
    inputs = [tensor.detach().double().requires_grad_() for tensor in parameters(hidden, head)]
    logits = nn.functional.linear(*inputs)[:, ~banned] / temperature
    renumbered = (~banned).cumsum(dim=0)[targets] - 1
    log_probs = -nn.functional.cross_entropy(logits, renumbered, reduction="none")
    entropies = torch.distributions.Categorical(logits=logits.detach()).entropy()
    return log_probs.detach(), entropies, torch.autograd.grad((log_probs * WEIGHTS.double()).sum(), inputs)


def rounding(hidden, targets, head, banned, *, temperature=1.0):
    """By how much float32 may miss what `exact` gives, entry by entry and whatever the order of its sums.

    A sum of n terms is off by at most n * UNIT times the sum of their sizes. So a logit, H products, perhaps a bias and
    a division, is off by (H + 2) * UNIT * size. A log-prob, logit - (top + log sum exp(logit - top)), holds that error
    twice; its two differences and its sum round numbers of up to 2, 2 and 1 times `size`; the sum has V terms; and exp,
    log and what log adds to the sum are good for some 16 units more.
    """
    states, weight, *bias = [tensor.detach().double() for tensor in parameters(hidden, head)]
    size_NV = nn.functional.linear(states.abs(), weight.abs(), *(each.abs() for each in bias)) / temperature
    log_prob_N = UNIT * ((2 * (H + 2) + 5) * size_NV[:, ~banned].amax(dim=1) + V + 16)
    log_probs_NV = (nn.functional.linear(states, weight, *bias) / temperature)[:, ~banned].log_softmax(dim=-1)
    entropy_N = -(log_probs_NV.exp() * log_probs_NV).sum(dim=-1)
    # A probability is off by the error of its logarithm, relatively; a term p log p of the entropy by that of both.
    of_entropy_N = log_prob_N * (1.0 + entropy_N) + V * UNIT * entropy_N
    probs_NV = torch.zeros_like(size_NV).masked_scatter_(~banned, log_probs_NV.exp())
    slope_NV = nn.functional.one_hot(targets, V).double() - probs_NV
    factor_N1 = (WEIGHTS.double().abs() / temperature)[:, None]
    # The gradient of a logit: the error of its probability and up to eight roundings. Then sums over words or tokens.
    off_NV = factor_N1 * (probs_NV * log_prob_N.expm1()[:, None] + 8 * UNIT * slope_NV.abs())
    by_words_NV, by_tokens_NV = (off_NV + terms * UNIT * factor_N1 * slope_NV.abs() for terms in (V, N))
    of_gradients = by_words_NV @ weight.abs(), by_tokens_NV.T @ states.abs(), by_tokens_NV.sum(dim=0)
    return log_prob_N, of_entropy_N, of_gradients[: 2 + len(bias)]


def assert_within_rounding(found, *tensors, **options):
    """`found` by `run` is what `exact` gives, up to `rounding`."""
    triples = found, exact(*tensors, **options), rounding(*tensors, **options)
    for value, right, margin in zip(*((*two, *gradients) for *two, gradients in triples), strict=True):
        excess = (value.double() - right).abs() - margin
        assert excess.max() <= 0.0, f"beyond rounding by {excess.max():.1e} where {margin.max():.1e} is allowed"


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("chunk_size", [1, 7, 23, 1000])
def test_values_and_gradients_are_those_of_cross_entropy_over_the_allowed_tokens(chunk_size, temperature):
    tensors = case()[:4]
    assert_within_rounding(
        run(*tensors, chunk_size=chunk_size, temperature=temperature), *tensors, temperature=temperature
    )


@pytest.mark.parametrize("chunk_size", [1, 2, 11, 22, N])
def test_chunks_change_nothing(chunk_size):
    tensors = case(seed=3)[:4]
    assert_within_rounding(run(*tensors, chunk_size=chunk_size), *tensors)


def test_float32_rounding_leaves_no_room_for_a_wrong_token_or_a_wrong_temperature():
    hidden, targets, head, banned, allowed = case()
    found = run(hidden, targets, head, banned, chunk_size=7)
    with pytest.raises(AssertionError, match="beyond rounding"):
        assert_within_rounding(found, hidden, targets, head, banned, temperature=1.0001)
    targets = targets.clone()
    targets[3] = next(index for index in allowed if index != targets[3])
    with pytest.raises(AssertionError, match="beyond rounding"):
        assert_within_rounding(found, hidden, targets, head, banned)


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
    hidden, targets, head, banned, _ = case()
    head.bias = nn.Parameter(torch.linspace(-1.0, 1.0, V))
    tensors = hidden, targets, head, banned
    assert_within_rounding(run(*tensors, chunk_size=5, temperature=0.7), *tensors, temperature=0.7)
    # A rank without tokens takes part all the same: its gradients are there, and zero.
    none, _ = token_log_probs(hidden[:0], targets[:0], head, banned, temperature=0.7, chunk_size=5)
    assert [grad.abs().sum() for grad in torch.autograd.grad(none.sum(), [head.weight, head.bias])] == [0.0, 0.0]


def test_the_gradient_is_the_derivative():
    hidden, *others = case()[:4]
    _, _, (gradient, _) = run(hidden, *others, chunk_size=4, temperature=1.3)
    _, _, (margin, _) = rounding(hidden, *others, temperature=1.3)
    direction = torch.randn(N, H, generator=torch.Generator().manual_seed(1)).double()
    step = 1e-5
    ahead, behind = (
        exact(hidden.detach().double() + sign * step * direction, *others, temperature=1.3)[0] for sign in (1, -1)
    )
    quotient = (ahead - behind) / (2 * step) * WEIGHTS
    # What the quotient misses: step^2 / 6 times the third derivative, a third moment of logits that move by up to this.
    speed = (direction @ others[1].weight.detach().double().T / 1.3).abs().amax(dim=1)
    missed = WEIGHTS.abs() * step**2 / 6 * (2 * speed) ** 3
    off = (gradient * direction).sum(dim=1) - quotient
    assert (off.abs() <= (margin * direction.abs()).sum(dim=1) + missed).all()


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
    _, margin, _ = rounding(hidden, targets, head, banned, temperature=temperature)
    logits = (hidden.detach().double() @ head.weight.detach().double().T)[:, allowed] / temperature
    expected = []
    for row in logits.tolist():
        top = max(row)
        weights = [math.exp(value - top) for value in row]
        total = math.fsum(weights)
        expected.append(
            -math.fsum(w / total * (value - top - math.log(total)) for w, value in zip(weights, row, strict=True))
        )
    assert ((entropies.double() - torch.tensor(expected, dtype=torch.float64)).abs() <= margin).all()
    assert not entropies.requires_grad


def test_entropy_of_known_distributions():
    uniform = torch.zeros(1, 8)
    uniform[0, 4:] = -torch.inf
    assert float(entropy(uniform)) == pytest.approx(math.log(4), abs=1e-6)
    certain = torch.tensor([[0.0, -torch.inf, -torch.inf]])
    assert float(entropy(certain)) == 0.0


def test_bfloat16_states_give_float32_log_probs():
    hidden, targets, head, banned, _ = case()
    # Small whole numbers: bfloat16 holds their sums without rounding, in whatever order a processor adds them.
    with torch.no_grad():
        head.weight.sign_()
    whole = hidden.detach().sign()
    right, margin = (each(whole, targets, head, banned)[:2] for each in (exact, rounding))
    with torch.no_grad():
        found = token_log_probs(whole.bfloat16(), targets, head.bfloat16(), banned, temperature=1.0, chunk_size=8)
    for value, expected, room in zip(found, right, margin, strict=True):
        assert value.dtype == torch.float32
        assert ((value.double() - expected).abs() <= room).all()


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


@pytest.mark.parametrize("temperature", [0.3, 1.0, 1.7])
@pytest.mark.parametrize("chunk_size", [1, 7, 1000])
def test_entropies_that_learn_have_the_gradient_of_torchs_over_the_allowed_tokens(chunk_size, temperature):
    hidden, targets, head, banned, _ = case(seed=5, scale=0.5)
    pulls = torch.linspace(2.0, -1.0, N)
    log_probs, entropies = token_log_probs(
        hidden, targets, head, banned, temperature=temperature, chunk_size=chunk_size, entropy_learns=True
    )
    found = torch.autograd.grad((log_probs * WEIGHTS + entropies * pulls).sum(), parameters(hidden, head))
    inputs = [tensor.detach().double().requires_grad_() for tensor in parameters(hidden, head)]
    logits = nn.functional.linear(*inputs)[:, ~banned] / temperature
    both = torch.distributions.Categorical(logits=logits)
    renumbered = (~banned).cumsum(dim=0)[targets] - 1
    total = both.log_prob(renumbered) * WEIGHTS.double() + both.entropy() * pulls.double()
    for mine, right in zip(found, torch.autograd.grad(total.sum(), inputs), strict=True):
        torch.testing.assert_close(mine.double(), right, rtol=1e-5, atol=1e-5)
    assert not found[1][banned].any()


def test_one_alone_of_the_two_results_may_have_a_gradient():
    hidden, targets, head, banned, _ = case(seed=6)
    options = {"temperature": 1.0, "chunk_size": 7, "entropy_learns": True}
    log_probs, entropies = token_log_probs(hidden, targets, head, banned, **options)
    (alone,) = torch.autograd.grad((log_probs * WEIGHTS).sum(), hidden, retain_graph=True)
    torch.testing.assert_close(alone, run(hidden, targets, head, banned, chunk_size=7)[2][0], rtol=1e-5, atol=1e-6)
    (of_entropy,) = torch.autograd.grad(entropies.sum(), hidden)
    # A state along its own gradient makes the distribution flatter.
    moved = (hidden + 1e-3 * of_entropy).detach()
    assert (token_log_probs(moved, targets, head, banned, **options)[1] > entropies).all()
