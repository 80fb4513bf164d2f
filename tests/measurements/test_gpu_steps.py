"""The prepared run on a GPU: limits, failing steps, and what the records of a run say. No GPU is needed here."""

from __future__ import annotations

import json
import os
import re
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import steps
import torch
from card import card
from large_models import TRIAL_VOCABULARY, full_tokenizer
from launches import Window, sums
from shapes import ROOT, SHAPES, trial
from side_by_side import without_folders
from steps import STEPS, Step, chosen, run_all
from torch.autograd import DeviceType

from vlm_mhpo.models.tiny import build_tokenizer

GOOD = "import json, sys; open(sys.argv[sys.argv.index('--out') + 1], 'w').write(json.dumps(sys.argv[1:]))"
BAD = "print('ValueError: the card is wet'); print('bye'); raise SystemExit(3)"
# Writes what it knows, starts a program of its own, and does not hear that its time is over.
HANGING = """
import signal, subprocess, sys, tempfile, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(sys.argv[sys.argv.index("--out") + 1], "w").write(f"{child.pid} {tempfile.mkdtemp()}")
time.sleep(600)
"""


def test_all_steps_together_take_ten_minutes_at_most():
    script = (ROOT / "measurements" / "gpu" / "run.sh").read_text()
    (install,) = re.findall(r"timeout (\d+) ", script)
    assert int(install) + sum(step.seconds for step in STEPS) <= 600


def test_the_page_names_each_step_with_its_limit():
    page = (ROOT / "docs" / "speed.md").read_text()
    assert [f"| {step.name} | {step.seconds} |" in page for step in STEPS] == [True] * len(STEPS)


def test_every_step_is_a_program_and_asks_for_shapes_that_exist():
    for step in STEPS:
        assert (ROOT / "measurements" / step.program).is_file()
        named = [each for each in step.arguments if each.startswith("realistic")]
        assert set(named) <= set(SHAPES)
    small = trial(SHAPES["realistic_3b_1024"])
    assert (small.layers, small.max_completion_length, small.picture) == (2, 32, (504, 476))


def test_a_step_that_fails_or_hangs_leaves_the_others_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(steps, "GRACE_S", 0.5)
    planned = []
    for name, program, seconds in (("bad", BAD, 60), ("hanging", HANGING, 3), ("good", GOOD, 60)):
        (tmp_path / f"{name}.py").write_text(program)
        planned.append(Step(name, seconds, str(tmp_path / f"{name}.py"), ("--more", "7")))
    out = tmp_path / "out"
    out.mkdir()
    (out / "bad.json").write_text("of an earlier run")
    assert run_all(planned, out, trial=True) is False
    ended = {each["name"]: each for each in json.loads((out / "summary.json").read_text())["steps"]}
    assert {name: each["status"] for name, each in ended.items()} == {
        "bad": "failed",
        "hanging": "out of time",
        "good": "ok",
    }
    assert (ended["bad"]["exit_code"], ended["bad"]["last_words"]) == (3, "ValueError: the card is wet")
    assert not (out / "bad.json").exists()
    assert json.loads((out / "good.json").read_text()) == ["--more", "7", "--out", str(out / "good.json"), "--trial"]
    pid, scratch = (out / "hanging.json").read_text().split()
    assert wait_until_gone(int(pid)) and not Path(scratch).exists()
    # Said in the end, where the reader looks.
    assert "bad: failed: ValueError: the card is wet" in capsys.readouterr().out.splitlines()[-2:]
    assert run_all(planned[2:], out, trial=True) is True


