"""Qwen3.5 and the families with routed experts: rows that share a prompt, sampling, and saved folders.

Three layers of Qwen3.5 in four carry a state from token to token. Their own arithmetic is float32 whatever the weights
are, so for float64 the rule of the recurrence is written out below.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers.models.qwen3_5 import modeling_qwen3_5

from tests.builders import (
    Tiny,
    allowed_ids,
    gradients,
    grid_of,
    pixels_of,
    plain_log_probs,
    problem_row,
    prompts_of,
    random_completions,
    relative_gap,
)
from tests.model_folders import change_json, change_tensors, copy_of
from vlm_mhpo.models import recurrent
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.weights import folder_digest
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.training.micro_batches import micro_batches

FAMILIES = ("qwen3_5", "qwen3_5_text", "qwen3_vl_moe", "qwen3_5_moe")
# Lengths that are run apart (1 beside 19), together, and alone.
LENGTHS = ((5, 1, 19, 5), (3,), (2, 7, 4))


def delta_rule(query, key, value, g, beta, initial_state=None, output_final_state=False, **_):
    """The gated delta rule token by token, in the dtype of `value` (arXiv:2412.06464, equation 10)."""

    def unit(vectors):
        vectors = vectors.repeat_interleave(value.shape[2] // vectors.shape[2], dim=2)
        return vectors * (vectors.square().sum(-1, keepdim=True) + 1e-6).rsqrt()

    query, key = unit(query) * query.shape[-1] ** -0.5, unit(key)
    state, outputs = initial_state, []
    if state is None:
        state = value.new_zeros(value.shape[0], value.shape[2], key.shape[-1], value.shape[-1])
    for time in range(value.shape[1]):
        state = state * g[:, time].exp()[..., None, None]
        known = (state * key[:, time, :, :, None]).sum(-2)
        change = beta[:, time, :, None] * (value[:, time] - known)
        state = state + key[:, time, :, :, None] * change[:, :, None, :]
        outputs.append((state * query[:, time, :, :, None]).sum(-2))
    return torch.stack(outputs, dim=1), state


def weight_of(flat: int, time: int) -> float:
    """A different weight for every token, so that a swap of two shows in the gradient."""
    return 1.0 + 0.37 * flat - 0.21 * time


def packed(model: Tiny, prompts, groups, max_tokens: int):
    """Log-probs by (completion, time) of packed rows, and the gradient of their weighted sum."""
    values = {}
    for batch in micro_batches(model.policy, prompts, groups, max_tokens=max_tokens, pad_id=model.codec.pad_id):
        log_probs_N, _ = model.policy(batch.rows, temperature=1.0, chunk_size=4096)
        keys = list(zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True))
        (log_probs_N * torch.tensor([weight_of(*key) for key in keys])).sum().backward()
        values |= dict(zip(keys, log_probs_N.tolist(), strict=True))
    return values, gradients(model)


def separate(model: Tiny, prompts, groups):
    """The same from the stock model, one sequence at a time."""
    values, flat = {}, 0
    for prompt, group in zip(prompts, groups, strict=True):
        for ids in group:
            log_probs_T = plain_log_probs(model, prompt, ids)
            (log_probs_T * torch.tensor([weight_of(flat, time) for time in range(len(ids))])).sum().backward()
            values |= {(flat, time): value for time, value in enumerate(log_probs_T.tolist())}
            flat += 1
    return values, gradients(model)


def groups_of(model: Tiny):
    return [random_completions(model, lengths, seed=7 + index) for index, lengths in enumerate(LENGTHS)]


def largest_gap(found, expected) -> float:
    assert found.keys() == expected.keys()
    return max(abs(found[key] - expected[key]) for key in expected)


def whole_gap(found, expected) -> float:
    """|found - expected| / |expected| over all weights together."""
    squares = [sum(float((one[n] - two[n]).double().square().sum()) for n in expected) for one, two in
               ((found, expected), (expected, {n: torch.zeros_like(v) for n, v in expected.items()}))]  # fmt: skip
    return (squares[0] / squares[1]) ** 0.5


# ---- packed rows -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [1, 10**9], ids=["pieces", "whole rows"])
def test_packed_rows_are_separate_rows_in_float64_with_the_rule_written_out(tiny, monkeypatch, width):
    """Two images, one, none; rows of one micro-batch whose prompts differ in length; a prompt cut into two rows."""
    monkeypatch.setattr("vlm_mhpo.models.policy.SPLIT_WIDTH", width)
    monkeypatch.setattr(modeling_qwen3_5, "torch_chunk_gated_delta_rule", delta_rule)
    model = tiny("qwen3_5").copy()
    model.policy.double()
    prompts, groups = prompts_of(model), groups_of(model)
    expected, expected_gradients = separate(model, prompts, groups)
    for max_tokens in (100_000, 56):
        found, found_gradients = packed(model, prompts, groups, max_tokens)
        assert largest_gap(found, expected) <= 1e-6
        gap, name = relative_gap(found_gradients, expected_gradients)
        assert gap <= 1e-6, (gap, name)


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_are_separate_rows_in_float32_with_recomputed_activations_too(tiny, monkeypatch, family):
    monkeypatch.setattr("vlm_mhpo.models.policy.SPLIT_WIDTH", 60)
    model = tiny(family)
    prompts, groups = prompts_of(model), groups_of(model)
    expected, expected_gradients = separate(model, prompts, groups)
    found, found_gradients = packed(model, prompts, groups, 100_000)
    assert largest_gap(found, expected) <= 2e-5
    assert whole_gap(found_gradients, expected_gradients) <= 1e-5
    again = replace(model, policy=load_policy(str(model.folder), gradient_checkpointing=True)[0])
    again.policy.train()
    assert again.policy.recomputes_activations
    values, its_gradients = packed(again, prompts, groups, 100_000)
    assert values == found
    assert whole_gap(its_gradients, found_gradients) <= 1e-6


@pytest.mark.parametrize("family", ["qwen3_5", "qwen3_5_moe"])
def test_a_blank_image_and_padding_reach_no_state(tiny, family):
    """Rows without images get columns of a blank one in the tower's stead; the shorter row gets padding."""
    model = tiny(family)
    prompts = prompts_of(model, [problem_row("a", "What is 3 + 4 ?"), problem_row("b", "red plus blue times 9")])
    groups = [random_completions(model, lengths, seed=3) for lengths in ((4, 2), (9, 3, 6))]
    expected, expected_gradients = separate(model, prompts, groups)
    found, found_gradients = packed(model, prompts, groups, 10_000)
    assert largest_gap(found, expected) <= 2e-5
    assert whole_gap(found_gradients, expected_gradients) <= 1e-5
    (batch,) = micro_batches(model.policy, prompts, groups, max_tokens=10_000, pad_id=model.codec.pad_id)
    towers = [name for name, _ in model.policy.named_parameters() if ".visual." in name]
    model.policy(batch.rows, temperature=1.0, chunk_size=64)[0].sum().backward()
    reached = {name for name, weight in model.policy.named_parameters() if weight.grad is not None}
    gradients(model)
    # Other ranks wait for these gradients.
    assert set(towers) <= reached


