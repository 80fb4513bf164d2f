"""Bad input ends the command with a non-zero code and one clear sentence, never with a traceback."""

from __future__ import annotations

import json
import re
import shutil
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from tests.builders import picture
from tests.system.outcomes import assert_one_sentence, contents
from tests.system.ranks import CLI, run_commands, run_ranks
from vlm_mhpo import cli

BASE = Path(__file__).with_name("base.yaml")
GOOD = {"problem": "What is 3 + 4 ?", "answer": "7"}
SUM_OF_ROWS = "synthetic/shapes/1/0/train/0"
# The end of a sentence about a batch that is kept.
DUMPED = r"\. The batch of step 1 is in .*/dumps/step_1"


# In this process: what is refused before any weight is loaded.


def refusal(monkeypatch, capsys, *arguments: object) -> tuple[int, str]:
    """Exit code and stderr of a command."""
    monkeypatch.setattr(sys, "argv", ["vlm-mhpo", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    "override,sentence",
    [
        ("train.learning_rat=1", "unknown key train.learning_rat. Did you mean train.learning_rate?"),
        ("trian.max_steps=1", "unknown key trian. Did you mean train?"),
        ("train.beta=0.1", "unknown key train.beta. Did you mean objective.beta?"),
        ("rollout.num_generations=1", "rollout.num_generations: Input should be greater than or equal to 2 (got 1)"),
        (
            "train.num_minibatches=3",
            "train.num_prompts_per_step=4 does not divide into train.num_minibatches=3: use 3 prompts, or a divisor "
            "of 4 as minibatches",
        ),
        (
            "eval.num_samples=4",
            "eval.num_samples > 1 needs eval.temperature > 0: greedy samples are all the same",
        ),
    ],
)
@pytest.mark.parametrize("command", ["train", "sft", "doctor"])
def test_a_wrong_key_or_value_is_one_sentence(command, override, sentence, monkeypatch, capsys):
    assert refusal(monkeypatch, capsys, command, BASE, override) == (2, f"error: {BASE}: {sentence}\n")


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["--train.max_steps=2"], "--train.max_steps=2: overrides are written without dashes: train.max_steps=2"),
        (["--output_dir", "x"], "--output_dir: overrides are written without dashes: output_dir=VALUE"),
    ],
)
def test_an_override_with_dashes_is_told_how_to_be_written(arguments, hint, monkeypatch, capsys):
    assert refusal(monkeypatch, capsys, "train", BASE, *arguments) == (2, f"error: {hint}\n")


@pytest.mark.parametrize("command", ["train", "sft"])
def test_a_missing_logger_is_told_before_a_model_is_looked_for(command, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "wandb", None)
    code, text = refusal(monkeypatch, capsys, command, BASE, "logging.wandb=true", "model.path=/no/such/model")
    assert (code, text) == (2, "error: logging.wandb=true needs the package: pip install 'vlm-mhpo[wandb]'\n")


def test_an_override_without_a_value_is_one_sentence(monkeypatch, capsys):
    expected = "error: override 'train.max_steps' is not of the form key.sub=value\n"
    assert refusal(monkeypatch, capsys, "train", BASE, "train.max_steps") == (2, expected)


def test_a_configuration_that_does_not_exist_is_one_sentence(monkeypatch, capsys):
    expected = (
        "error: no configuration file at nowhere.yaml: give the path of a YAML file, such as configs/quickstart.yaml\n"
    )
    assert refusal(monkeypatch, capsys, "train", "nowhere.yaml") == (2, expected)


@pytest.mark.parametrize("text", ["a: [1", "- a\n- b\n", "\0"])
def test_a_configuration_that_is_no_mapping_is_one_sentence(text, tmp_path, monkeypatch, capsys):
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    code, stderr = refusal(monkeypatch, capsys, "doctor", file)
    assert code == 2
    assert re.fullmatch(rf"error: {re.escape(str(file))}: [^\n]+\n", stderr)


def test_doctor_finds_rows_and_models_that_do_not_exist(tmp_path, monkeypatch, capsys):
    nowhere = tmp_path / "nowhere.jsonl"
    monkeypatch.setattr(
        sys, "argv", ["vlm-mhpo", "doctor", str(BASE), f"data.train={nowhere}", f"model.path={tmp_path}/model"]
    )
    with pytest.raises(SystemExit) as ended:
        cli.main()
    # As training with this model ends.
    assert ended.value.code == 2
    printed = "".join(capsys.readouterr().out.split())
    assert printed.count("error") == 2


def test_prepare_refuses_a_path_that_does_not_exist(tmp_path, monkeypatch, capsys):
    nowhere = tmp_path / "nowhere.jsonl"
    code, stderr = refusal(monkeypatch, capsys, "prepare", nowhere, "--out", tmp_path / "out")
    assert code == 2 and len(stderr.splitlines()) == 1
    assert stderr.startswith(f"error: no data at '{nowhere}': there is no such file or folder")
    assert not (tmp_path / "out").exists()


