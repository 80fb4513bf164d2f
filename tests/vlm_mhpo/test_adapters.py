"""Low-rank adapters: peft and transformers, which know nothing of this program, are the reference for all of them."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tests.builders import (
    QWEN_VL_FAMILIES,
    Tiny,
    completion,
    plain_log_probs,
    prompts_of,
    random_completions,
    relative_gap,
    scored,
    sees,
)
from tests.model_folders import change_json
from tests.vlm_mhpo.bfloat16_cases import give_real_scales, sampled_groups, three_log_probs
from tests.vlm_mhpo.update_cases import settings_of
from vlm_mhpo.config.model import LoraConfig
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.adapters import adapter_layers, as_it_began
from vlm_mhpo.models.digest import digest_of_model
from vlm_mhpo.models.loading import examine_model, load_policy
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.training.forwards import log_probs_of
from vlm_mhpo.training.micro_batches import micro_batches
from vlm_mhpo.types import Group

RANK = 4
# Ragged; the last of the three prompts gets one completion.
LENGTHS = ((5, 1, 9), (2, 7), (4,))
WEIGHTS, SETTINGS = "adapter_model.safetensors", "adapter_config.json"
# Three of one layout, one whose tower has another name, one without.
SEEING = (*QWEN_VL_FAMILIES, "internvl")
FAMILIES = (*SEEING, "qwen2")
# These and other families go the same way; the full lane has more of them.
MORE = ("qwen2_vl", "qwen2")
FEW = ["qwen2_5_vl", "qwen3_vl", *(pytest.param(each, marks=pytest.mark.full) for each in MORE)]
NAMED = [*FEW, *(pytest.param(each, marks=pytest.mark.full) for each in ("glm4v", "internvl"))]


def lora(**changes) -> dict:
    return LoraConfig(**({"r": RANK} | changes)).model_dump()


def stir(model: nn.Module, size: float = 0.1) -> None:
    """Adapters as training leaves them: none of their matrices is 0 any more."""
    random = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if ".lora_" in name and "magnitude" not in name:
                weight.copy_(size * torch.randn(weight.shape, generator=random))
            elif "magnitude" in name:
                weight.mul_(1.0 + size * torch.randn(weight.shape, generator=random))


def adapted(folder: Path, family: str, *, dtype: str = "float32", **changes) -> Tiny:
    """A tiny model of a family with adapters that have learnt something."""
    policy, codec = load_policy(str(build_tiny(folder, family, hidden_size=64)), dtype=dtype, lora=lora(**changes))
    stir(policy)
    return Tiny(family, folder, policy, codec)


def saved(model: Tiny) -> Path:
    """The adapter folder that a run would leave."""
    folder = model.folder.with_name(f"{model.folder.name}_adapter")
    folder.mkdir()
    model.policy.save(folder)
    return folder


def by_peft(model: Tiny, adapter: Path, *, dtype: torch.dtype = torch.float32) -> Tiny:
    """The same policy, read by transformers and peft alone."""
    base = model.policy.family.auto_classes[0].from_pretrained(model.folder, dtype=dtype)
    with warnings.catch_warnings():
        # Of a name in transformers that peft itself still looks at.
        warnings.simplefilter("ignore", FutureWarning)
        read = PeftModel.from_pretrained(base, str(adapter), is_trainable=True)
    return replace(model, policy=SimpleNamespace(model=read, family=model.policy.family))


def completions_of(model: Tiny) -> list[list[tuple[int, ...]]]:
    return [random_completions(model, lengths, seed=index) for index, lengths in enumerate(LENGTHS)]


def separate(model: Tiny) -> list[float]:
    """Log-probs of the stock model, a sequence at a time; the gradient of their sum stays behind."""
    values = []
    for prompt, group in zip(prompts_of(model), completions_of(model), strict=True):
        for ids in group:
            row = plain_log_probs(model, prompt, ids)
            row.sum().backward()
            values += row.tolist()
    return values


def packed(model: Tiny) -> list[float]:
    """The same of the policy, completions of a prompt in one row with it."""
    values, prompts = {}, prompts_of(model)
    for batch in micro_batches(
        model.policy, prompts, completions_of(model), max_tokens=100_000, pad_id=model.codec.pad_id
    ):
        found, _ = model.policy(batch.rows, temperature=1.0, chunk_size=7)
        found.sum().backward()
        keys = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
        values |= dict(zip(keys, found.tolist(), strict=True))
    return [values[key] for key in sorted(values)]


def log_probs(model: Tiny, policy: nn.Module) -> torch.Tensor:
    """[N] of another policy on the same completions."""
    pairs = zip(prompts_of(model), completions_of(model), strict=True)
    groups = [scored(prompt, [completion(ids) for ids in group]) for prompt, group in pairs]
    return torch.cat(log_probs_of(policy, policy, groups, settings_of(temperature=1.0)))


def groups_with_pixels(model: Tiny) -> list[Group]:
    """Sampled groups; the tower below adapters is frozen, so the sampler has seen features in their place."""
    return [
        replace(group, prompt=prompt) for group, prompt in zip(sampled_groups(model), prompts_of(model), strict=True)
    ]


@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_are_those_of_peft_with_what_is_saved(tmp_path, family):
    model = adapted(tmp_path / "base", family)
    reference = by_peft(model, saved(model))
    found, expected = packed(model), separate(reference)
    assert found == pytest.approx(expected, abs=1e-5)
    learning = {name: weight.grad for name, weight in reference.policy.model.named_parameters() if weight.requires_grad}
    gradients = {
        f"base_model.model.{name}": weight.grad
        for name, weight in model.policy.model.named_parameters()
        if weight.requires_grad
    }
    assert relative_gap(gradients, learning)[0] <= 1e-5
    # Nothing of the model itself learns.
    assert all(".lora_" in name for name in learning) and len(learning) == 2 * len(adapter_layers(model.policy.model))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_policy_begins_as_its_base_goes_back_to_it_and_merges_to_itself(tmp_path, family):
    folder = build_tiny(tmp_path / "base", family, hidden_size=64)
    plain, codec = load_policy(str(folder))
    policy, _ = load_policy(str(folder), lora=lora())
    model = Tiny(family, folder, policy, codec)
    base = log_probs(model, plain)
    assert torch.equal(log_probs(model, policy), base)
    stir(policy)
    learnt = log_probs(model, policy)
    assert (learnt - base).abs().max() > 0.1
    with as_it_began(policy.model):
        assert torch.equal(log_probs(model, policy), base)
    assert torch.equal(log_probs(model, policy), learnt)
    merged, _ = load_policy(str(saved(model)), merges_adapter=True)
    assert not adapter_layers(merged.model)
    assert (log_probs(model, merged) - learnt).abs().max() <= 1e-5


def test_a_forward_of_the_base_that_fails_leaves_the_adapters_on(tmp_path):
    model = adapted(tmp_path / "base", "qwen2")
    before = log_probs(model, model.policy)
    with pytest.raises(RuntimeError, match="a kernel"), as_it_began(model.policy.model):
        raise RuntimeError("a kernel")
    assert torch.equal(log_probs(model, model.policy), before)


@pytest.mark.parametrize("family", FEW)
def test_names_and_values_of_a_saved_adapter_are_what_peft_itself_would_write(tmp_path, family):
    model = adapted(tmp_path / "base", family, dtype="bfloat16")
    folder = saved(model)
    reader = by_peft(model, folder, dtype=torch.bfloat16).policy.model
    reader.save_pretrained(tmp_path / "again")
    mine, its = load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS)
    assert mine.keys() == its.keys()
    assert all(mine[name].dtype == torch.bfloat16 and torch.equal(mine[name], its[name].bfloat16()) for name in mine)
    with safe_open(folder / WEIGHTS, "pt") as opened:
        assert opened.metadata() == {"format": "pt"}
    held = json.loads((folder / SETTINGS).read_text())
    assert (held["r"], held["lora_alpha"], held["base_model_name_or_path"]) == (RANK, 2 * RANK, str(model.folder))


@pytest.mark.parametrize("bias", [0.0, 60.0])
@pytest.mark.parametrize("family", FEW)
def test_the_sampler_is_the_trained_policy_in_bfloat16(tmp_path, family, bias):
    policy, codec = load_policy(str(build_tiny(tmp_path, family)), dtype="bfloat16", lora=lora())
    with torch.no_grad():
        give_real_scales(policy, bias)
    stir(policy, 0.03)
    model = Tiny(family, tmp_path, policy, codec)
    sampled, trained, truth = three_log_probs(model, groups_with_pixels(model))
    own = (trained - truth).abs().mean()
    assert (sampled - truth).abs().mean() <= 1.25 * own
    assert (sampled - trained).abs().mean() < 0.15


@pytest.mark.parametrize("family", FEW)
def test_the_sampler_is_the_trained_policy_in_float32(tmp_path, family):
    model = adapted(tmp_path / "base", family)
    sampled, trained, truth = three_log_probs(model, groups_with_pixels(model))
    assert (sampled - trained).abs().max() <= 1e-5 and (trained - truth).abs().max() <= 1e-5


# ---- which layers ----------------------------------------------------------------------------------------------

ATTENTION, MLP = {"q_proj", "k_proj", "v_proj", "o_proj"}, {"gate_proj", "up_proj", "down_proj"}


def layers_of(folder: Path, **changes) -> set[str]:
    """Whole names of the layers that get adapters."""
    policy, _ = load_policy(str(folder), lora=lora(**changes))
    return {name for name, module in policy.model.named_modules() if hasattr(module, "lora_A")}


def linear_of(folder: Path, *, seeing: bool) -> set[str]:
    """Whole names of the model's linear layers but for the head, with vision or without."""
    policy, _ = load_policy(str(folder))
    names = {name for name, module in policy.model.named_modules() if isinstance(module, nn.Linear)} - {"lm_head"}
    return {name for name in names if seeing or not sees(name)}


