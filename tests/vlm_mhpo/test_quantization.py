"""A base in 4 or 8 bits below adapters: bitsandbytes says what its weights are worth, and everything else goes on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from tests.builders import (
    Tiny,
    build_and_load,
    completion,
    plain_log_probs,
    prompts_of,
    random_completions,
    scored,
    sees,
)
from tests.vlm_mhpo.bfloat16_cases import sampled_groups
from tests.vlm_mhpo.update_cases import settings_of
from vlm_mhpo.commands.doctor.memory import estimate
from vlm_mhpo.commands.doctor.shapes import shapes_of
from vlm_mhpo.config import ModelConfig, OptimizerConfig, load_config
from vlm_mhpo.config.model import LoraConfig
from vlm_mhpo.engine.optimizer import build_optimizer
from vlm_mhpo.errors import ConfigError, ModelError
from vlm_mhpo.models.adapters import as_it_began
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.training.forwards import log_probs_of

bnb = pytest.importorskip("bitsandbytes")
LORA = LoraConfig(r=4).model_dump()
# Other families go the same way; the full lane has more of them.
FEW = ["qwen2_5_vl", "qwen3_vl", *(pytest.param(each, marks=pytest.mark.full) for each in ("qwen2_vl", "qwen2"))]
NAMED = [*FEW, pytest.param("internvl", marks=pytest.mark.full)]
KINDS = {"nf4": bnb.nn.Linear4bit, "int8": bnb.nn.Linear8bitLt}
# Mean and largest gap, nats. int8 rounds activations, too: another last digit of one may round it to its neighbour.
ROOM = {"nf4": (1e-6, 1e-5), "int8": (0.02, 0.2)}


def quantised(folder, family: str, kind: str, dtype: str = "float32") -> Tiny:
    """A tiny model with a quantised base and adapters that have learnt something."""
    policy, codec = load_policy(
        str(build_tiny(folder, family, hidden_size=64)), dtype=dtype, lora=LORA, quantization=kind
    )
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=random))
    return Tiny(family, folder, policy, codec)


def groups_of(model: Tiny) -> list:
    prompts = prompts_of(model)
    return [
        scored(prompt, [completion(ids) for ids in random_completions(model, (5, 2, 7), seed=index)])
        for index, prompt in enumerate(prompts)
    ]


def log_probs(model: Tiny, policy: nn.Module) -> torch.Tensor:
    return torch.cat(log_probs_of(policy, policy, groups_of(model), settings_of(temperature=1.0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", NAMED)
def test_only_the_matrices_of_the_language_model_are_quantised(tmp_path, family, kind):
    model = quantised(tmp_path / "base", family, kind).policy.model
    names = {name for name, module in model.named_modules() if isinstance(module, KINDS[kind])}
    plain = build_and_load(tmp_path / "plain", family).policy.model
    due = {name for name, each in plain.named_modules() if isinstance(each, nn.Linear)} - {"lm_head"}
    assert {name.removesuffix(".base_layer") for name in names} == {name for name in due if not sees(name)}
    learning = {name for name, weight in model.named_parameters() if weight.requires_grad}
    assert learning and all(".lora_" in name for name in learning)


def dequantised(model: Tiny) -> Tiny:
    """The same policy with plain float32 matrices of the values that the four bits stand for."""
    mine = Tiny(model.family, model.folder, copy.deepcopy(model.policy), model.codec)
    for name, module in list(mine.policy.model.named_modules()):
        if isinstance(module, bnb.nn.Linear4bit):
            plain = nn.Linear(module.in_features, module.out_features, bias=module.bias is not None)
            plain.weight.data = bnb.functional.dequantize_4bit(module.weight.data, module.weight.quant_state).float()
            plain.bias = module.bias
            parent, _, child = name.rpartition(".")
            setattr(mine.policy.model.get_submodule(parent), child, plain.requires_grad_(False))
    return mine


@pytest.mark.parametrize("family", FEW)
def test_nf4_is_the_model_of_its_dequantised_weights_and_so_are_the_gradients(tmp_path, family):
    model = quantised(tmp_path / "base", family, "nf4")
    exact = dequantised(model)
    gradients = []
    for one in (model, exact):
        batch = groups_of(one)
        for group in batch:
            for each in group.group.completions:
                plain_log_probs(one, group.group.prompt, each.token_ids).sum().backward()
        gradients.append(
            torch.cat([weight.grad.flatten() for weight in one.policy.parameters() if weight.requires_grad])
        )
    assert (log_probs(model, model.policy) - log_probs(exact, exact.policy)).abs().max() <= 1e-5
    assert (gradients[0] - gradients[1]).norm() <= 1e-5 * gradients[1].norm()


@pytest.mark.parametrize("kind", KINDS)
def test_packed_rows_and_the_sampler_are_the_same_policy(tmp_path, kind):
    model = quantised(tmp_path / "base", "qwen2_5_vl", kind)
    expected = [
        plain_log_probs(model, group.group.prompt, each.token_ids)
        for group in groups_of(model)
        for each in group.group.completions
    ]
    gaps = [(log_probs(model, model.policy) - torch.cat(expected).detach()).abs()]
    groups = sampled_groups(model)
    batch = [scored(group.prompt, group.completions) for group in groups]
    trained = torch.cat(log_probs_of(model.policy, model.policy, batch, settings_of(temperature=1.0)))
    sampled = torch.cat([each.log_probs for group in groups for each in group.completions])
    for gap in [*gaps, (trained - sampled).abs()]:
        assert gap.mean() <= ROOM[kind][0] and gap.max() <= ROOM[kind][1]


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_is_the_quantised_base_and_a_saved_adapter_is_the_policy(tmp_path, kind):
    model = quantised(tmp_path / "base", "qwen2", kind, dtype="bfloat16")
    bare, _ = load_policy(str(model.folder), dtype="bfloat16", quantization=kind)
    with as_it_began(model.policy.model):
        assert torch.equal(log_probs(model, model.policy), log_probs(model, bare))
    folder = tmp_path / "adapter"
    folder.mkdir()
    model.policy.save(folder)
    again, _ = load_policy(str(folder), dtype="bfloat16", quantization=kind)
    assert torch.equal(log_probs(model, again), log_probs(model, model.policy))
    # Nor are scales of the base in a checkpoint.
    assert all(".lora_" in name for name in model.policy.state_dict())


def test_the_doctor_counts_the_bytes_that_the_model_has(tmp_path):
    build_tiny(tmp_path, "qwen2_5_vl", hidden_size=64)
    common = ["model.dtype=bfloat16", "deepspeed.zero_stage=0", "objective.beta=0.1", f"model.path={tmp_path}"]
    weights, references = [], []
    for more in ([], ["model.lora={r: 4}"], ["model.lora={r: 4}", "model.quantization=nf4"]):
        config = load_config("tests/system/base.yaml", [*common, *more, f"output_dir={tmp_path / 'run'}"])
        found = estimate(config, shapes_of(config.model), stage=0, num_ranks=1, offload=(False, False))
        weights.append(found.states.weights)
        references.append(found.reference)
    policy, _ = load_policy(str(tmp_path), dtype="bfloat16", lora=LORA, quantization="nf4")
    held = sum(weight.numel() * weight.element_size() for weight in policy.parameters())
    plain, _ = load_policy(str(tmp_path), dtype="bfloat16")
    assert weights[0] == sum(weight.numel() * 2 for weight in plain.parameters())
    # The scales are no parameters; matrices as small as these have one scale of scales each.
    assert held <= weights[2] <= 1.02 * held
    assert references[0] == weights[0] and references[1:] == [0.0, 0.0]


def test_what_cannot_be_quantised_is_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"set model\.lora, or model\.quantization=null"):
        ModelConfig(path="x", quantization="nf4")
    with pytest.raises(ConfigError, match=r"set deepspeed\.zero_stage=2 or lower"):
        load_config("tests/system/base.yaml", ["model.lora={}", "model.quantization=nf4", "deepspeed.zero_stage=3"])
    folder = str(build_tiny(tmp_path, "qwen2", hidden_size=64))
    # A DeepSpeed file of the user's decides the stage, too.
    with pytest.raises(ModelError, match=r"set deepspeed\.zero_stage=2 or lower"):
        load_policy(folder, lora=LORA, quantization="int8", zero3_settings={"zero_optimization": {"stage": 3}})
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install 'vlm-mhpo\[quantization\]'"):
        load_policy(folder, lora=LORA, quantization="int8")


def test_eight_bit_moments_step_nearly_as_adamw_does():
    random = torch.Generator().manual_seed(0)
    start = torch.randn(64, 128, generator=random)
    pulls = [torch.randn(64, 128, generator=random) for _ in range(5)]
    ends = []
    for name in ("adamw", "adamw_8bit"):
        weight = nn.Parameter(start.clone())
        optimizer = build_optimizer([weight], OptimizerConfig(optimizer=name, weight_decay=0.1), offload=False)
        for pull in pulls:
            weight.grad = pull.clone()
            optimizer.param_groups[0]["lr"] = 1e-2
            optimizer.step()
        ends.append(weight.detach() - start)
    assert optimizer.state[weight]["state1"].dtype == torch.uint8
    assert float(torch.nn.functional.cosine_similarity(*(end.flatten() for end in ends), dim=0)) > 0.99
    with pytest.raises(ConfigError, match=r"set deepspeed\.offload_optimizer=false"):
        build_optimizer([weight], OptimizerConfig(optimizer="adamw_8bit"), offload=True)