def wait_until_gone(pid: int) -> bool:
    """Whether a process that was killed has ended; a zombie that nobody has collected counts as gone."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


def test_steps_are_chosen_by_name_with_other_seconds():
    (speed, tests) = chosen(["speed:330", "tests"], trial=False)
    assert (speed.name, speed.seconds, tests.name, tests.seconds) == ("speed", 330, "tests", 110)
    assert speed.arguments == next(step for step in STEPS if step.name == "speed").arguments
    for wrong in ("sped", "speed:fast", "speed:-3"):
        with pytest.raises(ValueError, match=f"--steps {wrong}: give NAME or NAME:SECONDS"):
            chosen([wrong], trial=False)


def test_the_wheels_that_travel_have_versions_that_were_tested():
    """Every package of the list is in constraints.txt, and transformers is one of them."""
    lines = (ROOT / "measurements" / "gpu" / "packages.txt").read_text().splitlines()
    names = {plain(line) for line in lines if not line.startswith("#")}
    pinned = {plain(line.partition("==")[0]) for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert names <= pinned
    assert {"transformers", "deepspeed", "trl", "math_verify", "omegaconf"} <= names


def plain(name: str) -> str:
    """A package's name as pip compares it."""
    return name.strip().lower().replace("-", "_")


def test_launches_are_counted_per_step_and_what_the_device_does_not_do_is_waiting():
    """Two steps of 10 ms: three launches each, and 2.5 ms of kernels; a named range holds kernels already counted."""

    def event(kind, name, us, **more):
        return SimpleNamespace(device_type=kind, name=name, time_range=SimpleNamespace(elapsed_us=lambda: us), **more)

    host = [event(DeviceType.CPU, name, 9.0) for name in ("aten::mm", "aten::add", "cudaLaunchKernel")] * 4
    host += [event(DeviceType.CPU, "cudaMemcpyAsync", 5.0), event(DeviceType.CPU, "cuLaunchKernelEx", 5.0)]
    device = [event(DeviceType.CUDA, "flash_fwd", 2000.0), event(DeviceType.CUDA, "gemm", 3000.0)]
    device.append(event(DeviceType.CUDA, "a range", 9000.0, is_user_annotation=True))
    assert sums([*host, *device], 2, 0.010) == {
        "operations_per_step": 4.0,
        "launches_per_step": 3.0,
        "device_s_per_step": pytest.approx(0.0025),
        "waiting_share": pytest.approx(0.75),
    }
    assert "waiting_share" not in sums(host, 2, 0.010)


def test_a_filled_vocabulary_names_every_id_once(tmp_path):
    plain_one = build_tokenizer()
    full = full_tokenizer(plain_one, tmp_path, layers=2)
    assert sorted(full.get_vocab().values()) == list(range(TRIAL_VOCABULARY))
    text = "<|im_start|>user\nWhat is red plus blue?<|im_end|>"
    assert full.convert_ids_to_tokens(full(text)["input_ids"]) == plain_one.convert_ids_to_tokens(
        plain_one(text)["input_ids"]
    )


def test_the_card_is_described_in_the_words_of_its_driver(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert card() is None
    driver = tmp_path / "nvidia-smi"
    driver.write_text(
        "#!/bin/sh\necho 'NVIDIA H100, 580.1, 81559 MiB, 4 MiB, 1980 MHz, 2619 MHz, 1980 MHz, 70 W, 700 W, 31, 0x0'\n"
    )
    driver.chmod(0o755)
    found = card()
    assert (found["name"], found["clocks.sm"], found["memory.total"]) == ("NVIDIA H100", "1980 MHz", "81559 MiB")
    driver.write_text("#!/bin/sh\nexit 9\n")
    assert card() is None


def test_a_recorded_command_names_no_folder_of_the_machine_that_ran_it():
    program = str(ROOT / "measurements" / "gpu" / "learning.py")
    given = [program, "--seconds", "9", "--out", os.sep + "somewhere", "--trial"]
    assert without_folders(given) == ["measurements/gpu/learning.py", "--seconds", "9", "--trial"]


def test_decode_steps_are_those_of_the_last_counted_call_and_the_window_lies_in_the_watched_one():
    window = Window(skipped=2)
    for calls in (9, 4):
        window.begin()
        for _ in range(calls):
            window.count()
    with window:
        for token in range(8):
            window.watch()
            torch.ones(2).add(token)
    facts = window.facts()
    # Four tokens have three decode steps between them; the window is open from the third of eight tokens to the end.
    assert (facts["steps"], window.in_window) == (3, 5)
    assert facts["operations_per_step"] >= 6 / 5 and facts["launches_per_step"] == 0
    assert Window(skipped=99).facts()["operations_per_step"] == 0