@pytest.mark.parametrize("family", NAMED)
def test_the_language_model_or_all_of_it(tmp_path, family):
    folder = build_tiny(tmp_path / "base", family, hidden_size=64)
    text = layers_of(folder)
    mlp = {"gate_up_proj", "down_proj"} if family == "glm4v" else MLP
    assert text == linear_of(folder, seeing=False) and {name.rpartition(".")[2] for name in text} == ATTENTION | mlp
    # The patch embedding is called as a matrix of the tower is, and no linear layer.
    assert layers_of(folder, target_modules="all") == linear_of(folder, seeing=True)


def test_names_and_patterns_choose_layers_and_leave_some_out(tmp_path):
    folder = build_tiny(tmp_path / "base", "qwen2_5_vl", hidden_size=64)
    text, every = linear_of(folder, seeing=False), linear_of(folder, seeing=True)

    def ending(names, ends) -> set[str]:
        return {name for name in names if name.rpartition(".")[2] in ends}

    assert layers_of(folder, target_modules=["q_proj", "v_proj"]) == ending(every, {"q_proj", "v_proj"})
    assert layers_of(folder, target_modules=r".*layers\.0\..*(q|k)_proj") == {
        name for name in text if ".layers.0." in name and name[-6:] in ("q_proj", "k_proj")
    }
    first = {name for name in text if ".layers.1." not in name}
    assert layers_of(folder, exclude_modules=r".*\.layers\.1\..*") == first
    for wanted, names in (("language_model", text), ("all", every)):
        found = layers_of(folder, target_modules=wanted, exclude_modules=["down_proj"])
        assert found == names - ending(names, {"down_proj"})


