"""What hybrid layers and routed experts cost: caches, FLOPs, and what freezing and adapters leave of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from transformers import Qwen3_5MoeTextConfig, Qwen3_5TextConfig
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.builders import Tiny, build_and_load, prompts_of, random_completions
from tests.vlm_mhpo.bfloat16_cases import build_and_load_bfloat16, sampled_groups, three_log_probs
from vlm_mhpo.commands.profiling.flops import Work, model_flops, parts_of
from vlm_mhpo.models.adapters import adapter_layers
from vlm_mhpo.models.families.costs import TextLayers
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf import budget, decoding
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.micro_batches import micro_batches


def test_caches_of_published_sizes_by_hand():
    """Qwen3.5-9B: 32 layers, 8 of attention with 4 heads of 256; 32 states of 128 x 128, 8192 channels of 4 inputs."""
    text = Qwen3_5TextConfig(head_dim=256)
    assert budget.bytes_per_token(text, 2) == 8 * 4 * 256 * (4 + 2) == 49152
    assert TextLayers.of(text).state_bytes(2) == 24 * (32 * 128 * 128 * 4 + 8192 * 4 * 2) == 51904512
    # A row begins with as much memory as 1056 tokens take.
    assert budget.state_tokens(text, 2) == 1056
    # Of 256 experts a token passes eight, and one that all share.
    assert TextLayers.of(Qwen3_5MoeTextConfig()).inner == 8 * 512 + 512


def test_prompts_and_rows_hold_as_many_bytes_as_the_budget_takes(tiny, monkeypatch):
    model, caches = tiny("qwen3_5"), []

    class Kept(decoding.SharedPrefixCache):
        def __init__(self, max_tokens):
            super().__init__(max_tokens)
            caches.append(self)

    monkeypatch.setattr(decoding, "SharedPrefixCache", Kept)
    prompt = prompts_of(model)[0]
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=10_000)
    sampler.sample([prompt], SamplingParams(num_samples=1, max_tokens=8), (0, "test"))
    (cache,), text = caches, model.policy.model.config.get_text_config()
    state, per_token = TextLayers.of(text).state_bytes(4), budget.bytes_per_token(text, 4)
    assert sum(tensor.nbytes for layer in cache._prefix for tensor in layer) == state + per_token * prompt.num_tokens
    rows = [tensor for own in cache._states.values() for tensor in own.tensors]
    assert sum(tensor.nbytes for tensor in rows) == state


def test_flops_are_those_that_torch_counts_and_the_rule_by_hand(tmp_path, monkeypatch):
    """Torch counts matrix products alone; the rule, whose chunks take more of them, is left out and told by hand."""
    from torch.utils.flop_counter import FlopCounterMode

    def no_products(query, key, value, **_):
        return value, value.new_zeros(len(value), value.shape[2], key.shape[-1], value.shape[-1])

    monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", no_products)
    model = build_and_load(tmp_path, "qwen3_5_text", attn_implementation="eager")
    prompt = prompts_of(model)[0]
    # Of equal lengths, so that none is padded.
    groups = [random_completions(model, (7, 7))]
    (batch,) = micro_batches(model.policy, [prompt], groups, max_tokens=10_000, pad_id=model.codec.pad_id)
    width = prompt.num_tokens + 14
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.policy(batch.rows, temperature=1.0, chunk_size=4096)
    parts, work = parts_of(model.policy), Work(tokens=width, pairs=width**2, predictions=14)
    (rule,) = [part for part in parts if part.name == "recurrent states"]
    # 3 layers of 4 heads of 16 x 16, and 128 channels of 4 inputs.
    assert rule.weights == 3 * (3 * 4 * 16 * 16 + 128 * 4)
    others = [replace(part, weights=3 * 128 * 4) if part is rule else part for part in parts]
    # Torch's convolution also runs over its borders, 3 places of a prompt and twice as many of a completion.
    borders = 2 * 3 * 128 * 4 * (3 + 2 * 6)
    assert model_flops(others, work, backward=False) == counter.get_total_flops() - borders


def test_a_token_passes_its_own_experts_and_the_router_in_the_count_of_flops(tiny):
    (routed,) = [part for part in parts_of(tiny("qwen3_5_moe").policy) if part.name == "routed experts"]
    # 4 layers; 2 of 8 experts of three matrices 64 x 40; a router of 8 x 64.
    assert routed.weights == 4 * (2 * 3 * 64 * 40 + 8 * 64)


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_vl_moe"])
def test_features_of_a_frozen_tower_are_its_pixels(tiny, family):
    model = tiny(family)
    policy, _ = load_policy(str(model.folder), freeze_vision_tower=True)
    prompts = prompts_of(model)
    groups = [random_completions(model, (4, 9), seed=index) for index in range(3)]
    seen = policy.with_image_features(prompts)
    assert "pixel_values" not in seen[0].media.tensors
    found = []
    for its_prompts in (prompts, seen):
        (batch,) = micro_batches(policy, its_prompts, groups, max_tokens=10_000, pad_id=model.codec.pad_id)
        with torch.no_grad():
            found.append(policy(batch.rows, temperature=1.0, chunk_size=64)[0])
    assert torch.allclose(*found, rtol=0, atol=1e-5)


SETTINGS = dict(r=4, alpha=8, dropout=0.0, target_modules="language_model", exclude_modules=None, init="default",
                use_rslora=False, use_dora=False)  # fmt: skip


@pytest.mark.parametrize(
    ("family", "expected"),
    [
        ("qwen3_5", {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"}),
        ("qwen3_5_moe", {"in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj", "shared_expert_gate"}),
        ("qwen3_vl_moe", set()),
    ],
)
def test_adapters_go_to_every_linear_layer_and_to_no_convolution_router_or_routed_expert(tiny, family, expected):
    policy, codec = load_policy(str(tiny(family).folder), lora=SETTINGS)
    layers = {id(layer) for layer in adapter_layers(policy.model)}
    names = {name.rpartition(".")[2] for name, module in policy.model.named_modules() if id(module) in layers}
    projections = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
    assert names == projections | expected
    # And what learns gets a gradient through the forked states.
    model = Tiny(family, tiny(family).folder, policy, codec)
    (batch,) = micro_batches(
        policy, prompts_of(model)[1:2], [random_completions(model, (4, 2))], max_tokens=999, pad_id=codec.pad_id
    )
    policy(batch.rows, temperature=1.0, chunk_size=64)[0].sum().backward()
    learns = [weight.grad for name, weight in policy.named_parameters() if ".lora_B." in name]
    assert len(learns) == len(layers) and all(bool(gradient.any()) for gradient in learns)


def test_bfloat16_sampling_is_no_farther_from_the_truth_than_training(tmp_path):
    model = build_and_load_bfloat16(tmp_path, "qwen3_5", 60.0)
    sampled, trained, truth = three_log_probs(model, sampled_groups(model))
    own = (trained - truth).abs().mean()
    assert (sampled - truth).abs().mean() <= 1.25 * own
    # Families without states are 0.02 to 0.06 apart.
    assert (sampled - trained).abs().mean() <= 0.02
