"""A model folder that is not whole, or not the model's, is refused by name; a saved one has the names it had."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.builders import FAMILIES, VISION_FAMILIES
from tests.model_folders import change_json, change_tensors, copy_of, listing, split_in_shards, tie_head
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.loading import load_policy


def without(pattern: str):
    """A change that drops the tensors whose names match."""
    return lambda held: {name: value for name, value in held.items() if not re.search(pattern, name)}


def under(prefix: str):
    """A change that puts a prefix before every name."""
    return lambda held: {f"{prefix}{name}": value for name, value in held.items()}


def spoil(pattern: str, value_of):
    """A change of the tensors whose names match."""
    return lambda held: {name: value_of(value) if re.search(pattern, name) else value for name, value in held.items()}


def one_layer_more(values: dict) -> None:
    text = values.get("text_config", values)
    text |= {"num_hidden_layers": 4, "layer_types": ["full_attention"] * 4}


BROKEN = {
    "head": (without("lm_head"), r"1 missing \(lm_head.weight\); the head was saved elsewhere, or is the embedding"),
    "mlp": (without(r"layers\.1\.mlp"), r"\d missing \(.*layers\.1\.mlp\.down_proj\.weight, .*layers\.1"),
    "norm": (without(r"layers\.2\.input_layernorm"), r"1 missing \(.*layers\.2\.input_layernorm\.weight\)"),
    "module": (under("module."), r"the prefix 'module\.' before them"),
    "peft": (under("base_model.model."), r"the prefix 'base_model\.model\.' before them"),
    "compiled": (under("_orig_mod."), r"the prefix '_orig_mod\.' before them"),
    "adapter": (
        lambda held: {"base_model.model.model.layers.0.mlp.up_proj.lora_A.weight": torch.zeros(2, 64)},
        r"an adapter's: merge it into its base model",
    ),
    "rows": (
        spoil("embed_tokens", lambda value: value[:-1]),
        r"1 of another shape \(.*embed_tokens.weight \[4\d\d",
    ),
    "empty": (spoil(r"layers.*up_proj", lambda value: value[:0, 0]), r"\[0\] for \[\d+, 64\].*saved under ZeRO-3"),
    "value head": (lambda held: held | {"v_head.weight": torch.zeros(1, 64)}, r"1 not known \(v_head.weight\)"),
}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("damage", BROKEN)
def test_tensors_that_are_not_the_models_are_refused_by_name(tiny, tmp_path, damage, family):
    change, sentence = BROKEN[damage]
    folder = change_tensors(copy_of(tiny(family).folder, tmp_path / "model"), change)
    with pytest.raises(ModelError, match=sentence) as raised:
        load_policy(str(folder))
    assert str(folder) in str(raised.value) and "\n" not in str(raised.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_layer_that_config_json_counts_and_no_file_holds_is_named(tiny, tmp_path, family):
    folder = change_json(copy_of(tiny(family).folder, tmp_path / "model"), "config.json", one_layer_more)
    with pytest.raises(ModelError, match=r"missing \(.*layers\.3\..*config.json counts other layers than the files"):
        load_policy(str(folder))


@pytest.mark.parametrize("family", VISION_FAMILIES)
def test_a_folder_without_its_vision_tower_is_refused(tiny, tmp_path, family):
    folder = change_tensors(copy_of(tiny(family).folder, tmp_path / "model"), without("visual|vision_tower"))
    with pytest.raises(
        ModelError, match=r"missing \(model\.vis(ual\.blocks\.0|ion_tower\.).*a part of the model was not saved"
    ):
        load_policy(str(folder))


def test_a_missing_shard_is_named(tiny, tmp_path):
    folder = split_in_shards(copy_of(tiny("qwen2_5_vl").folder, tmp_path / "model"))
    load_policy(str(folder))
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ModelError, match=r"index.json names model-00002-of-00003.safetensors, which is not there"):
        load_policy(str(folder))


def test_an_index_that_leaves_a_shard_out_is_told_from_a_half_model(tiny, tmp_path):
    folder = split_in_shards(copy_of(tiny("qwen2_5_vl").folder, tmp_path / "model"))

    def forget(values: dict) -> None:
        values["weight_map"] = {n: file for n, file in values["weight_map"].items() if "00002" not in file}

    change_json(folder, "model.safetensors.index.json", forget)
    with pytest.raises(ModelError, match=r"only 2 of 3 shards are listed in model.safetensors.index.json"):
        load_policy(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_family_does_without_is_not_missed(tiny, tmp_path, family):
    """A tied head is not in the file, and the tables of rotary positions of older releases are."""
    folder = tie_head(copy_of(tiny(family).folder, tmp_path / "model"))
    change_tensors(folder, lambda held: held | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    model = load_policy(str(folder))[0].model
    (embedding,) = [value for name, value in load_file(folder / "model.safetensors").items() if "embed_tokens" in name]
    assert torch.equal(model.lm_head.weight, embedding)


def test_tied_tensors_that_differ_are_refused(tiny, tmp_path):
    """One of the two would be lost, and which one depends on the ZeRO stage."""
    source = tiny("qwen2_5_vl").folder
    folder = tie_head(copy_of(source, tmp_path / "model"))
    head = load_file(source / "model.safetensors")["lm_head.weight"]
    change_tensors(folder, lambda held: held | {"lm_head.weight": head})
    with pytest.raises(ModelError, match=r"different lm_head.weight and model.embed_tokens.*tie_word_emb"):
        load_policy(str(folder))


def renamed_as_newer_releases_do(held: dict) -> dict:
    """The names that some training frameworks write Qwen2.5-VL with."""
    names = {name: re.sub(r"^model\.", "model.language_model.", name) for name in held}
    return {re.sub(r"^visual\.", "model.visual.", names[name]): value for name, value in held.items()}


VARIANTS = {
    "plain": lambda folder: folder,
    "tied": tie_head,
    "tied, and both are there": lambda folder: change_tensors(
        tie_head(folder), lambda held: held | {"lm_head.weight": held["model.embed_tokens.weight"].clone()}
    ),
    "tied, and only the head is there": lambda folder: change_tensors(
        tie_head(folder),
        lambda held: {("lm_head.weight" if "embed_tokens" in name else name): value for name, value in held.items()},
    ),
    "newer names": lambda folder: change_tensors(folder, renamed_as_newer_releases_do),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_policy_is_written_with_the_names_that_it_was_read_by(tiny, tmp_path, variant):
    folder = VARIANTS[variant](copy_of(tiny("qwen2_5_vl").folder, tmp_path / "model"))
    policy, _ = load_policy(str(folder))
    policy.weights.save(policy.model, tmp_path / "saved")
    assert listing(tmp_path / "saved") == listing(folder)
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "saved"))
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_reads_what_was_written(tiny, tmp_path, family):
    policy = tiny(family).policy
    policy.weights.save(policy.model, tmp_path / "saved")
    reader = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    _, info = reader.from_pretrained(tmp_path / "saved", output_loading_info=True)
    assert not any(info.values())
    assert listing(tmp_path / "saved") == listing(tiny(family).folder)


@pytest.mark.parametrize(
    "change,sentence",
    [
        (under("model."), r"not what a reader of the loaded model expects: \d+ missing \(.*\d+ not known"),
        (without("lm_head"), r"1 missing \(lm_head.weight\)"),
        (spoil("lm_head", lambda value: value[:-1]), r"1 of another shape \(lm_head.weight\)"),
        (spoil("lm_head", lambda value: value.bfloat16()), r"of another dtype than the model: lm_head.weight"),
    ],
)
def test_a_written_policy_that_is_another_is_found_out(tiny, tmp_path: Path, change, sentence):
    policy = tiny("qwen2_5_vl").policy
    policy.weights.save(policy.model, tmp_path / "saved")
    change_tensors(tmp_path / "saved", change)
    with pytest.raises(ModelError, match=sentence):
        policy.weights.check(tmp_path / "saved", {torch.float32})