@pytest.mark.parametrize("family", SEEING)
def test_adapters_in_tower_and_projector_see_pixels_and_learn_as_peft_says(tmp_path, family):
    model = adapted(tmp_path / "base", family, target_modules="all")
    # Features of a tower that learns are never kept.
    assert not model.policy.vision_frozen
    counts = "num_tiles" if family == "internvl" else "image_grid_thw"
    assert model.policy.with_image_features(prompts_of(model))[0].media.tensors.keys() == {"pixel_values", counts}
    reference = by_peft(model, saved(model))
    assert packed(model) == pytest.approx(separate(reference), abs=1e-5)
    names = [name for name, weight in model.policy.model.named_parameters() if weight.requires_grad]
    its = {name: weight.grad for name, weight in reference.policy.model.named_parameters() if weight.requires_grad}
    mine = dict(model.policy.model.named_parameters())
    assert relative_gap({f"base_model.model.{name}": mine[name].grad for name in names}, its)[0] <= 1e-5
    assert any(sees(name) and float(mine[name].grad.norm()) for name in names)


def test_a_tower_below_adapters_of_the_text_is_frozen_and_its_features_are_kept(tmp_path):
    model = adapted(tmp_path / "base", "qwen2_5_vl")
    assert model.policy.vision_frozen
    with_features = model.policy.with_image_features(prompts_of(model))
    assert "image_features_IKD" in with_features[0].media.tensors
    groups = [
        scored(prompt, [completion(ids) for ids in group])
        for prompt, group in zip(with_features, completions_of(model), strict=True)
    ]
    kept = torch.cat(log_probs_of(model.policy, model.policy, groups, settings_of(temperature=1.0)))
    assert (kept - log_probs(model, model.policy)).abs().max() <= 1e-5


