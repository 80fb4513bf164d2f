"""Runs with adapters on one and two gloo ranks under ZeRO 0 to 3: updates, what is saved, resuming, and the way of an
adapter through the commands."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.reference import advantages as reference
from tests.system.batches import REWARDS, load_tiny, plain_step, scored_groups
from tests.system.launches import NO_CLIPPING, Launch, assert_same_weights, launch
from tests.system.ranks import run_commands, run_ranks
from tests.system.resume_cases import assert_same_checkpoint, rows_of, run_all
from vlm_mhpo.checkpoint import folder_of
from vlm_mhpo.checkpoint.exporting import export
from vlm_mhpo.config.model import LoraConfig
from vlm_mhpo.models.tiny import build_tiny

pytestmark = [pytest.mark.full, pytest.mark.timeout(400)]

BASE = Path(__file__).with_name("base.yaml")
STAGES = (0, 1, 2, 3)
LORA = "model.lora={r: 4}"
WEIGHTS = "adapter_model.safetensors"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory) -> Path:
    """An adapter that has learnt something: one whose B is 0 has no gradient for A."""
    folder = tmp_path_factory.mktemp("adapter")
    model = load_adapted(build_tiny(folder / "base", "qwen2_5_vl", hidden_size=64))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.policy.parameters():
            if weight.requires_grad:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=random))
    model.policy.save(folder)
    return folder


load_adapted = partial(load_tiny, lora=LoraConfig(r=4).model_dump())


def jobs() -> list[dict[str, Any]]:
    common = {"case": "mixed", "save": True}
    return [
        {"name": f"{dtype}{stage}", "stage": stage, "overrides": [LORA, f"model.dtype={dtype}"], **common}
        for stage in STAGES
        for dtype in ("float32", "bfloat16")
    ]


@pytest.fixture(scope="module", params=[pytest.param(1, marks=pytest.mark.long), 2])
def launched(request, tmp_path_factory, adapter) -> Launch:
    return launch(tmp_path_factory.mktemp(f"ranks{request.param}"), adapter, jobs(), request.param)


@pytest.fixture(scope="module")
def plain(adapter) -> tuple[dict[str, Tensor], float]:
    model = load_adapted(adapter)
    advantages = reference.group_advantages(REWARDS, "group")
    return plain_step(model, scored_groups(model, "mixed"), advantages, NO_CLIPPING)


@pytest.mark.parametrize("stage", STAGES)
def test_an_update_is_that_of_plain_torch_and_leaves_the_base(launched, stage, plain, adapter):
    expected, norm = plain
    start, found = load_adapted(adapter).policy.model.state_dict(), launched.weights(f"float32{stage}")
    assert_same_weights(found, expected, start)
    assert launched.result(f"float32{stage}")["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    learning = {name for name in start if not torch.equal(found[name], start[name])}
    assert learning == {name for name in start if ".lora_" in name and ".default." in name}


@pytest.mark.parametrize("stage", STAGES)
def test_bfloat16_takes_the_same_step_to_its_own_precision(launched, stage, plain, adapter):
    expected, norm = plain
    assert launched.result(f"bfloat16{stage}")["metrics"]["grad_norm"] == pytest.approx(norm, rel=0.1)
    start, found = load_adapted(adapter).policy.model.state_dict(), launched.weights(f"bfloat16{stage}")
    names = [name for name in start if ".default." in name]
    moved, real = (
        torch.cat([(after[name].float() - start[name]).flatten() for name in names]) for after in (expected, found)
    )
    assert float(torch.nn.functional.cosine_similarity(moved, real, dim=0)) > 0.5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("stage", STAGES)
def test_what_is_saved_is_what_was_learnt_and_only_adapters_are_gathered(launched, stage, dtype):
    name = f"{dtype}{stage}"
    weights, written = launched.weights(name), load_file(launched.folder / name / WEIGHTS)
    learnt = {key: value for key, value in weights.items() if ".default." in key}
    assert written.keys() == {f"base_model.model.{key.replace('.default', '')}" for key in learnt}
    for key, value in learnt.items():
        assert torch.equal(written[f"base_model.model.{key.replace('.default', '')}"], value)
    if stage == 3:
        # A gather of the base would be that of a whole run's memory.
        assert set(launched.result(name)["whole"]) == set(learnt)


def test_two_ranks_under_zero_3_merge_an_adapter_as_one_does(tmp_path, adapter):
    """Each of them holds half of every matrix."""
    partitioned = tmp_path / "zero3.json"
    partitioned.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    overrides = ["model.dtype=float32", "deepspeed.zero_stage=3", f"deepspeed.config={partitioned}"]
    job = {"config": str(BASE), "folder": str(adapter), "out": str(tmp_path / "out"), "merges": True}
    (tmp_path / "jobs.json").write_text(json.dumps([job | {"overrides": overrides}]))
    for ended in run_ranks(("-m", "tests.system.drive_saving", tmp_path / "jobs.json"), tmp_path, num_ranks=2):
        assert ended.code == 0, ended.stderr[-3000:]
    alone = export(str(adapter), tmp_path / "alone", merge=True)
    found, expected = (load_file(folder / "model.safetensors") for folder in (tmp_path / "out", alone))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    # And it is another model than the base.
    base = load_file(adapter / "base" / "model.safetensors")
    assert any(not torch.equal(base[name], value) for name, value in expected.items())


# ---- resuming --------------------------------------------------------------------------------------------------

STEPS, STOPS = 5, (1, 3)
QUANTISED = ("model.quantization=nf4", "train.optimizer=adamw_8bit", "model.dtype=bfloat16")


@pytest.fixture(scope="module")
def runs(tmp_path_factory, adapter) -> Path:
    """Straight runs and resumed ones: new adapters on a quantised base, old ones on two ranks under ZeRO-3."""
    folder = tmp_path_factory.mktemp("resume")
    for num_ranks, stage, more in ((1, 2, QUANTISED), (2, 3, (f"model.path={adapter}",))):
        overrides = [LORA, f"deepspeed.zero_stage={stage}", "objective.beta=0.05", f"train.max_steps={STEPS}", *more]
        overrides += ["train.num_prompts_per_step=2", "train.num_minibatches=1", "train.num_iterations=2"]
        straight = str(folder / f"{num_ranks}_straight")
        kept = [f"checkpoint.save_total_limit={STEPS}", "checkpoint.save_steps=1"]
        requests: list[dict[str, Any]] = [{"output_dir": straight, "overrides": [*overrides, *kept]}]
        requests += [
            {
                "output_dir": str(folder / f"{num_ranks}_{stop}"),
                "overrides": [*overrides, "checkpoint.save_steps=0"],
                "source": straight,
                "step": stop,
            }
            for stop in STOPS
        ]
        printed = run_all(folder / f"ranks{num_ranks}", requests, num_ranks)
        assert all(f"continuing after step {stop} of {STEPS}" in printed for stop in STOPS)
    return folder


@pytest.mark.parametrize("stop", STOPS)
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_resumed_run_ends_as_the_straight_one_to_the_bit(runs, num_ranks, stop):
    straight, resumed = runs / f"{num_ranks}_straight", runs / f"{num_ranks}_{stop}"
    assert_same_checkpoint(straight, resumed, STEPS)
    rows = rows_of(straight)
    assert rows_of(resumed) == rows and [row["step"] for row in rows] == list(range(1, STEPS + 1))
    # The reference is what the run began with: no distance at first, some at the end.
    assert rows[0]["kl"] < rows[-1]["kl"] and rows[-1]["kl"] > 0


@pytest.mark.parametrize("num_ranks", [1, 2])
def test_a_checkpoint_holds_adapters_alone(runs, num_ranks):
    shards = folder_of(runs / f"{num_ranks}_straight" / "checkpoints", STEPS)
    held = sum(file.stat().st_size for file in shards.rglob("*") if file.is_file() and file.suffix != ".json")
    num_learning = sum(value.numel() for value in load_file(shards / "policy" / WEIGHTS).values())
    # Weights, a master copy and two moments in float32, and the policy once more; the model is 40 times as large.
    assert held < 8 * 4 * num_learning + 200_000


@pytest.fixture(scope="module")
def chain(tmp_path_factory) -> Path:
    """A run with adapters on one rank under ZeRO-2, on two under ZeRO-3, and on one under ZeRO-0."""
    folder = tmp_path_factory.mktemp("chain")
    for leg, (num_ranks, stage) in enumerate(((1, 2), (2, 3), (1, 0))):
        overrides = [LORA, f"deepspeed.zero_stage={stage}", f"train.max_steps={leg + 2}", "checkpoint.save_steps=0"]
        asked = {"output_dir": str(folder / f"leg{leg}"), "overrides": overrides, "record": str(folder / f"leg{leg}")}
        asked |= {"source": str(folder / f"leg{leg - 1}"), "step": leg + 1} if leg else {}
        printed = run_all(folder / f"ranks{leg}", [asked], num_ranks)
        assert ("resharded: " in printed) == bool(leg)
    return folder


@pytest.mark.parametrize("leg", [1, 2])
def test_other_ranks_and_stages_go_on_with_every_weight_and_moment(chain, leg):
    saved, loaded = (
        torch.load(chain / f"leg{number}" / f"{moment}.pt", weights_only=True)
        for number, moment in ((leg - 1, "after"), (leg, "before"))
    )
    names = [name for name in saved if ".lora_" in name and not name.endswith(" in use")]
    moved = [name for name in names if name.endswith("exp_avg_sq") and saved[name].any()]
    assert len(moved) * 3 == len(names) > 40
    assert all(torch.equal(saved[name], loaded[name]) for name in names)


def test_eight_bit_moments_are_not_cut_anew_and_nothing_is_begun_again(runs, tmp_path):
    """Resuming elsewhere would otherwise go on with moments of 0."""
    overrides = [LORA, "objective.beta=0.05", f"train.max_steps={STEPS}", "deepspeed.zero_stage=0"]
    overrides += ["train.num_prompts_per_step=2", "train.num_minibatches=1", "train.num_iterations=2", *QUANTISED]
    source = {"source": str(runs / "1_straight"), "step": STOPS[0]}
    asked = {"output_dir": str(tmp_path / "run"), "overrides": overrides, **source}
    with pytest.raises(AssertionError, match="its 8-bit moments cannot be cut for other ranks or stages"):
        run_all(tmp_path / "ranks", [asked], 1)


# ---- through the commands --------------------------------------------------------------------------------------


def test_an_adapter_goes_from_warm_start_to_rl_to_export_and_evaluation(tmp_path):
    common = [LORA, "logging.report=true"]
    rows = ["data.train=synthetic:shapes?seed=0&num_rows=16@train", "sft.max_steps=2", "train.max_steps=2"]
    warm, run = tmp_path / "warm", tmp_path / "run"
    fresh = tmp_path / "fresh"
    commands = [
        ["sft", BASE, f"output_dir={warm}", *common, *rows],
        ["train", BASE, f"output_dir={run}", f"model.path={warm}/policy", "objective.beta=0.05", *common, *rows],
        ["train", BASE, f"output_dir={fresh}", f"model.path={warm}/policy", "model.lora=null", *rows],
        ["export", run, "--out", tmp_path / "exported"],
        ["export", run, "--out", tmp_path / "merged", "--merge"],
        ["evaluate", BASE, "--model", run, f"output_dir={tmp_path / 'one'}"],
        ["evaluate", BASE, "--model", tmp_path / "merged", f"output_dir={tmp_path / 'other'}"],
        ["doctor", BASE, f"output_dir={tmp_path / 'd'}", f"model.path={warm}/policy", *common],
        ["report", run],
    ]
    answers = run_commands(commands, tmp_path / "commands", timeout_s=380)
    for command, answer in zip(commands, answers, strict=True):
        assert answer["code"] == 0, (command[0], answer["stdout"][-2000:], answer["stderr"][-2000:])
    assert {path.name for path in (warm / "policy").glob("*.safetensors")} == {WEIGHTS}
    assert {path.name for path in (tmp_path / "exported").glob("*.safetensors")} == {WEIGHTS}
    # The whole model, without and with an adapter on its way.
    assert not list((tmp_path / "merged").glob("adapter*")) and not list((fresh / "policy").glob("adapter*"))
    records = [json.loads(next((tmp_path / name).rglob("*.json")).read_text()) for name in ("one", "other")]
    assert records[0]["accuracy"] == records[1]["accuracy"]
    assert "adapters" in answers[1]["stdout"] + answers[1]["stderr"]
