"""Sizes of known models, model states as DeepSpeed's own estimator has them, activations as autograd keeps them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

from vlm_mhpo.commands.doctor import Options, examine
from vlm_mhpo.commands.doctor.memory import (
    Estimate,
    activation_bytes,
    estimate,
    examine_memory,
    fits,
    model_states,
    settings,
)
from vlm_mhpo.commands.doctor.recommend import recommend
from vlm_mhpo.commands.doctor.shapes import shapes_of
from vlm_mhpo.config import ModelConfig, load_config, parse_config
from vlm_mhpo.errors import ModelError

VISION = {
    "depth": 32,
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "num_heads": 16,
    "patch_size": 14,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "window_size": 112,
    "fullatt_block_indexes": [7, 15, 23, 31],
}
TEXTS = {
    "3B": dict(hidden_size=2048, num_hidden_layers=36, num_attention_heads=16, num_key_value_heads=2),
    "7B": dict(hidden_size=3584, num_hidden_layers=28, num_attention_heads=28, num_key_value_heads=4),
}
TEXTS["3B"] |= dict(intermediate_size=11008, vocab_size=151936)
TEXTS["7B"] |= dict(intermediate_size=18944, vocab_size=152064)
# As the hub lists them for Qwen2.5-VL-Instruct.
PUBLISHED = {"3B": 3_754_622_976, "7B": 8_292_166_656}


def write_config(folder, size) -> str:
    """A config.json as published; the folder holds no weights."""
    text = TEXTS[size] | {"model_type": "qwen2_5_vl_text", "max_position_embeddings": 128000}
    text["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [16, 24, 24]}
    values = {"model_type": "qwen2_5_vl", "text_config": text, "tie_word_embeddings": size == "3B"}
    values["vision_config"] = VISION | {"model_type": "qwen2_5_vl", "out_hidden_size": text["hidden_size"]}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(values))
    return str(folder)


@pytest.mark.parametrize(("recipe", "size"), [("qwen2_5_vl_7b_lora_1gpu", 24), ("qwen2_5_vl_7b_lora_48gb", 48)])
def test_a_recipe_with_adapters_fits_its_card_and_a_full_run_does_not(tmp_path, recipe, size):
    verdicts = []
    for more in ([], ["model.quantization=null", "model.lora=null"]):
        config = load_config(f"configs/{recipe}.yaml", [f"model.path={write_config(tmp_path, '7B')}", *more])
        shapes = shapes_of(config.model)
        found = estimate(config, shapes, stage=config.deepspeed.zero_stage, num_ranks=1, offload=(False, False))
        verdicts.append(fits(found, size * 2**30))
    assert verdicts == [True, False]
    card = Options(quick=True, gpu_memory_gb=size)
    for asked, subject, verdict in (
        (load_config(f"configs/{recipe}.yaml", [f"model.path={tmp_path}"]), "instead: model.lora=null", "does not fit"),
        (config, "instead: model.lora={r: 16}", "fits"),
    ):
        (told,) = [check.text for check in examine(asked, card) if check.subject == subject]
        assert told.endswith(f", {verdict}")
    # Of each of 7 matrices in 28 layers rank times its height and width.
    text, rank = TEXTS["7B"], load_config(f"configs/{recipe}.yaml").model.lora.r
    width, inner, keys = text["hidden_size"], text["intermediate_size"], 4 * 128
    sides = 2 * (width + width) + 2 * (width + keys) + 3 * (width + inner)
    with_adapters = shapes_of(load_config(f"configs/{recipe}.yaml", [f"model.path={tmp_path}"]).model)
    assert with_adapters.num_trained == 28 * rank * sides
    assert with_adapters.num_parameters == PUBLISHED["7B"] + with_adapters.num_trained


def tower_by_hand(out: int) -> tuple[int, int]:
    """Weights of the vision tower without its merger, and of the merger."""
    width, inner = 1280, 3420
    block = 2 * width + (width * 3 * width + 3 * width) + (width * width + width)
    block += 2 * (width * inner + inner) + (inner * width + width)
    merged = 4 * width
    merger = width + (merged * merged + merged) + (merged * out + out)
    return 3 * 2 * 14 * 14 * width + 32 * block, merger


def text_by_hand(
    hidden_size, num_hidden_layers, num_attention_heads, num_key_value_heads, intermediate_size, vocab_size
):
    """Weights of the language model with one embedding matrix."""
    narrow = hidden_size // num_attention_heads * num_key_value_heads
    attention = (hidden_size + 1) * hidden_size + 2 * (hidden_size + 1) * narrow + hidden_size * hidden_size
    layer = attention + 3 * hidden_size * intermediate_size + 2 * hidden_size
    return vocab_size * hidden_size + num_hidden_layers * layer + hidden_size


@pytest.mark.parametrize("size", ["3B", "7B"])
def test_parameters_of_known_models_are_those_counted_by_hand_and_published(size, tmp_path):
    shapes = shapes_of(ModelConfig(path=write_config(tmp_path / size, size)))
    text = TEXTS[size]
    head = 0 if size == "3B" else text["vocab_size"] * text["hidden_size"]
    by_hand = sum(tower_by_hand(text["hidden_size"])) + text_by_hand(**text) + head
    assert shapes.num_parameters == shapes.num_trained == by_hand == PUBLISHED[size]
    # The embedding is the largest thing that ZeRO-3 gathers at once.
    assert shapes.largest_module == text["vocab_size"] * text["hidden_size"]


def test_frozen_parts_are_not_counted_as_trained(tmp_path):
    path = write_config(tmp_path / "7B", "7B")
    tower, merger = tower_by_hand(3584)
    frozen = shapes_of(ModelConfig(path=path, freeze_vision_tower=True))
    assert frozen.num_trained == PUBLISHED["7B"] - tower and not frozen.vision_trained
    frozen = shapes_of(ModelConfig(path=path, freeze_vision_tower=True, freeze_projector=True))
    assert frozen.num_trained == PUBLISHED["7B"] - tower - merger


def test_a_hub_name_that_is_not_on_this_machine_is_one_sentence():
    with pytest.raises(ModelError, match=r"nobody/nothing: no config\.json on this machine"):
        shapes_of(ModelConfig(path="nobody/nothing"))


@pytest.mark.parametrize("num_ranks", [1, 2, 4, 8])
def test_zero2_states_are_those_of_deepspeeds_estimator_but_for_gradients_in_float32(num_ranks):
    """It counts 2 bytes a gradient and 4 of its copy while it steps, or 2 that go to the host; here one sum of 4."""
    P, L = PUBLISHED["3B"], 300_000_000
    _, expected = estimate_zero2_model_states_mem_needs(P, num_ranks, 1, cpu_offload=False)
    found = model_states(P, P, L, stage=2, num_ranks=num_ranks, dtype="bfloat16")
    assert found.device == pytest.approx(expected - 2 * P / num_ranks, rel=1e-9) and found.host == 0
    host, expected = estimate_zero2_model_states_mem_needs(
        P, num_ranks, 1, cpu_offload=True, additional_buffer_factor=1
    )
    found = model_states(P, P, L, stage=2, num_ranks=num_ranks, dtype="bfloat16", offload_optimizer=True)
    assert found.device == pytest.approx(expected + 4 * P / num_ranks, rel=1e-9)
    if num_ranks <= 4:
        # With more, DeepSpeed adds the copies that ranks make while they load.
        assert found.host * num_ranks == pytest.approx(host, rel=1e-9)


@pytest.mark.parametrize("num_ranks", [1, 2, 8])
def test_zero3_states_are_those_of_deepspeeds_estimator_and_the_gradient_buffer(num_ranks):
    # Small enough for its optimizer to step in one group.
    P, L = 900_000_000, 300_000_000

    def ours(**offload):
        return model_states(P, P, L, stage=3, num_ranks=num_ranks, dtype="bfloat16", **offload)

    def theirs(optimizer, weights):
        return estimate_zero3_model_states_mem_needs(
            P, L, num_ranks, 1, cpu_offload=optimizer, cpu_offload_params=weights, additional_buffer_factor=1
        )

    _, device, gathered = theirs(False, False)
    assert ours().device == pytest.approx(device + 4 * P / num_ranks, rel=1e-9)
    assert ours().gathered == gathered
    host, device, _ = theirs(True, False)
    assert (ours(offload_optimizer=True).device, ours(offload_optimizer=True).host * num_ranks) == pytest.approx(
        (device, host + 4 * P), rel=1e-9
    )
    host, device, _ = theirs(True, True)
    both = ours(offload_optimizer=True, offload_param=True)
    assert (both.device, both.host * num_ranks) == pytest.approx((device, host + 4 * P), rel=1e-9)


def test_stages_0_and_1_by_hand():
    # bfloat16, 1000 weights of which 600 are trained, 4 ranks: 2 a weight; 2 + 4 a gradient; 12 of AdamW.
    found = model_states(1000, 600, 100, stage=0, num_ranks=4, dtype="bfloat16")
    assert (found.weights, found.gradients, found.optimizer) == (2000, 3600, 7200)
    found = model_states(1000, 600, 100, stage=1, num_ranks=4, dtype="bfloat16")
    assert (found.weights, found.gradients, found.optimizer) == (2000, 1200 + 600, 1800)
    # Plain float32 AdamW: 4, 4 and 8.
    found = model_states(1000, 600, 100, stage=0, num_ranks=4, dtype="float32")
    assert (found.weights, found.gradients, found.optimizer) == (4000, 2400, 4800)


@pytest.mark.parametrize("num_tokens", [64, 256])
def test_activations_are_about_what_autograd_keeps(num_tokens, tiny):
    model = tiny("qwen2").policy.model
    inner = model.model
    kept: dict[int, int] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    weights = {weight.untyped_storage().data_ptr() for weight in model.parameters()}
    ids = torch.randint(0, 200, (1, num_tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(num_tokens, num_tokens, dtype=torch.bool).tril()[None, None]
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        # Held, so that no storage is freed and its address given to another.
        held = inner(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    measured = sum(size for address, size in kept.items() if address not in weights)
    assert held.requires_grad
    layers = shapes_of(ModelConfig(path="tiny:qwen2")).text
    # The tests' tiny models are half as wide as those of a configuration.
    layers = replace(layers, hidden=64, intermediate=128, query=64, num_heads=2)
    expected = activation_bytes(layers, num_tokens, dtype="float32", checkpointing=False)
    assert 0.75 * measured < expected < 1.35 * measured


def a_config(**sections):
    """A run of the 3B shapes."""
    values = {
        "output_dir": "unused",
        "model": {"path": "unused"},
        "data": {"train": "unused", "max_prompt_length": 1000},
        "rollout": {"num_generations": 4, "max_completion_length": 1000, "max_batch_tokens": 16000},
        "train": {"max_steps": 1, "num_prompts_per_step": 8, "max_tokens_per_micro_batch": 5000},
    }
    for name, section in sections.items():
        values[name] = values.get(name, {}) | section
    return parse_config(values)


@pytest.fixture(scope="module")
def shapes_3b(tmp_path_factory):
    return shapes_of(ModelConfig(path=write_config(tmp_path_factory.mktemp("shapes"), "3B")))


def test_the_attention_cache_and_the_logits_by_hand(shapes_3b):
    found = estimate(a_config(), shapes_3b, stage=2, num_ranks=1, offload=(False, False))
    # 16000 tokens, 36 layers, 2 heads of 128: keys in float32, values in bfloat16. A prompt of 1000 and its four
    # completions of 1000 are 5000, so twelve completions and their prompts are held at once.
    cache = 16000 * 36 * (256 * 4 + 256 * 2)
    assert cache <= found.cache <= cache + 12 * 151936 * 30
    # Never more than there is to decode: on 8 ranks one prompt each.
    found = estimate(a_config(), shapes_3b, stage=2, num_ranks=8, offload=(False, False))
    cache = 5000 * 36 * (256 * 4 + 256 * 2)
    assert cache <= found.cache <= cache + 4 * 151936 * 30
    # A chunk of 384 rows in float32, and their gradient in bfloat16.
    assert found.logits == 384 * 151936 * (4 + 2)


def test_each_knob_lowers_its_own_part(shapes_3b):
    def of(**sections) -> Estimate:
        return estimate(a_config(**sections), shapes_3b, stage=2, num_ranks=1, offload=(False, False))

    plain = of()
    assert of(model={"gradient_checkpointing": True}).activations < 0.2 * plain.activations
    assert of(train={"max_tokens_per_micro_batch": 2000}).activations < 0.6 * plain.activations
    assert of(train={"logits_chunk_size": 96}).logits == plain.logits / 4
    assert of(rollout={"max_batch_tokens": 8000}).cache == plain.cache / 2
    assert plain.reference == 0 and of(objective={"beta": 0.1}).reference == 2 * PUBLISHED["3B"]


def test_a_device_that_is_too_small_is_an_error_that_says_what_to_lower(shapes_3b):
    config = a_config()
    (_, update, rollout, *others) = examine_memory(config, shapes_3b, stage=2, num_ranks=8, device_bytes=24 * 2**30)
    assert update.state == "error" and "model.gradient_checkpointing=true" in update.text
    assert rollout.state == "ok"
    assert len(others) == len(settings()) - 1 == 7
    (_, update, *_) = examine_memory(config, shapes_3b, stage=2, num_ranks=8, device_bytes=80 * 2**30)
    assert update.state == "ok"
    # Nothing is judged where the device is not known.
    assert {each.state for each in examine_memory(config, shapes_3b, stage=2, num_ranks=8, device_bytes=None)} == {"ok"}


def test_a_rollout_under_zero3_needs_whole_weights(shapes_3b):
    found = estimate(a_config(), shapes_3b, stage=3, num_ranks=8, offload=(False, False))
    assert found.whole_weights == 2 * PUBLISHED["3B"] > found.states.weights
    assert found.rollout > found.whole_weights + found.cache


# ---- what is recommended ---------------------------------------------------------------------------------------

QWEN2 = {"model_type": "qwen2", "tie_word_embeddings": False, "max_position_embeddings": 32768, "vocab_size": 152064}
QWEN3_VL_8B = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": False,
    "text_config": {
        "model_type": "qwen3_vl_text",
        "hidden_size": 4096,
        "num_hidden_layers": 36,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "intermediate_size": 12288,
        "vocab_size": 151936,
        "max_position_embeddings": 262144,
        "rope_parameters": {"rope_type": "default", "rope_theta": 5e6, "mrope_section": [24, 20, 20]},
    },
    "vision_config": {
        "depth": 27,
        "hidden_size": 1152,
        "intermediate_size": 4304,
        "num_heads": 16,
        "patch_size": 16,
        "out_hidden_size": 4096,
        "deepstack_visual_indexes": [8, 16, 24],
        "num_position_embeddings": 2304,
    },
}
# Published sizes of the recipes' models; a name for `write_config`.
MODELS = {
    "qwen2_5_vl_3b_geometry3k": "3B",
    "qwen2_5_vl_7b_geometry3k": "7B",
    "qwen2_5_7b_math12k": QWEN2 | TEXTS["7B"],
    "qwen3_vl_8b_geometry3k": QWEN3_VL_8B,
    "qwen3_vl_8b_geometry3k_16k": QWEN3_VL_8B,
}


def recipe_on(folder, name: str, *overrides: str):
    """A shipped recipe with the shapes of its model."""
    model = MODELS[name]
    if isinstance(model, str):
        path = write_config(folder / model, model)
    else:
        path = str(folder)
        (folder / "config.json").write_text(json.dumps(model))
    recipe = Path(__file__).resolve().parents[2] / "configs" / f"{name}.yaml"
    return load_config(recipe, [f"model.path={path}", *overrides])


def recommended(config, *, num_ranks=8, gib=80):
    """What is said, by subject."""
    shapes = shapes_of(config.model)
    checks = recommend(
        config, shapes, stage=config.deepspeed.zero_stage, num_ranks=num_ranks, device_bytes=gib and gib * 2**30
    )
    return {check.subject: check for check in checks}


@pytest.mark.parametrize("name", MODELS)
def test_recipes_follow_what_the_doctor_recommends_on_the_devices_that_they_name(name, tmp_path):
    found = recommended(recipe_on(tmp_path, name))
    assert found.keys() == {"recommended"}
    assert found["recommended"].state == "ok" and found["recommended"].text.startswith("ZeRO-2, with rollout.")


def test_a_higher_stage_than_needed_is_named_and_one_that_is_needed_is_not(tmp_path):
    config = recipe_on(tmp_path, "qwen2_5_vl_7b_geometry3k", "deepspeed.zero_stage=3")
    said = recommended(config)["recommended"]
    assert said.state == "warning" and "ZeRO-3, which is set, gathers or moves more than it must" in said.text
    # 38.7 GiB of ZeRO-2 and a tenth to spare do not fit, 33.4 of ZeRO-3 do.
    said = recommended(config, gib=40)["recommended"]
    assert said.state == "ok" and said.text.startswith("ZeRO-3, with")
    assert recommended(config, gib=None) == {}


def test_how_many_completions_are_decoded_at_a_time_by_hand(tmp_path):
    config = recipe_on(tmp_path, "qwen2_5_vl_7b_geometry3k")
    # 16 prompts of 2048 tokens on a rank, each with eight completions of 2048: 294912 tokens of 86016 bytes, 23.6 GiB
    # of the 46 GiB that are left beside weights and optimizer, of which three quarters are used.
    text = recommended(config)["recommended"].text
    assert "about 294,912 tokens: 128 of a rank's 128 completions" in text
    # On 48 GiB: 0.75 x (43.2 - 26.1) GiB / 86016 bytes, in thousands of 1024, for groups of 18432 tokens.
    tokens = int(text_between(recommended(config, gib=48)["recommended"].text, "about ", " tokens").replace(",", ""))
    assert tokens == pytest.approx(0.75 * 17.1 * 2**30 / 86016, rel=0.02)
    assert f"{8 * tokens // 18432} of a rank's 128" in recommended(config, gib=48)["recommended"].text


def text_between(text: str, before: str, after: str) -> str:
    return text.partition(before)[2].partition(after)[0]


@pytest.mark.parametrize(("tokens", "warns"), [(4096, True), (8191, True), (8192, False)])
def test_a_budget_below_what_the_family_needs_is_a_warning(tokens, warns, tmp_path):
    name = "qwen3_vl_8b_geometry3k"
    said = recommended(recipe_on(tmp_path, name, f"rollout.max_completion_length={tokens}"), gib=None)
    assert ("completion budget" in said) == warns
    if warns:
        assert said["completion budget"].state == "warning"
        assert "answers of qwen3_vl models need 8192" in said["completion budget"].text
    # Not for a tiny model of the family, whose answers are a few tokens.
    tiny = a_config(model={"path": "tiny:qwen3_vl"})
    assert recommended(tiny, gib=None) == {}


def test_a_model_that_no_setting_lets_sample_is_an_error_that_names_the_way_out(tmp_path):
    sizes = dict(hidden_size=5120, num_hidden_layers=64, num_attention_heads=40, num_key_value_heads=8)
    (tmp_path / "config.json").write_text(json.dumps(QWEN2 | sizes | {"intermediate_size": 27648}))
    config = a_config(model={"path": str(tmp_path)}, rollout={"max_batch_tokens": "auto"})
    # 32.8 billion weights are 61 GiB in bfloat16; every rank holds them all while it samples.
    said = recommended(config, gib=64)["sampling"]
    assert said.state == "error" and "61.0 GiB of 64.0 GiB" in said.text and "vLLM" in said.text
    said = recommended(config, gib=80)["sampling"]
    assert said.state == "warning" and "vLLM" in said.text
    assert "sampling" not in recommended(config, gib=192)
    servers = {"engine": "vllm", "vllm": {"servers": ["http://127.0.0.1:8101"]}}
    assert "sampling" not in recommended(a_config(model={"path": str(tmp_path)}, rollout=servers), gib=64)