@pytest.mark.parametrize(
    "changes",
    [{"use_dora": True}, {"use_rslora": True}, {"alpha": 3.0}, {"init": "gaussian"}],
    ids=["dora", "rslora", "alpha", "gaussian"],
)
def test_each_setting_means_what_peft_means(tmp_path, changes):
    model = adapted(tmp_path / "base", "qwen2_5_vl", **changes)
    folder = saved(model)
    found, expected = packed(model), separate(by_peft(model, folder))
    assert found == pytest.approx(expected, abs=1e-5)
    merged, _ = load_policy(str(folder), merges_adapter=True)
    assert log_probs(model, merged).tolist() == pytest.approx(expected, abs=1e-5)


# ---- going on with an adapter ----------------------------------------------------------------------------------


def test_a_run_goes_on_with_an_adapter_and_its_reference_is_what_it_began_with(tmp_path):
    model = adapted(tmp_path / "base", "qwen2_5_vl")
    folder, began = saved(model), log_probs(model, model.policy)
    policy, _ = load_policy(str(folder), lora=lora())
    assert torch.equal(log_probs(model, policy), began)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.mul_(2.0)
    learnt = log_probs(model, policy)
    assert (learnt - began).abs().max() > 0.1
    with as_it_began(policy.model):
        assert torch.equal(log_probs(model, policy), began)
    # Only what learns is written.
    again = saved(Tiny(model.family, tmp_path / "more", policy, model.codec))
    assert load_file(again / WEIGHTS).keys() == load_file(folder / WEIGHTS).keys()
    assert log_probs(model, load_policy(str(again))[0]).tolist() == pytest.approx(learnt.tolist(), abs=1e-6)


def test_a_run_may_begin_with_the_adapter_merged_and_train_all_weights(tmp_path):
    folder = saved(adapted(tmp_path / "base", "qwen2_5_vl"))
    policy, _ = load_policy(str(folder), merges_adapter=True, freeze_vision_tower=True)
    frozen = {name for name, weight in policy.model.named_parameters() if not weight.requires_grad}
    assert frozen and all(".visual." in name and ".merger." not in name for name in frozen)


def test_the_digest_of_an_adapter_covers_its_base(tmp_path):
    model = adapted(tmp_path / "base", "qwen2")
    folder = saved(model)
    before = digest_of_model(str(folder))
    file = model.folder / "model.safetensors"
    save_file({name: value + 1.0 for name, value in load_file(file).items()}, file, {"format": "pt"})
    other_base = digest_of_model(str(folder))
    file = folder / WEIGHTS
    save_file({name: value + 1.0 for name, value in load_file(file).items()}, file, {"format": "pt"})
    assert len({before, other_base, digest_of_model(str(folder))}) == 3


# ---- refusals --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return saved(adapted(tmp_path_factory.mktemp("source") / "base", "qwen2_5_vl"))


def foreign_base(folder: Path) -> None:
    other = build_tiny(folder.parent / "other", "qwen2", hidden_size=64)
    change_json(folder, SETTINGS, lambda values: values.update(base_model_name_or_path=str(other)))


def no_base(folder: Path) -> None:
    change_json(folder, SETTINGS, lambda values: values.update(base_model_name_or_path="/nowhere/base"))