def test_completions_of_very_different_lengths_are_not_padded_to_the_longest():
    """One of 4000 tokens beside seven of 100: within twice the tokens, where one batch would take eight times 4000."""
    forks = recurrent.forks_of([(30, 100, 100, 4000, 100, 100), (50, 100, 1, 100, 100)], 5000, torch.device("cpu"))
    computed = sum(batch.column_KT.numel() for batch in forks.completions)
    assert computed <= 2 * (4000 + 7 * 100 + 1)
    # What every column reads and where its output goes are inverses of each other.
    read = torch.cat([forks.column_RP.flatten(), *(batch.column_KT.flatten() for batch in forks.completions)])
    used = forks.place_RS.flatten() < len(read)
    assert torch.equal(read[forks.place_RS.flatten()[used]], used.nonzero()[:, 0])
    assert used.view(2, -1).sum(dim=1).tolist() == [4430, 351]


def test_the_layers_own_kernels_do_all_the_work_and_none_without_a_backward(tiny, monkeypatch):
    """Where flash-linear-attention and causal-conv1d are installed transformers puts them under these names."""
    calls = []

    def watched(name):
        kernel = getattr(modeling_qwen3_5, name)

        def call(*args, **kwargs):
            # Neither package knows our keywords.
            assert not kwargs.keys() & {"forks", "segments", "shared_prefix"}
            state = kwargs.get("initial_state")
            calls.append((name, args[0].shape[0], None if state is None else state.shape[0]))
            return kernel(*args, **kwargs)

        monkeypatch.setattr(modeling_qwen3_5, name, call)

    rule, convolution = "torch_chunk_gated_delta_rule", "causal_conv1d_fn"
    for name in (rule, convolution, "torch_recurrent_gated_delta_rule", "causal_conv1d_update"):
        watched(name)
    model = tiny("qwen3_5")
    # A completion of one token would be a step of decoding for the layer.
    packed(model, prompts_of(model)[1:2], [random_completions(model, (1, 1, 1))], 10_000)
    once = [(convolution, 1, None), (rule, 1, None), (convolution, 3, None), (rule, 3, 3)]
    assert calls == 3 * once


