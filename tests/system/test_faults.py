"""Stops, deaths and hangs of ranks at named places: nothing is lost, everybody ends in time, the culprit is named."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.system.ranks import CLI, REPOSITORY, environment, kill_group, run_ranks
from tests.system.test_runs import rows_of

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

BASE = Path(__file__).with_name("base.yaml")
USER_REWARDS = Path(__file__).with_name("user_rewards.py")
SMALL = [
    "train.max_steps=2",
    "train.num_minibatches=1",
    "checkpoint.save_steps=1",
    "eval.every=1",
    "eval.before=false",
    "rollout.num_generations=2",
    "rollout.max_completion_length=6",
    "data.train=synthetic:shapes?seed=0&num_rows=8@train",
    "data.eval=synthetic:shapes?seed=0&num_rows=2@heldout",
    # Short, so that tests are; what is promised at the default of 45 s is 60 s.
    "faults.silence_s=5",
]
PROMISED_S = 60.0


def drive(folder: Path, requests: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Run the requests one after the other; what became of each, by name."""
    for request in requests:
        name = request.pop("run", request["name"])
        request["arguments"] = ["train", str(BASE), f"output_dir={folder / name}", *SMALL, *request.pop("more", [])]
    (folder / "requests.json").write_text(json.dumps(requests))
    arguments = ("-m", "tests.system.drive_faults", folder / "requests.json", folder)
    (ended,) = run_ranks(arguments, folder / "driver", timeout_s=1180)
    assert ended.code == 0, ended.stderr[-3000:]
    return json.loads((folder / "answers.json").read_text())


# Where the signal comes, on how many ranks, and which of them get it.
STOPS = [
    ("SIGTERM", "sample", 1, [0]),
    ("SIGINT", "sample", 1, [0]),
    ("SIGUSR1", "update", 1, [0]),
    ("SIGTERM", "evaluate", 1, [0]),
    ("SIGTERM", "checkpoint", 1, [0]),
    ("SIGTERM", "sample", 2, [1]),
    ("SIGTERM", "log_probs", 2, [0]),
    ("SIGTERM", "update", 2, [1]),
    ("SIGTERM", "evaluate", 2, [0, 1]),
    ("SIGTERM", "checkpoint", 2, [0]),
]


def stop_name(case: tuple) -> str:
    return f"{case[0]}-{case[1]}-{case[2]}"


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """Every stop in the second of two steps (a save: the first), the same command again, and undisturbed runs."""
    folder = tmp_path_factory.mktemp("stops")
    requests: list[dict[str, Any]] = [{"name": f"straight{n}", "num_ranks": n} for n in (1, 2)]
    for case in STOPS:
        signum, phase, num_ranks, ranks = case
        place = {"phase": phase, "step": 1 if phase in ("checkpoint", "evaluate") else 2}
        if phase in ("sample", "evaluate"):
            place["token"] = 3
        name = stop_name(case)
        requests.append({"name": name, "num_ranks": num_ranks, "signal": signum, "ranks": ranks, **place})
        requests.append({"name": f"{name}-again", "run": name, "num_ranks": num_ranks})
    (folder / "away").mkdir()
    # A relative path would name another file there.
    reward = f"rewards.functions=[{{name: accuracy}}, {{name: even, path: '{USER_REWARDS}:even_tokens'}}]"
    requests.append({"name": "elsewhere", "num_ranks": 2, "away": str(folder / "away"), "more": [reward]})
    return folder, drive(folder, requests)


@pytest.mark.parametrize("case", STOPS, ids=stop_name)
def test_a_signal_stops_all_ranks_politely_and_the_next_run_goes_on_as_if_nothing_had_happened(stopped, case):
    folder, answers = stopped
    name, num_ranks = stop_name(case), case[2]
    first, again = answers[name], answers[f"{name}-again"]
    assert first["codes"] == [130 if case[0] == "SIGINT" else 143] * num_ranks, first["stderr"]
    assert first["seconds"] <= PROMISED_S and first["left"] == []
    finished = 2 if case[1] == "update" else 1
    for text in first["stderr"]:
        assert f"stopped: after step {finished} of 2, as asked; its checkpoint is saved" in text
        assert "Traceback" not in text
    assert again["codes"] == [0] * num_ranks, again["stderr"]
    assert rows_of(folder / name) == rows_of(folder / f"straight{num_ranks}")
    assert [row["step"] for row in rows_of(folder / name)] == [1, 2]
    weights = [
        (folder / run / "checkpoints" / "step_000002" / "policy" / "model.safetensors").read_bytes()
        for run in (name, f"straight{num_ranks}")
    ]
    assert weights[0] == weights[1]