def test_export_and_report_refuse_a_folder_that_is_no_run(tmp_path, monkeypatch, capsys):
    nothing = tmp_path / "nothing"
    expected = f"error: {nothing}: neither a run folder, a checkpoint nor a model folder\n"
    assert refusal(monkeypatch, capsys, "export", nothing, "--out", tmp_path / "out") == (3, expected)
    code, stderr = refusal(monkeypatch, capsys, "report", nothing)
    assert code == 2 and re.fullmatch(r"error: [^\n]+\n", stderr)


# In other processes: what is found out with the model and the rows at hand.


def table(folder: Path, record: dict[str, Any], **pictures: bytes) -> Path:
    """A table of four good rows and a last one."""
    folder.mkdir()
    for name, encoded in pictures.items():
        (folder / f"{name}.png").write_bytes(encoded)
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [GOOD] * 4 + [record]))
    return file


def huge_png() -> bytes:
    """A few hundred bytes that declare 9,000 x 9,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 9000, 9000, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(100))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def bad_inputs(root: Path) -> dict[str, tuple[list[str], str]]:
    """Overrides of a training run and the sentence, as a regular expression, that it must end with."""
    one, two = {**GOOD, "images": ["a.png"]}, {**GOOD, "images": ["a.png", "b.png"]}
    tables = {
        "no gold": table(root / "gold", {"problem": "What is it?"}),
        "image missing": table(root / "missing", one),
        "image truncated": table(root / "truncated", one, a=picture(56, 56)[:120]),
        "image oversized": table(root / "oversized", one, a=huge_png()),
        "more images": table(root / "images", {**two, "problem": "<image> ?"}, a=picture(56, 56), b=picture(56, 56)),
        "more placeholders": table(root / "marks", {**one, "problem": "<image><image> ?"}, a=picture(56, 56)),
        "no json": table(root / "json", GOOD),
    }
    tables["no json"].write_text("{oops\n")
    sentences = {
        "no gold": "{file}, line 5, field 'answer': is missing",
        "image missing": "{file}, line 5, field 'images': 'a.png' does not exist or is not a regular file; .*",
        "image truncated": "row rows/rows/5: image {folder}/a.png: truncated or broken PNG .*",
        "image oversized": "row rows/rows/5: image {folder}/a.png: 9000 x 9000 pixels is over the limit .*; resize it",
        "more images": "{file}, line 5, field 'problem': has 1 <image> placeholder\\(s\\) for 2 image\\(s\\); .*",
        "more placeholders": "{file}, line 5, field 'problem': has 2 <image> placeholder\\(s\\) for 1 image\\(s\\); .*",
        "no json": "{file}, line 1: is not JSON: .*",
    }
    cases = {
        name: (
            [f"data.train={file}"],
            sentences[name].format(file=re.escape(str(file)), folder=re.escape(str(file.parent))),
        )
        for name, file in tables.items()
    }
    few = table(root / "few", GOOD)
    return cases | {
        "no such path": (
            ["data.train=nowhere/rows.jsonl"],
            "no data at 'nowhere/rows.jsonl': there is no such file or folder .*",
        ),
        "prompt too long": (
            ["data.max_prompt_length=8", "data.overlong_prompts=error"],
            f"row {SUM_OF_ROWS}: the prompt has 34 tokens, data.max_prompt_length is 8: .*",
        ),
        "nothing left": (
            ["data.max_prompt_length=8"],
            "no training rows are left after filtering 32; the first refusal: row .* has 34 tokens, .*",
        ),
        "context": (
            ["data.max_prompt_length=4096"],
            r"data.max_prompt_length \+ rollout.max_completion_length = 4104 tokens, and the model has 4096 .*",
        ),
        "too few rows": (
            [f"data.train={few}", "train.num_prompts_per_step=8"],
            "5 rows cannot fill a batch of 8 different prompts: .*",
        ),
        "pictures for a text model": (["model.path=tiny:qwen2"], f"row {SUM_OF_ROWS}: it has 1 images and a qwen2 .*"),
        "no model": ([f"model.path={root}/nothing"], f"no model at '{re.escape(str(root))}/nothing': .*"),
        "reward raises": (
            mine("raises"),
            rf"reward 'mine' \(.*:raises\) raised KeyError: 'no such column' at "
            rf".*user_rewards\.py, line \d+ \(on .*\){DUMPED}",
        ),
        "reward length": (mine("one_too_few"), rf"reward 'mine' \(.*\) returned 15 values for 16 samples{DUMPED}"),
        "reward not finite": (mine("not_a_number"), r"reward 'mine' \(.*\) returned nan, not a finite number, for .*"),
        "reward unknown": (["rewards.functions=[{name: acuracy}]"], "unknown reward 'acuracy'; built in are .*"),
        "reward file": (
            ["rewards.functions=[{name: mine, path: 'nowhere.py:f'}]"],
            "reward 'mine': there is no file nowhere.py",
        ),
    }


def mine(function: str) -> list[str]:
    """The override that makes a function of user_rewards.py the only reward."""
    return [f"rewards.functions=[{{name: mine, path: 'tests/system/user_rewards.py:{function}'}}]"]


@pytest.fixture(scope="module")
def answers(tmp_path_factory) -> dict[str, tuple[dict[str, Any], str, Path]]:
    """Each bad input's outcome, the sentence that is due, and its run folder."""
    root = tmp_path_factory.mktemp("bad")
    cases = bad_inputs(root)
    run_dirs = {name: root / f"run {name}" for name in cases}
    commands = [["train", BASE, f"output_dir={run_dirs[name]}", *case[0]] for name, case in cases.items()]
    done = run_commands(commands, root / "commands")
    return {
        name: (outcome, sentence, run_dirs[name])
        for outcome, (name, (_, sentence)) in zip(done, cases.items(), strict=True)
    }


