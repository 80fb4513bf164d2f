"""A plain layer on one new token is the layer of transformers; weights side by side are the same weights."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from tests.builders import QWEN_VL_FAMILIES, Tiny, build_and_load, plain_log_probs, prompts_of
from vlm_mhpo.config.model import LoraConfig
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf import token_layer
from vlm_mhpo.rollout.hf.prefill import prefill
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.rollout.hf.shared_prefix import SharedPrefixCache
from vlm_mhpo.rollout.hf.token_layer import TokenModel, side_by_side

NUM_TOKENS = 3


def unsettled(model: Tiny) -> Tiny:
    """A copy whose biases are not 0 and whose norms are not 1."""
    model, random = model.copy(), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in model.policy.model.named_parameters():
            if name.endswith("bias") or "norm" in name:
                weight.add_(0.5 * torch.randn(weight.shape, generator=random))
    return model


@torch.no_grad()
def decoded(model: Tiny, token_model: TokenModel | None) -> torch.Tensor:
    """[tokens, rows, C] last hidden states of the same tokens after three prompts, by this or the stock forward."""
    policy, prompts = model.policy, prompts_of(model)
    done = prefill(policy, prompts, model.codec.pad_id, "left")
    cache = SharedPrefixCache(NUM_TOKENS)
    cache.enter(done.cache, done.mask_PS)
    # The second prompt has two rows, so that they are moved between the products.
    prompt_B = np.array([0, 1, 1, 2])
    cache.seat([], prompt_B)
    states = []
    for time in range(NUM_TOKENS):
        ids_B1 = torch.tensor([[3], [40], [7], [100]]) + time
        positions_B1 = (done.next_position_P[prompt_B] + time)[:, None]
        positions = positions_B1 if done.num_axes == 1 else positions_B1.expand(done.num_axes, -1, -1)
        inputs = cache.inputs(np.full(4, time))
        if token_model:
            states.append(token_model(ids_B1, positions, cache)[:, 0])
        else:
            outputs = policy.model.model(input_ids=ids_B1, position_ids=positions, use_cache=True, **inputs)
            states.append(outputs.last_hidden_state[:, 0])
    return torch.stack(states)


def test_who_listens_to_the_modules_hears_of_every_token(tiny):
    """The profiler counts forwards by a hook on the model."""
    model, heard = tiny("qwen2_5_vl").copy(), []
    inner = model.policy.model.model
    for module in (inner, *inner.language_model.layers):
        module.register_forward_pre_hook(lambda module, *_: heard.append(type(module).__name__))
    decoded(model, TokenModel.of(model.policy))
    # Of the prompts and of each token.
    assert heard == ["Qwen2_5_VLModel", *["Qwen2_5_VLDecoderLayer"] * 3] * (1 + NUM_TOKENS)


@pytest.mark.parametrize("family", [*QWEN_VL_FAMILIES, "qwen2"])
def test_tokens_get_the_states_that_the_stock_forward_gives_them(tiny, family):
    model = unsettled(tiny(family))
    expected = decoded(model, None)
    weights = dict(model.policy.model.named_parameters())
    before = {name: weight.detach().clone() for name, weight in weights.items()}
    token_model = TokenModel.of(model.policy)
    torch.testing.assert_close(decoded(model, token_model), expected, rtol=1e-4, atol=2e-5)
    # Laid side by side, the weights are the same objects with the same values, and a product over them no copy.
    assert all(weight is weights[name] for name, weight in model.policy.model.named_parameters())
    assert all(torch.equal(weight, before[name]) for name, weight in weights.items())
    attention = model.policy.model.get_decoder().layers[0].self_attn
    assert attention.k_proj.weight.data_ptr() == attention.q_proj.weight.data_ptr() + attention.q_proj.weight.nbytes
    with torch.no_grad():
        attention.v_proj.weight.mul_(3.0)
    torch.testing.assert_close(decoded(model, token_model), decoded(model, None), rtol=1e-4, atol=2e-5)


def test_adapters_take_part(tmp_path):
    model = build_and_load(tmp_path, "qwen2_5_vl", lora=LoraConfig(r=4).model_dump())
    with torch.no_grad():
        for name, weight in model.policy.model.named_parameters():
            if ".lora_" in name:
                weight.copy_(0.3 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(2)))
    token_model = TokenModel.of(model.policy)
    torch.testing.assert_close(decoded(model, token_model), decoded(model, None), rtol=1e-4, atol=2e-5)


def test_a_copy_of_a_policy_and_an_optimizer_go_on_from_weights_that_lie_side_by_side(tiny):
    model = unsettled(tiny("qwen2"))
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=10**5)
    sample = [prompts_of(model), SamplingParams(2, 4), (0,)]
    sampler.sample(*sample)
    stock = copy.deepcopy(model.policy)
    weights = list(model.policy.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.5)
    for weight in weights:
        weight.grad = torch.ones_like(weight) * 0.01
    optimizer.step()
    with torch.no_grad():
        for mine, other in zip(weights, stock.parameters(), strict=True):
            # The copy has memory of its own, and the step reached every weight.
            torch.testing.assert_close(mine, other - 0.005, rtol=0, atol=1e-6)
    # What is drawn next is drawn from the weights after the step.
    (group, *_) = sampler.sample(*sample)
    for completion in group.completions:
        expected = plain_log_probs(model, group.prompt, completion.token_ids)
        torch.testing.assert_close(completion.log_probs, expected.float(), rtol=0, atol=1e-4)


def linears(*sizes: int, bias: bool = False) -> list[nn.Linear]:
    return [nn.Linear(6, size, bias=bias) for size in sizes]


@torch.no_grad()
@pytest.mark.parametrize("bias", [False, True])
def test_one_product_gives_all_outputs(bias):
    layers, inputs = linears(4, 2, 3, bias=bias), torch.randn(5, 6)
    expected = torch.cat([layer(inputs) for layer in layers], dim=-1)
    for _ in range(2):
        torch.testing.assert_close(side_by_side(layers)(inputs), expected)


@torch.no_grad()
def test_what_is_laid_out_by_others_stays_where_it_is():
    inputs = torch.randn(5, 6)
    for gap, joins in ((0, True), (6, False)):
        layers, flat = linears(4, 2), torch.randn(6 * 6 + gap)
        layers[0].weight.data = flat[:24].view(4, 6)
        layers[1].weight.data = flat[24 + gap :].view(2, 6)
        product = side_by_side(layers)
        assert (product is not None) == joins
        assert layers[1].weight.data_ptr() == flat[24 + gap :].data_ptr()
        if product:
            torch.testing.assert_close(product(inputs), torch.cat([layer(inputs) for layer in layers], dim=-1))


def test_modules_that_do_more_than_a_product_run_as_modules():
    layers = linears(4, 2)
    layers[1].register_forward_hook(lambda module, args, output: 2 * output)
    assert side_by_side(layers) is None
    assert side_by_side([nn.Linear(6, 4), nn.Linear(6, 4, bias=False)]) is None

    class Scaled(nn.Linear):
        pass

    assert side_by_side([nn.Linear(6, 4), Scaled(6, 4)]) is None


class Launches(TorchDispatchMode):
    """Counts what moves or computes data; a fused norm is one launch of a GPU and six operations of a CPU."""

    number = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name
        self.number += not (func.is_view or name in ("aten::_unsafe_view", "aten::new_empty", "aten::promote_types"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("family", "most"), [("qwen2_5_vl", 24), ("qwen3_vl", 26)])
def test_a_layer_launches_half_of_what_the_stock_forward_launched(tiny, family, most, monkeypatch):
    """Of four rows of a prompt; the stock forward with the same cache launched 48 for Qwen2.5-VL."""
    monkeypatch.setattr(token_layer, "rms_norm", lambda hidden, *rest, **names: hidden.clone())
    model = tiny(family).copy()
    done = prefill(model.policy, prompts_of(model)[-1:], model.codec.pad_id, "left")
    cache = SharedPrefixCache(NUM_TOKENS)
    cache.enter(done.cache, done.mask_PS)
    cache.seat([], np.zeros(4, dtype=np.int64))
    token_model = TokenModel.of(model.policy)
    launched = []
    # The first step makes buffers; then one step with all layers and one without the last.
    for time, num_layers in enumerate((3, 3, 2)):
        token_model._layers = token_model._layers[:num_layers]
        cache.inputs(np.full(4, time))
        positions = (done.next_position_P[0] + time).expand(done.num_axes, 4, 1)
        with torch.no_grad(), Launches() as found:
            token_model(torch.full((4, 1), 5), positions, cache)
        launched.append(found.number)
    assert 15 < launched[1] - launched[2] <= most