def test_ranks_in_different_surroundings_make_one_run_in_one_folder(stopped):
    folder, answers = stopped
    assert answers["elsewhere"]["codes"] == [0, 0], answers["elsewhere"]["stderr"]
    assert rows_of(folder / "elsewhere") == rows_of(folder / "straight2")
    files, expected = (
        {path.relative_to(folder / run) for path in (folder / run).rglob("*")} for run in ("elsewhere", "straight2")
    )
    assert files == expected and list((folder / "away").iterdir()) == []
    made = {"driver", "away", "elsewhere", "straight1", "straight2", *map(stop_name, STOPS)}
    assert {path.name for path in folder.iterdir() if path.is_dir()} == made
    same = Path("checkpoints") / "step_000002" / "policy" / "model.safetensors"
    assert (folder / "elsewhere" / same).read_bytes() == (folder / "straight2" / same).read_bytes()


DEATHS = [
    ("SIGKILL", "prompts", 1),
    ("SIGKILL", "sample", 1),
    ("SIGKILL", "sample", 0),
    ("SIGKILL", "verify", 1),
    ("SIGKILL", "log_probs", 1),
    ("SIGKILL", "update", 1),
    ("SIGKILL", "update", 0),
    ("SIGKILL", "evaluate", 1),
    ("SIGSTOP", "update", 1),
    ("SIGSTOP", "sample", 0),
]
# Where the second rank raises: the phase, and what it is about to do there.
RAISES = {
    "sample": {"token": 2},
    "verify": {"call": "vlm_mhpo.scoring.scorer.score_groups"},
    "update": {"call": "vlm_mhpo.engine.deepspeed.Engine.update"},
}
FLAT = "rewards.functions=[{name: mine, path: 'tests/system/user_rewards.py:%s'}]"


def death_name(case: tuple) -> str:
    return f"{case[0]}-{case[1]}-{case[2]}"


@pytest.fixture(scope="module")
def died(tmp_path_factory):
    """Two ranks, one of which dies or freezes; one that raises; ranks that differ; ranks with nothing to learn."""
    folder = tmp_path_factory.mktemp("deaths")
    requests = [
        {"name": death_name(case), "num_ranks": 2, "signal": case[0], "ranks": [case[2]], "phase": case[1], "step": 1}
        for case in DEATHS
    ]
    long = ["train.max_steps=10", "data.eval=null", "checkpoint.save_steps=0", "deepspeed.zero_stage=2"]
    idle = [*long, FLAT % "flat", "train.mask_truncated_completions=true", "faults.max_idle_steps=4"]
    four = ["train.num_prompts_per_step=8"]
    # In float32 sampler and trainer differ by some 1e-7, and not by nothing.
    apart = ["rollout.old_log_probs=trainer", "faults.max_sampling_gap=1.0e-12", "faults.on_sampling_gap=stop"]
    requests += [
        {"name": f"raises-{phase}", "num_ranks": 2, "signal": "raise", "ranks": [1], "phase": phase, "step": 2, **where}
        for phase, where in RAISES.items()
    ]
    requests += [
        {"name": "differs", "num_ranks": 2, "more_of": ["seed=1", "train.learning_rate=2.0e-3"]},
        {"name": "one_idle", "num_ranks": 2, "more": [*long, FLAT % "flat_on_the_second_rank"]},
        # Two minibatches of four prompts, one per rank.
        {"name": "one_of_four_idle", "num_ranks": 4, "more": [*long, *four, FLAT % "flat_on_the_second_rank"]},
        {"name": "all_idle", "num_ranks": 2, "more": idle},
        {"name": "all_of_four_idle", "num_ranks": 4, "more": [*idle, *four]},
        {"name": "idle_stops", "num_ranks": 2, "more": [*idle, "faults.on_idle=stop"]},
        {"name": "apart_stops", "num_ranks": 2, "more": [*long, *apart]},
    ]
    return folder, drive(folder, requests)


@pytest.mark.parametrize("case", DEATHS, ids=death_name)
def test_a_rank_that_dies_or_freezes_ends_the_other_which_names_rank_and_phase(died, case):
    _, phase, rank = case
    answer = died[1][death_name(case)]
    assert answer["codes"][1 - rank] == 5, answer["stderr"]
    assert answer["seconds"] <= PROMISED_S and answer["left"] == []
    told = rf"error: rank {rank} is gone or frozen: .* last seen in phase {phase} of step 1 \(this is rank {1 - rank}"
    assert re.search(told, answer["stderr"][1 - rank]), answer["stderr"][1 - rank][-3000:]


