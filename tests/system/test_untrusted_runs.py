"""A run folder is not trusted: no shard of it runs a program, no stranger's is continued, and one run writes it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.system.drive_untrusted import plant
from tests.system.outcomes import assert_one_sentence, contents
from tests.system.ranks import run_commands, run_ranks
from tests.system.resume_cases import BASE, SMALL

pytestmark = [pytest.mark.full, pytest.mark.timeout(240)]

DRIVER = ("-m", "tests.system.drive_untrusted")
# Runs whose shards differ in kind: ZeRO stage and dtype, and another stage that must cut them anew.
LAYOUTS = {
    "ZeRO-0": (["deepspeed.zero_stage=0"], 2),
    "ZeRO-2": (["deepspeed.zero_stage=2"], 3),
    "ZeRO-3": (["deepspeed.zero_stage=3"], 1),
    "ZeRO-1 in bfloat16": (["deepspeed.zero_stage=1", "model.dtype=bfloat16"], 2),
}
MODEL, OPTIMIZER = "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt"
SHARDS = (
    ("ZeRO-0", MODEL),
    ("ZeRO-2", MODEL),
    ("ZeRO-2", OPTIMIZER),
    ("ZeRO-3", f"zero_pp_rank_0_{MODEL}"),
    ("ZeRO-3", OPTIMIZER),
    ("ZeRO-1 in bfloat16", MODEL),
    ("ZeRO-1 in bfloat16", f"bf16_{OPTIMIZER}"),
)
WAYS = ("the same stage", "another stage")


def arguments(run_dir: Path, *overrides: str) -> list[str]:
    """A command that starts or continues a run which saves after every step."""
    return ["train", str(BASE), *SMALL, f"output_dir={run_dir}", "checkpoint.save_steps=1", *overrides]


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, Path]:
    """Runs of one step, by layout."""
    root = tmp_path_factory.mktemp("trained")
    commands = [arguments(root / name, *overrides, "train.max_steps=1") for name, (overrides, _) in LAYOUTS.items()]
    for outcome in run_commands(commands, root / "commands"):
        assert outcome["code"] == 0, outcome["stderr"][-3000:]
    return {name: root / name for name in LAYOUTS}


def engine_of(run_dir: Path) -> Path:
    """The folder of the shards after the first step."""
    return run_dir / "checkpoints" / "step_000001" / "engine"


@pytest.fixture(scope="module")
def continued(trained, tmp_path_factory) -> dict[Any, tuple[dict[str, Any], dict[str, bytes], Path]]:
    """What continuing each changed copy of a run gave, the copy before, and where it lies."""
    root = tmp_path_factory.mktemp("continued")
    requests: dict[Any, dict[str, Any]] = {}
    copies: dict[Any, Path] = {}

    def ask(key: Any, layout: str, *overrides: str, **more: Any) -> Path:
        copies[key] = Path(shutil.copytree(trained[layout], root / str(len(copies)) / "run"))
        given = [*LAYOUTS[layout][0], *overrides, "train.max_steps=2"]
        requests[key] = {"arguments": arguments(copies[key], *given), **more}
        return copies[key]

    for layout, shard in SHARDS:
        for way in WAYS:
            other = [f"deepspeed.zero_stage={LAYOUTS[layout][1]}"] if way == "another stage" else []
            run_dir = ask((layout, shard, way), layout, *other, unchecked=True)
            plant(engine_of(run_dir) / shard, run_dir.with_name("canary"))
    for trust in (False, True):
        flag = ["checkpoint.trust_folder=true"] * trust
        run_dir = ask(("everybody", trust), "ZeRO-2", *flag)
        (run_dir / "checkpoints").chmod(0o777)
        ask(("another user", trust), "ZeRO-2", *flag, user=os.geteuid() + 1)
    before = {key: contents(copy) for key, copy in copies.items()}
    (root / "requests.json").write_text(json.dumps(list(requests.values())))
    (ended,) = run_ranks((*DRIVER, root / "requests.json", root / "answers.json"), root, timeout_s=200)
    assert ended.code == 0, ended.stderr[-3000:]
    answers = json.loads((root / "answers.json").read_text())
    return {key: (answer, before[key], copies[key]) for key, answer in zip(requests, answers, strict=True)}


# No program of a shard runs.


def test_every_kind_of_shard_is_planted(trained):
    found = {(name, path.name) for name, run_dir in trained.items() for path in engine_of(run_dir).rglob("*")}
    assert found == set(SHARDS)


def test_deepspeed_saves_three_classes_and_no_fourth(trained):
    found = set()
    for layout, shard in SHARDS:
        found.update(torch.serialization.get_unsafe_globals_in_checkpoint(engine_of(trained[layout]) / shard))
    assert found == {
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    }


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("layout,shard", SHARDS)
def test_loading_runs_no_program_of_any_shard_and_names_it(continued, layout, shard, way):
    """With the search in advance left out, so that each loader meets it."""
    outcome, before, run_dir = continued[layout, shard, way]
    sentence = rf".*/step_000001/engine/{re.escape(shard)} holds posix.mkdir, which may run code, and is not read"
    assert_one_sentence(outcome["code"], outcome["stderr"], sentence)
    assert outcome["code"] == 3
    assert not run_dir.with_name("canary").exists()
    assert contents(run_dir) == before


def test_the_planted_programs_would_run_elsewhere(trained, tmp_path):
    for layout, shard in SHARDS:
        run_dir = Path(shutil.copytree(trained[layout], tmp_path / layout / shard))
        plant(engine_of(run_dir) / shard, run_dir / "canary")
        torch.load(engine_of(run_dir) / shard, weights_only=False)
        assert (run_dir / "canary").exists()


def test_a_program_in_one_ranks_shard_is_refused_on_both(tmp_path):
    run_dir, canary = tmp_path / "run", tmp_path / "canary"
    shard = engine_of(run_dir) / "zero_pp_rank_1_mp_rank_00_optim_states.pt"
    command = [*DRIVER, "ranks", shard, canary, *arguments(run_dir, "deepspeed.zero_stage=3")]
    first, second = run_ranks(command, tmp_path / "ranks", num_ranks=2)
    sentence = rf"{re.escape(str(shard))} holds posix.mkdir, which may run code, and is not read"
    assert_one_sentence(first.code, first.stderr, sentence)
    assert_one_sentence(second.code, second.stderr, f"rank 0: {sentence}")
    assert (first.code, second.code) == (3, 3)
    assert not canary.exists()


# No stranger's checkpoint is continued unless the user says so.


@pytest.mark.parametrize(
    "stranger,problem",
    [
        ("everybody", r".*/run/checkpoints can be written by everybody \(chmod -R o-w .*/run/checkpoints\)"),
        ("another user", rf".*/run/checkpoints belongs to user {os.geteuid()}, and this process is user \d+"),
    ],
)
def test_a_strangers_checkpoint_is_continued_only_with_the_flag(continued, stranger, problem):
    outcome, before, run_dir = continued[stranger, False]
    assert_one_sentence(
        outcome["code"], outcome["stderr"], f"{problem}: set checkpoint.trust_folder=true if you trust what is in it"
    )
    assert outcome["code"] == 3
    assert contents(run_dir) == before
    outcome, _, run_dir = continued[stranger, True]
    assert outcome["code"] == 0, outcome["stderr"][-3000:]
    assert "continuing after step 1 of 2" in outcome["stdout"]
    assert (run_dir / "checkpoints" / "step_000002").is_dir()


# One run writes a folder.


def test_a_second_run_is_refused_while_the_first_lives_and_goes_on_after_its_kill(tmp_path):
    request = {"run_dir": str(tmp_path / "run"), "arguments": arguments(tmp_path / "run")}
    (tmp_path / "requests.json").write_text(json.dumps([request]))
    (ended,) = run_ranks((*DRIVER, tmp_path / "requests.json", tmp_path / "answers.json"), tmp_path / "driver")
    assert ended.code == 0, ended.stderr[-3000:]
    (answer,) = json.loads((tmp_path / "answers.json").read_text())
    during, after, step = answer["during"], answer["after"], answer["step"]
    sentence = r".*/run is being written by another run: wait until it has ended, or choose another output_dir"
    assert_one_sentence(during["code"], during["stderr"], sentence)
    assert during["code"] == 3 and answer["running"]
    assert after["code"] == 0, after["stderr"][-3000:]
    assert f"continuing after step {step} of {step + 1}" in after["stdout"]
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, step + 2))
