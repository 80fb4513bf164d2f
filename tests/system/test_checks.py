"""check-resume and check-invariance pass on what is shipped, and name what is broken on purpose."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.system.ranks import CLI, REPOSITORY
from vlm_mhpo.checkpoint import folder_of
from vlm_mhpo.commands.doctor import Check
from vlm_mhpo.commands.proofs.compare import first_difference
from vlm_mhpo.commands.proofs.invariance import REFERENCE, Variant, check_invariance, compare_gradients
from vlm_mhpo.commands.proofs.resume import check_resume, compare_runs, launch
from vlm_mhpo.commands.proofs.shrink import shrink, tiny_family
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import ConfigError, ModelError, TrainingError

BASE = Path(__file__).with_name("base.yaml")
FAULTY = "tests.system.drive_planted"


def command(*arguments: object) -> tuple[int, str]:
    """Exit code and output of a command line."""
    line = [sys.executable, *CLI, *map(str, arguments)]
    environment = os.environ | {"COLUMNS": "200", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=880)
    return done.returncode, done.stdout + done.stderr


def errors(findings: list[Check]) -> dict[str, str]:
    """What is red."""
    return {finding.subject: finding.text for finding in findings if finding.state == "error"}


# Fast: the parts.


@pytest.mark.parametrize(
    ("path", "family"),
    [
        ("tiny:qwen3_vl", "qwen3_vl"),
        ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl"),
        ("Qwen/Qwen2-VL-2B", "qwen2_vl"),
        ("Qwen/Qwen3-VL-8B-Instruct", "qwen3_vl"),
        ("zai-org/GLM-4.1V-9B-Thinking", "glm4v"),
        ("zai-org/GLM-4.6V-Flash", "glm46v"),
        ("OpenGVLab/InternVL3_5-8B-HF", "internvl"),
        ("HuggingFaceTB/SmolVLM2-2.2B-Instruct", "smolvlm"),
        ("HuggingFaceTB/SmolVLM-256M-Instruct", "idefics3"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2"),
        ("meta-llama/Llama-3.1-8B", "qwen2"),
    ],
)
def test_the_tiny_family_is_that_of_the_configured_model(path, family):
    assert tiny_family(load_config(BASE, [f"model.path={path}"])) == family


def test_a_vision_family_that_is_not_known_is_asked_for():
    with pytest.raises(ModelError, match="give --family, one of qwen2_vl"):
        tiny_family(load_config(BASE, ["model.path=somebody/other-VL-4B"]))


def test_the_small_configuration_keeps_what_decides_the_mathematics(tmp_path):
    overrides = ["train.num_iterations=2", "deepspeed.zero_stage=3", "model.freeze_vision_tower=true"]
    overrides += ["objective.beta=0.1", "rollout.dynamic_sampling=true", "train.scale_rewards=batch"]
    given = load_config(BASE, [*overrides, "data.max_prompt_length=4000", "model.path=Qwen/Qwen2-VL-2B-Instruct"])
    small, findings = shrink(given, tmp_path, num_ranks=2, family=None)
    assert (small.model.path, small.model.freeze_vision_tower) == ("tiny:qwen2_vl", True)
    assert (small.objective, small.deepspeed.zero_stage) == (given.objective, 3)
    assert (small.train.num_iterations, small.train.scale_rewards) == (2, "batch")
    assert small.rollout.dynamic_sampling
    assert {finding.state for finding in findings} == {"ok"}
    # ZeRO-3 would leave a tiny model's weights whole.
    partitioned = json.loads(Path(small.deepspeed.config).read_text())
    assert partitioned["zero_optimization"]["stage3_param_persistence_threshold"] == 0


def test_rows_that_cannot_be_read_are_replaced_and_said(tmp_path):
    given = load_config(BASE, [f"data.train={tmp_path}/nowhere.jsonl"])
    small, findings = shrink(given, tmp_path, num_ranks=1, family=None)
    assert small.data.train.startswith("synthetic:shapes") and findings[-1].state == "warning"
    # A text model sees no images, so it gets sums in words.
    small, findings = shrink(load_config(BASE, ["model.path=tiny:qwen2"]), tmp_path, num_ranks=1, family=None)
    assert small.data.train == str(tmp_path / "sums.jsonl") and "images" in findings[-1].text


def test_a_difference_of_one_bit_is_found_and_placed():
    first = {"step": 1, "moments": [torch.zeros(3), torch.ones(2)]}
    second = {"step": 1, "moments": [torch.zeros(3), torch.ones(2)]}
    assert first_difference(first, second) is None
    second["moments"][1][1] += 2**-23
    assert first_difference(first, second) == "/moments/1: differs by up to 1.2e-07"
    assert first_difference({"a": 1}, {"a": 2}, "row") == "row/a: 1 and 2"
    assert first_difference([1], [1, 2]) == ": 1 and 2 entries"
    assert first_difference(float("nan"), float("nan")) is None
    assert first_difference(torch.zeros(2), torch.zeros(2, dtype=torch.float64)) == ": shapes or types differ"


def test_gradients_are_compared_tensor_by_tensor():
    def of(small: float) -> dict[str, torch.Tensor]:
        return {"large": torch.tensor([3.0, 4.0]).double(), "small": torch.tensor([small]).double()}

    planned = [Variant(REFERENCE), Variant("same"), Variant("off")]
    reference, same, off = compare_gradients(planned, [of(0.5), of(0.5), of(0.5001)])
    assert (reference.state, same.state, off.state) == ("ok", "ok", "error")
    assert same.text == "0.0e+00" and off.text.startswith("2.0e-04 in small:")
    # A gradient of nothing but rounding is measured by the whole: 1e-8 beside 0.01 x 5.
    (_, tiny) = compare_gradients(planned[:2], [of(0.0), of(1e-8)])
    assert (tiny.state, tiny.text) == ("ok", "2.0e-07")
    zero = {"large": torch.zeros(2).double()}
    assert compare_gradients(planned[:2], [zero, zero])[0].state == "error"
    (_, broken) = compare_gradients(planned[:2], [of(0.5), of(float("nan"))])
    assert broken.state == "error"


def test_one_step_cannot_be_interrupted(tmp_path):
    with pytest.raises(ConfigError, match="at least 2"):
        check_resume(load_config(BASE), tmp_path, num_steps=1)


# Full: the commands.


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> tuple[Path, int, str]:
    """Folder, exit code and output of check-resume on a shipped recipe."""
    folder = tmp_path_factory.mktemp("check") / "runs"
    recipe = "configs/tiny_geometry3k.yaml"
    return folder, *command("check-resume", recipe, "--ranks", 1, "--steps", 2, "--keep", folder)


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_stopped_run_of_a_shipped_recipe_is_the_undisturbed_one(kept):
    _, code, printed = kept
    assert code == 0, printed
    assert "16 of tests/data/geometry3k_sample" in printed
    assert "ZeRO-2 on 1 rank(s), 2 steps, stopped after 2, resumed from the checkpoint after 1" in printed
    assert "shard(s)" in printed and "error" not in printed


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_resume_that_forgets_the_optimizer_state_is_found(kept, monkeypatch):
    folder, *_ = kept
    straight, again = folder / "straight", folder / "again"
    # Back to where the stop left it, and on with the fault.
    shutil.rmtree(folder_of(again / "checkpoints", 2))
    monkeypatch.setenv("PLANTED_FAULT", "forgotten moments")
    launch(folder, "again", 1, FAULTY)
    found = errors(compare_runs(straight, again, num_steps=2, saved=1))
    assert {"weights", "optimizer state"} <= set(found) <= {"weights", "optimizer state", "metrics rows"}
    assert "differs by up to" in found["optimizer state"]


@pytest.mark.full
@pytest.mark.timeout(900)
def test_the_gradient_of_a_shipped_recipe_depends_on_no_cut_and_no_rank():
    code, printed = command("check-invariance", "configs/tiny_geometry3k.yaml", "--ranks", 2)
    assert code == 0, printed
    assert printed.count("ZeRO-3 on") == 3 and "small micro-batches" in printed
    assert "error" not in printed


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_denominator_of_each_rank_alone_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_FAULT", "own denominator")
    planned = [Variant(REFERENCE), Variant("chunks", chunk_size=3), Variant("shared", num_ranks=2)]
    findings = check_invariance(load_config(BASE), tmp_path, planned=planned, program=FAULTY)
    # Every rank divides by half as many: the gradient is twice as large, a relative difference of 1.
    assert list(errors(findings)) == ["shared"]
    assert errors(findings)["shared"].startswith("1.0e+00 in ")


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_that_starts_over_in_silence_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_FAULT", "started over")
    findings = check_resume(load_config(BASE), tmp_path, num_ranks=2, num_steps=2, program=FAULTY)
    # It ends in the very same weights, which is why it is looked at apart.
    assert list(errors(findings)) == ["resumed"]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("stage", [1, 2, 3])
def test_two_ranks_resume_exactly(stage, tmp_path):
    config = load_config(BASE, [f"deepspeed.zero_stage={stage}", "model.dtype=bfloat16", "objective.beta=0.05"])
    assert errors(check_resume(config, tmp_path, num_ranks=2, num_steps=2)) == {}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_check_that_cannot_run_says_why(tmp_path, monkeypatch):
    monkeypatch.setenv("PLANTED_FAULT", "nothing of the kind")
    with pytest.raises(TrainingError, match="exit code 1: no fault is called nothing of the kind"):
        check_resume(load_config(BASE), tmp_path, num_ranks=1, num_steps=2, program=FAULTY)