@pytest.mark.long
@pytest.mark.parametrize("signum", ["SIGKILL", "SIGSTOP"])
def test_the_default_limit_keeps_the_promise_too(signum, tmp_path):
    case = {"num_ranks": 2, "signal": signum, "ranks": [1], "phase": "update", "step": 1}
    answer = drive(tmp_path, [{"name": "default", **case, "more": ["faults.silence_s=45"]}])["default"]
    assert answer["codes"][0] == 5 and answer["left"] == [], answer["stderr"]
    assert answer["seconds"] <= PROMISED_S
    print(f"{signum}: the other rank ended after {answer['seconds']:.0f} s")


@pytest.mark.parametrize("phase", RAISES)
def test_an_exception_on_one_rank_is_quoted_by_the_other(phase, died):
    answer = died[1][f"raises-{phase}"]
    assert answer["codes"] == [5, 1] and answer["left"] == [], answer["stderr"]
    assert "RuntimeError: boom" in answer["stderr"][1]
    told = f"error: rank 1 failed in phase {phase} of step 2: RuntimeError: boom (this is rank 0, in phase {phase} of"
    assert told in answer["stderr"][0]
    assert answer["seconds"] <= PROMISED_S


def test_ranks_with_different_settings_do_not_begin(died):
    folder, answers = died
    assert answers["differs"]["codes"] == [2, 2]
    for text in answers["differs"]["stderr"]:
        assert "seed is 0 on rank 0 and 1 on rank 1; train.learning_rate is 0.001 on rank 0 and 0.002 on rank 1" in text
    assert not (folder / "differs").exists()


@pytest.mark.parametrize("name,num_ranks", [("one_idle", 2), ("one_of_four_idle", 4)])
def test_a_rank_with_nothing_to_learn_does_not_hang_the_others(name, num_ranks, died):
    folder, answers = died
    assert answers[name]["codes"] == [0] * num_ranks, answers[name]["stderr"]
    rows = rows_of(folder / name)
    assert [row["step"] for row in rows] == list(range(1, 11))
    assert all(row["frac_reward_zero_std"] >= 1 / num_ranks for row in rows) and any(
        row["grad_norm"] > 0 for row in rows
    )


def test_steps_with_nothing_to_learn_anywhere_are_counted_told_and_stop_if_configured(died):
    folder, answers = died
    for name, num_ranks in (("all_idle", 2), ("all_of_four_idle", 4)):
        assert answers[name]["codes"] == [0] * num_ranks, answers[name]["stderr"]
        assert [row["idle_steps"] for row in rows_of(folder / name)] == list(range(1, 11))
        told = answers[name]["stdout"][0]
        assert told.count("4 steps in a row every group had equal rewards") == 1
    assert answers["idle_stops"]["codes"] == [2, 2]
    assert "error: step 4: 4 steps in a row every group had equal rewards" in answers["idle_stops"]["stderr"][0]
    assert [path.name for path in (folder / "idle_stops" / "checkpoints").iterdir()] == ["step_000004"]
    names = sorted(path.name for path in (folder / "idle_stops" / "dumps" / "step_4").iterdir())
    assert names == ["rank_0.json", "rank_0.safetensors", "rank_1.json", "rank_1.safetensors"]


def test_a_sampler_apart_from_the_trainer_stops_the_run_if_configured(died):
    folder, answers = died
    assert answers["apart_stops"]["codes"] == [2, 2], answers["apart_stops"]["stderr"]
    assert "error: step 1: sampler and trainer differ by" in answers["apart_stops"]["stderr"][0]
    assert [path.name for path in (folder / "apart_stops" / "checkpoints").iterdir()] == ["step_000001"]


def test_a_stop_of_the_launcher_stops_its_ranks_politely(tmp_path):
    run_dir = tmp_path / "run"
    arguments = [*CLI, "train", str(BASE), f"output_dir={run_dir}", *SMALL, "train.max_steps=1000", "data.eval=null"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    with (tmp_path / "err").open("w") as err:
        process = subprocess.Popen(
            [*torchrun, *arguments, "checkpoint.save_steps=0"],
            cwd=REPOSITORY,
            env=environment(0, 1, "0", {}),
            stdout=subprocess.DEVNULL,
            stderr=err,
            start_new_session=True,
        )
    try:
        deadline = time.monotonic() + 300
        while not (run_dir / "metrics.jsonl").is_file() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        asked = time.monotonic()
        process.wait(timeout=PROMISED_S)
        assert time.monotonic() - asked <= PROMISED_S
    finally:
        kill_group(process)
    (saved,) = (path.name for path in (run_dir / "checkpoints").iterdir())
    step = int(saved.removeprefix("step_"))
    assert [row["step"] for row in rows_of(run_dir)] == list(range(1, step + 1))
    assert (tmp_path / "err").read_text().count(f"stopped: after step {step} of 1000, as asked") == 2
