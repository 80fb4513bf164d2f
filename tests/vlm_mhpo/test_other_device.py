"""Sampling, updates and a whole run on a second device: no tensor is left behind, and the values are the CPU's.

The device exists in name only (`tests.pretend_device`); DeepSpeed, which asks its own accelerator where to compute, is
replaced by a plain engine. Real GPUs: `tests/gpu`.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.attention.bias as attention_bias
from torch.utils._python_dispatch import _disable_current_modes as without_modes

from tests.builders import QWEN_VL_FAMILIES, build_and_load, prompts_of
from tests.pretend_device import pretend_device
from tests.system.resume_cases import SMALL
from tests.vlm_mhpo.update_cases import PlainEngine, batch_of, settings_of
from vlm_mhpo.commands.doctor.parity import examine_parity
from vlm_mhpo.config import MhpoConfig, load_config
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.hf.sampler import HfSampler
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.run import train
from vlm_mhpo.training.update import update_on

BASE = Path(__file__).parents[1] / "system" / "base.yaml"
CASES = [("qwen2", False), *((family, frozen) for family in QWEN_VL_FAMILIES for frozen in (False, True))]


@pytest.fixture
def elsewhere(monkeypatch):
    """A context in which this rank computes on the other device."""
    # torch makes its bias by way of a tensor that no mode may see.
    made = attention_bias.causal_lower_right

    def causal_lower_right(*size):
        with without_modes():
            return made(*size)

    monkeypatch.setattr(attention_bias, "causal_lower_right", causal_lower_right)

    @contextmanager
    def computing():
        with pretend_device() as device, monkeypatch.context() as patch:
            patch.setattr(ranks, "device", lambda: device)
            yield device

    return computing


def test_tensors_of_two_devices_do_not_mix():
    """What CUDA refuses and allows, so that the tests below can fail."""
    with pretend_device() as device:
        here, there = torch.arange(3.0), torch.arange(3.0, device=device)
        for operation in (torch.add, torch.dot, lambda a, b: torch.cat([a, b]), lambda a, b: a.index_copy(0, b, a)):
            with pytest.raises(RuntimeError, match="same device"):
                operation(there, here)
        with pytest.raises(RuntimeError, match="same device"):
            here[there.long()]
        assert there[here.long()].tolist() == [0.0, 1.0, 2.0]
        assert (there + torch.tensor(1.0)).device == device
        assert here.copy_(there * 2).tolist() == there.cpu().mul(2).tolist() == [0.0, 2.0, 4.0]
        weight = there.clone().requires_grad_()
        (weight**2).sum().backward()
        assert weight.grad.device == device and weight.grad.tolist() == [0.0, 2.0, 4.0]


@pytest.mark.parametrize(("family", "frozen"), CASES)
def test_sampling_and_updates_give_the_values_of_the_cpu(family, frozen, elsewhere, tmp_path, monkeypatch):
    """Rows are cut into pieces, whose attention asks a GPU for another kind of mask; completions of every length."""
    monkeypatch.setattr("vlm_mhpo.models.policy.SPLIT_WIDTH", 0)
    # Both ways of the head's backward.
    monkeypatch.setattr("vlm_mhpo.models.logprobs.rounds", lambda weight: frozen)
    model = build_and_load(tmp_path, family, freeze_vision_tower=frozen)
    batch, other = batch_of(model), model.copy()
    here = sample_and_update(model, batch)
    with elsewhere() as device:
        other.policy.to(device)
        there = sample_and_update(other, batch)
    (groups, update), (other_groups, other_update) = here, there
    for one, another in zip(groups, other_groups, strict=True):
        assert [c.token_ids for c in one.completions] == [c.token_ids for c in another.completions]
        for mine, its in zip(one.completions, another.completions, strict=True):
            assert mine.log_probs == pytest.approx(its.log_probs, abs=1e-5)
    assert update.grad_norms == pytest.approx(other_update.grad_norms, rel=1e-5)
    assert update.metrics == pytest.approx(other_update.metrics, rel=1e-4, abs=1e-5)


def sample_and_update(model, batch):
    """Completions of mixed prompts, and two updates with a KL term; the second sees what the first did."""
    # So many tokens end a completion that finished ones leave the batch.
    codec = replace(model.codec, end_ids=tuple(range(80)))
    sampler = HfSampler(model.policy, codec, max_batch_tokens=10**6)
    groups = sampler.sample(prompts_of(model), SamplingParams(4, 12, 1.0, 0.95, 20), (0,))
    objective = build_objective(MhpoConfig(), 16)
    engine = PlainEngine(model.policy, step=True)
    return groups, update_on(engine, objective, [batch] * 2, settings_of(max_tokens=60), learning_rate=1e-2, step=1)


class EngineOfOne(PlainEngine):
    """Stands where the trainer starts DeepSpeed."""

    zero_stage = 0

    def __init__(self, policy, **_) -> None:
        super().__init__(policy.to(ranks.device()), step=True)

    @contextmanager
    def whole_weights(self):
        yield


@pytest.mark.parametrize(
    "overrides",
    [
        ("rollout.old_log_probs=trainer", "model.gradient_checkpointing=true"),
        ("model.freeze_vision_tower=true", "objective.beta=0.1", "data.eval=synthetic:shapes?num_rows=4@heldout"),
    ],
)
def test_a_whole_run_gives_the_metrics_of_the_cpu(overrides, elsewhere, tmp_path, monkeypatch):
    """Prompts prepared in a thread, rollout, rewards, reference model, updates, diagnostics, evaluation, records."""
    monkeypatch.setattr("vlm_mhpo.training.assembly.Engine", EngineOfOne)
    # DeepSpeed writes the checkpoints.
    monkeypatch.setattr("vlm_mhpo.training.saving.Checkpoints.if_due", lambda *_, **__: None)
    run = partial(metrics_of_run, overrides, tmp_path)
    here = run("here")
    with elsewhere():
        there = run("there")
    assert len(here) == len(there) >= 4
    for mine, its in zip(here, there, strict=True):
        assert mine == pytest.approx(its, rel=1e-3, abs=1e-4)


def metrics_of_run(overrides, folder: Path, name: str) -> list[dict[str, float]]:
    """The rows of metrics.jsonl of a small run, without times."""
    config = load_config(BASE, [*SMALL, *overrides, "checkpoint.save_steps=0", f"output_dir={folder / name}"])
    train(config)
    rows = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith(("time/", "step_time"))} for row in rows]


def test_the_parity_check_passes(elsewhere, tmp_path):
    config = load_config(BASE, [f"output_dir={tmp_path}"])
    with elsewhere():
        (finding,) = examine_parity(config, tmp_path)
    assert finding.state == "ok", finding