NAMES = (
    "no gold", "image missing", "image truncated", "image oversized", "more images", "more placeholders", "no json",
    "no such path", "prompt too long", "nothing left", "context", "too few rows", "pictures for a text model",
    "no model", "reward raises", "reward length", "reward not finite", "reward unknown", "reward file",
)  # fmt: skip


@pytest.mark.full
@pytest.mark.timeout(180)
@pytest.mark.parametrize("name", NAMES)
def test_bad_rows_prompts_and_rewards_end_in_one_sentence(name, answers):
    outcome, sentence, run_dir = answers[name]
    assert_one_sentence(outcome["code"], outcome["stderr"], sentence)
    assert outcome["code"] == 2
    assert not (run_dir / "checkpoints").exists()


@pytest.mark.full
@pytest.mark.timeout(180)
def test_the_traceback_of_a_users_function_is_in_the_dump(answers):
    _, _, run_dir = answers["reward raises"]
    record = json.loads((run_dir / "dumps" / "step_1" / "rank_0.json").read_text())
    assert re.search(r'File ".*user_rewards\.py", line \d+, in raises\n    raise KeyError', record["details"])


@pytest.mark.full
@pytest.mark.timeout(60)
def test_a_batch_that_two_ranks_cannot_share_is_one_sentence_on_both(tmp_path):
    arguments = [
        "train",
        BASE,
        f"output_dir={tmp_path / 'run'}",
        "train.num_prompts_per_step=6",
        "train.num_minibatches=2",
    ]
    for ended in run_ranks([*CLI, *arguments], tmp_path, num_ranks=2):
        assert_one_sentence(
            ended.code,
            ended.stderr,
            r"each minibatch has 3 prompts \(train.num_prompts_per_step / train.num_minibatches\), which 2 ranks "
            "cannot share evenly: set train.num_prompts_per_step=8",
        )


# Run folders that must not be continued.


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> Path:
    """A run of two steps with a checkpoint after each."""
    root = tmp_path_factory.mktemp("finished")
    arguments = ["train", BASE, f"output_dir={root / 'run'}", "train.max_steps=2", "checkpoint.save_steps=1"]
    (outcome,) = run_commands([arguments], root / "commands")
    assert outcome["code"] == 0, outcome["stderr"][-3000:]
    return root / "run"


@pytest.fixture(scope="module")
def refused(finished, tmp_path_factory) -> dict[str, tuple[dict[str, Any], dict[str, bytes], Path]]:
    """What continuing each spoilt copy of the run gave, the copy before, and where it lies."""
    root = tmp_path_factory.mktemp("refused")
    changes = {
        "setting": ["train.learning_rate=5.0e-4"],
        "rows": ["data.train=synthetic:shapes?seed=1&num_rows=32@train"],
        "no checkpoint": [],
        "damaged": [],
    }
    copies = {name: Path(shutil.copytree(finished, root / name)) for name in changes}
    shutil.rmtree(copies["no checkpoint"] / "checkpoints")
    for weights in (copies["damaged"] / "checkpoints").rglob("model.safetensors"):
        weights.write_bytes(weights.read_bytes()[:-1])
    before = {name: contents(copy) for name, copy in copies.items()}
    commands = [
        ["train", BASE, f"output_dir={copies[name]}", "checkpoint.save_steps=1", "train.max_steps=3", *overrides]
        for name, overrides in changes.items()
    ]
    done = run_commands(commands, root / "commands")
    return {name: (outcome, before[name], copies[name]) for name, outcome in zip(changes, done, strict=True)}


@pytest.mark.full
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "name,sentence",
    [
        (
            "setting",
            ".*/step_000002 belongs to another setting: train.learning_rate was 0.001 and is now 0.0005. Use .*",
        ),
        ("rows", ".*/step_000002 belongs to another setting: data.train was .*; training rows was .* and is now .*"),
        ("no checkpoint", ".* holds 2 trained steps but no checkpoint to continue from: remove the folder or .*"),
        ("damaged", "no checkpoint in .* can be used \\(.* differs from the manifest\\): move the folder away .*"),
    ],
)
def test_a_run_that_cannot_go_on_is_refused_in_one_sentence_and_left_alone(name, sentence, refused):
    outcome, before, run_dir = refused[name]
    assert_one_sentence(outcome["code"], outcome["stderr"], sentence)
    assert outcome["code"] == 3
    assert contents(run_dir) == before