def unnamed_base(folder: Path) -> None:
    change_json(folder, SETTINGS, lambda values: values.update(base_model_name_or_path=None))


def missing_tensor(folder: Path) -> None:
    held = load_file(folder / WEIGHTS)
    save_file({name: held[name] for name in sorted(held)[1:]}, folder / WEIGHTS)


def more_tensors(folder: Path) -> None:
    held = load_file(folder / WEIGHTS)
    save_file(held | {"base_model.model.lm_head.weight": torch.ones(2, 2)}, folder / WEIGHTS)


def other_rank(folder: Path) -> None:
    change_json(folder, SETTINGS, lambda values: values.update(r=2 * RANK))


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / WEIGHTS), folder / "adapter_model.bin")
    (folder / WEIGHTS).unlink()


def cut(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:200])


def no_json(folder: Path) -> None:
    (folder / SETTINGS).write_text("{")


def beside_weights(folder: Path) -> None:
    (folder / "config.json").write_text("{}")


def other_kind(folder: Path) -> None:
    change_json(folder, SETTINGS, lambda values: values.update(peft_type="IA3"))


def more_modules(folder: Path) -> None:
    change_json(folder, SETTINGS, lambda values: values.update(modules_to_save=["lm_head"]))


def adapter_of_an_adapter(folder: Path) -> None:
    other = Path(shutil.copytree(folder, folder.parent / "below"))
    change_json(folder, SETTINGS, lambda values: values.update(base_model_name_or_path=str(other)))


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (foreign_base, "is not one of"),
        (no_base, "the base of the adapter at .* no model at '/nowhere/base'"),
        (unnamed_base, "set base_model_name_or_path"),
        (missing_tensor, "lora_A.weight is missing"),
        (more_tensors, "lm_head.weight is not known"),
        (other_rank, r"is \[4, \d+\] for \[8, \d+\]"),
        (pickled, "no adapter_model.safetensors, and pickles are not read"),
        (cut, "cannot be loaded"),
        (no_json, "cannot be read"),
        (beside_weights, "put the adapter into a folder of its own"),
        (other_kind, "of kind IA3"),
        (more_modules, "modules_to_save, which is not read"),
        (adapter_of_an_adapter, "one whose base is an adapter is not read"),
    ],
)
def test_a_bad_adapter_is_refused_in_one_sentence_before_any_weight_is_read(source, tmp_path, damage, told):
    folder = Path(shutil.copytree(source, tmp_path / "adapter"))
    damage(folder)
    with pytest.raises(ModelError, match=told) as refused:
        examine_model(str(folder))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"r": 8, "alpha": 8.0}, "has r 4 and not 8: set model.lora alike, or null"),
        ({"use_rslora": True}, "has use_rslora False and not True"),
        ({"alpha": 4.0}, "has alpha 8 and not 4.0"),
    ],
)
def test_a_run_with_other_settings_does_not_go_on_with_an_adapter(source, changes, told):
    with pytest.raises(ModelError, match=told):
        examine_model(str(source), lora=lora(**changes))


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (["lm_head"], "names the head"),
        (["no_proj"], "no layer has such a name"),
        (["proj"], "names a Conv3d"),
        (r".*_norm|.*layernorm", "RMSNorm, and adapters go to linear layers"),
    ],
)
def test_targets_that_cannot_have_adapters_are_refused(source, targets, told):
    base = json.loads((source / SETTINGS).read_text())["base_model_name_or_path"]
    with pytest.raises(ModelError, match=told):
        examine_model(base, lora=lora(target_modules=targets))


def test_the_start_warns_of_dropout_in_adapters():
    from vlm_mhpo.config import parse_config
    from vlm_mhpo.training import assembly

    def notes(dropout):
        values = {
            "output_dir": "run",
            "model": {"path": "tiny:qwen2_5_vl", "lora": {"dropout": dropout}},
            "data": {"train": "synthetic:shapes"},
            "rewards": {"functions": [{"name": "accuracy"}]},
            "train": {"max_steps": 1, "num_prompts_per_step": 4},
        }
        return [each for each in assembly._regime_notes(parse_config(values)) if "lora.dropout" in each]

    assert notes(0.0) == [] and len(notes(0.1)) == 1