# ---- sampling --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_sampled_log_probs_are_the_trainers_and_the_stock_models_also_where_slots_are_taken_over(tiny, family):
    model = ending(tiny(family), share=12)
    rows = [problem_row(f"extra-{index}", "What is 4 plus " + "1 plus " * index + "2 ?") for index in range(4)]
    prompts = prompts_of(model) + prompts_of(model, rows)
    params = SamplingParams(num_samples=4, max_tokens=24, temperature=0.7)
    most = 100_000
    plenty, few = (sample(model, prompts, params, budget) for budget in (most, 500))
    groups = [[completion.token_ids for completion in group.completions] for group in plenty]
    assert groups == [[completion.token_ids for completion in group.completions] for group in few]
    assert len({len(ids) for group in groups for ids in group}) > 8
    recorded = [completion.log_probs for group in few for completion in group.completions]
    (batch,) = micro_batches(model.policy, prompts, groups, max_tokens=most, pad_id=model.codec.pad_id)
    with torch.no_grad():
        trained_N, _ = model.policy(batch.rows, temperature=0.7, chunk_size=512)
    places = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
    sampled_N = torch.stack([recorded[flat][time] for flat, time in places])
    gaps_N = (sampled_N - trained_N).abs()
    assert gaps_N.max() <= 5e-5 and gaps_N.mean() <= 2e-6
    with torch.no_grad():
        for group in few:
            stock = plain_log_probs(model, group.prompt, group.completions[0].token_ids, 0.7)
            assert group.completions[0].log_probs.tolist() == pytest.approx(stock.tolist(), abs=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_completions_are_those_of_generate(tiny, family):
    model = tiny(family)
    prompts = prompts_of(model)
    # In two slots, so that the third prompt begins where another has ended.
    most = 2 * (max(prompt.num_tokens for prompt in prompts) + 16)
    groups = sample(model, prompts, SamplingParams(num_samples=1, max_tokens=16, temperature=0.0), most)
    allowed = set(allowed_ids(model))
    for group, prompt in zip(groups, prompts, strict=True):
        inputs = {"input_ids": prompt.input_ids_S[None], "attention_mask": torch.ones(1, prompt.num_tokens)}
        if prompt.media is not None:
            inputs |= {"pixel_values": pixels_of(prompt), "image_grid_thw": grid_of(prompt)}
            inputs["mm_token_type_ids"] = prompt.token_types_S[None]
        banned = [index for index in range(model.policy.banned_V.shape[0]) if index not in allowed]
        expected = model.policy.model.generate(
            **inputs, do_sample=False, max_new_tokens=16, suppress_tokens=banned, eos_token_id=list(model.codec.end_ids)
        )
        assert group.completions[0].token_ids == tuple(expected[0, prompt.num_tokens :].tolist())


def ending(model: Tiny, share: int) -> Tiny:
    """The same model with one in `share` of its tokens as end tokens, so that completions have every length."""
    ends = tuple(sorted({*model.codec.end_ids, *allowed_ids(model)[::share]}))
    return replace(model, codec=replace(model.codec, end_ids=ends))


def sample(model: Tiny, prompts, params: SamplingParams, most: int):
    return HfSampler(model.policy, model.codec, max_batch_tokens=most).sample(prompts, params, (5, "rollout", 0))


# ---- folders ---------------------------------------------------------------------------------------------------


def experts_as_columns(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Experts [in, out], as Qwen3-VL-30B-A3B is published."""
    return {name: value.transpose(1, 2) if ".experts." in name else value for name, value in held.items()}


def experts_in_one(held: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A layer's experts in one tensor, as Qwen3.5's are published, and a part that predicts several tokens beside."""
    found = {name: value for name, value in held.items() if ".experts." not in name}
    for place in sorted({name.split(".experts.")[0] for name in held if ".experts." in name}):
        parts = {
            part: torch.stack([held[f"{place}.experts.{index}.{part}.weight"] for index in range(8)])
            for part in ("gate_proj", "up_proj", "down_proj")
        }
        found[f"{place}.experts.gate_up_proj"] = torch.cat([parts["gate_proj"], parts["up_proj"]], dim=1)
        found[f"{place}.experts.down_proj"] = parts["down_proj"]
    return found | {"mtp.fc.weight": torch.zeros(3, 3)}


FOLDERS = {
    "qwen3_5": lambda held: held | {"mtp.layers.0.self_attn.q_proj.weight": torch.zeros(3, 3)},
    "qwen3_5_text": lambda held: held,
    "qwen3_vl_moe": experts_as_columns,
    "qwen3_5_moe": experts_in_one,
}


@pytest.mark.parametrize("family", FOLDERS)
def test_a_folder_as_published_is_read_right_and_written_with_its_own_names_and_shapes(tiny, tmp_path, family):
    model = tiny(family)
    folder = change_tensors(copy_of(model.folder, tmp_path / "model"), FOLDERS[family])
    policy, _ = load_policy(str(folder))
    expected = model.policy.model.state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in policy.model.state_dict().items())
    policy.weights.save(policy.model, tmp_path / "saved")
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "saved"))
    assert set(after) == {name for name in before if not name.startswith("mtp.")}
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    assert folder_digest(tmp_path / "saved") == policy.weights.digest


