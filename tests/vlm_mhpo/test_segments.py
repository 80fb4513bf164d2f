"""Attention of packed rows in few calls: the values and gradients of the definition, and how many calls there are."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import scaled_dot_product_attention

from tests.vlm_mhpo.attention_cases import Calls, draw, exact_attention, used, visible
from vlm_mhpo.models.attention import segment_attention, segments_of

SCALING = 32**-0.5
# Ragged completions; rows of unlike prompts with padding behind; one token alone; a row where nothing has to move.
ROWS = {
    "ragged": ([[40, 9, 30, 1, 9, 28]], 108 + 9),
    "two prompts": ([[40, 12, 12, 12], [33, 20, 5]], 80),
    "one token": ([[5, 1]], 6),
    "in place": ([[24, 7, 7, 7]], 45),
}
# Each completion alone, or with all others of its row; the usual bound lies between.
BOUNDS = {"alone": -1, "together": 10**9}


@pytest.fixture(params=BOUNDS)
def bound(request, monkeypatch):
    monkeypatch.setattr("vlm_mhpo.models.attention.PAIRS_PER_CALL", {"cpu": BOUNDS[request.param]})
    return request.param


def gradients_of(attend, tensors, weights) -> list[torch.Tensor]:
    """The result and the gradients of its weighted sum by `tensors`, in float64."""
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    found = attend(*leaves)
    (found * weights.to(found.dtype)).sum().backward()
    return [each.double() for each in (found.detach(), *(leaf.grad for leaf in leaves))]


@pytest.mark.parametrize("rows", ROWS)
def test_values_and_gradients_are_those_of_the_definition_however_completions_share_calls(rows, bound):
    lengths, width = ROWS[rows]
    generator = torch.Generator().manual_seed(0)
    tensors = [draw(lengths, width, heads, generator) for heads in (4, 2, 2)]
    # Behind a row's last completion there may be anything, and a gradient for it: nobody reads what comes out there.
    weights = torch.randn(len(lengths), width, 4, 32, generator=generator)
    segments = segments_of(lengths, like=tensors[0], width=width)
    found = gradients_of(lambda *each: segment_attention(*each, segments, SCALING), tensors, weights)
    seen, real = visible(lengths, width), used(lengths, width)
    expected = gradients_of(
        lambda *each: exact_attention(*each, seen, SCALING), [each.double() for each in tensors], weights * real
    )
    for one, other in zip(found, expected, strict=True):
        assert (one - other).norm() <= 5e-6 * other.norm()
    assert not found[0][~real.expand_as(found[0])].any()


def test_in_bfloat16_errors_are_no_larger_than_those_of_one_masked_call(bound):
    lengths, width = [[200, 30, 30, 29, 28, 30, 30, 27, 30]], 434
    generator = torch.Generator().manual_seed(0)
    tensors = [draw(lengths, width, heads, generator).bfloat16() for heads in (4, 2, 2)]
    weights = torch.randn(1, width, 4, 32, generator=generator).bfloat16()
    seen = visible(lengths, width)
    expected = gradients_of(
        lambda *each: exact_attention(*each, seen, SCALING), [each.double() for each in tensors], weights
    )
    segments = segments_of(lengths, like=tensors[0])
    ours = gradients_of(lambda *each: segment_attention(*each, segments, SCALING), tensors, weights)
    masked = gradients_of(
        lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=SCALING, enable_gqa=True).transpose(
            1, 2
        ),
        tensors,
        weights,
    )
    for mine, its, exact in zip(ours, masked, expected, strict=True):
        # Gradients of a prompt's keys from completions in calls of their own are added up in bfloat16.
        slack = 1.05 if bound == "together" else 1.3
        assert (mine - exact).norm() <= slack * (its - exact).norm()


@pytest.mark.parametrize(("own", "expected"), [([50] * 12, 2), ([50] * 6 + [49] * 6, 2), ([50] * 6 + [300] * 6, 3)])
def test_completions_of_like_length_cost_one_attention_call_together(own, expected):
    lengths = [[372, *own]]
    generator = torch.Generator().manual_seed(0)
    tensors = [draw(lengths, sum(lengths[0]), heads, generator) for heads in (2, 1, 1)]
    segments = segments_of(lengths, like=tensors[0])
    with Calls() as calls:
        segment_attention(*tensors, segments, SCALING)
    assert calls.of_attention == expected
    # Keys and values of the prompt are put before those of the completions once a call, and results together once.
    assert calls.found["cat"] == 2 * (expected - 1) + 1