# ---- routed experts --------------------------------------------------------------------------------------------


def test_experts_that_a_router_scores_alike_are_chosen_alike_in_packed_and_separate_rows(tiny):
    """All eight are pairs with one row of the router, so each choice of one is a tie; what experts compute differs."""
    model = tiny("qwen3_vl_moe").copy()
    with torch.no_grad():
        for name, weight in model.policy.named_parameters():
            if name.endswith("mlp.gate.weight"):
                weight[1::2] = weight[::2]
                # And of two pairs the scores differ in the last digits.
                weight[2:4] = weight[:2] * (1 + 2**-20)
    prompts, groups = prompts_of(model), groups_of(model)
    with torch.no_grad():
        expected = {
            (index, time): value
            for index, (prompt, ids) in enumerate((p, ids) for p, g in zip(prompts, groups, strict=True) for ids in g)
            for time, value in enumerate(plain_log_probs(model, prompt, ids).tolist())
        }
    found, _ = packed(model, prompts, groups, 100_000)
    gaps = sorted(abs(found[key] - expected[key]) for key in expected)
    # Every token chooses among ties in two layers. One that chooses otherwise is another model's, and is no rounding.
    assert gaps[len(gaps) * 9 // 10] <= 1e-5


def test_the_balance_of_routers_has_no_part_in_the_loss_whatever_config_json_says(tiny, tmp_path):
    """transformers adds a loss of its own to one that it computes from labels; log-probs never ask for it."""

    def ask(values: dict) -> None:
        values["text_config"] |= {"output_router_logits": True, "router_aux_loss_coef": 1e6}

    model = tiny("qwen3_vl_moe")
    folder = change_json(copy_of(model.folder, tmp_path / "model"), "config.json", ask)
    other = replace(model, policy=load_policy(str(folder))[0])
    prompts, groups = prompts_of(model)[1:], groups_of(model)[1:]
    (expected, its), (found, mine) = (packed(each, prompts, groups, 10_000) for each in (model, other))
    assert found == expected
    assert all(torch.equal(mine[name], gradient) for name, gradient in its.items())
