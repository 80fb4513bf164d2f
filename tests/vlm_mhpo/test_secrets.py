"""Passwords and tokens of the environment, of addresses and of reward settings stay out of all that a run leaves."""

import json
from pathlib import Path

import pytest

from tests.system.ranks import CLI, REPOSITORY, run_commands, run_ranks
from vlm_mhpo import cli
from vlm_mhpo.runtime.secrets import overrides_without_secrets, without_secrets

MARKER = "Marked-Secret-4711"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (f"https://user:{MARKER}@host/rows.jsonl", "https://***@host/rows.jsonl"),
        (f"s3://{MARKER}@bucket/key", "s3://***@bucket/key"),
        (f"no data at 'https://user:{MARKER}@host:8443/a b'", "no data at 'https://***@host:8443/a b'"),
        (f"https://host/a?x=1&X-Amz-Signature={MARKER}&y=2", "https://host/a?x=1&X-Amz-Signature=***&y=2"),
        (f"https://host/a?token={MARKER}", "https://host/a?token=***"),
        ({"kwargs": {"api_key": MARKER, "model": "judge"}}, {"kwargs": {"api_key": "***", "model": "judge"}}),
        ({"token": MARKER, "passwd": MARKER, "hf_token": MARKER}, {"token": "***", "passwd": "***", "hf_token": "***"}),
        ([f"http://{MARKER}@h", 1, None], ["http://***@h", 1, None]),
        # Honest values stay as they are.
        ("runs/a@train", "runs/a@train"),
        ("synthetic:shapes?seed=0&num_rows=100@train", "synthetic:shapes?seed=0&num_rows=100@train"),
        ("org/name:configuration@test", "org/name:configuration@test"),
        ({"max_tokens_per_micro_batch": 16384, "end_token": 7}, {"max_tokens_per_micro_batch": 16384, "end_token": 7}),
        ("https://host/a@b", "https://host/a@b"),
        ({"answer_key": "gold", "token": None, "password": ""}, {"answer_key": "gold", "token": None, "password": ""}),
    ],
)
def test_what_is_masked_and_what_is_not(value, expected):
    assert without_secrets(value) == expected


@pytest.mark.parametrize("name", ["HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OUR_JUDGE_PASSWORD"])
def test_the_value_of_a_secret_variable_is_masked_wherever_it_stands(monkeypatch, name):
    monkeypatch.setenv(name, MARKER)
    assert without_secrets({"kwargs": {"header": f"Bearer {MARKER}"}}) == {"kwargs": {"header": "Bearer ***"}}
    monkeypatch.setenv(name, "short")
    assert without_secrets("a short word") == "a short word"


def test_overrides_are_shown_as_given_but_for_their_secrets():
    given = [
        "train.learning_rate=1e-6",
        "output_dir='a b'",
        f"rewards.functions=[{{name: judge, kwargs: {{api_key: {MARKER}, port: 80}}}}]",
        f"judge.token={MARKER}",
        f"data.train=s3://{MARKER}@bucket/rows",
    ]
    assert overrides_without_secrets(given) == (
        "train.learning_rate=1e-6 output_dir='a b' "
        "rewards.functions=[{'name': 'judge', 'kwargs': {'api_key': '***', 'port': 80}}] "
        "judge.token=*** data.train=s3://***@bucket/rows"
    )


def test_an_error_about_an_address_hides_its_password(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["vlm-mhpo", "prepare", f"https://user:{MARKER}@host/rows.jsonl", "--out", "x"])
    # Torch may be loaded by other tests; a command line has no ranks to end.
    monkeypatch.setattr("vlm_mhpo.runtime.ranks.end", lambda code: None)
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "https://***@host/rows.jsonl" in said and MARKER not in said


REWARD = """
def judge(completions, **kwargs):
    assert kwargs["api_key"] == kwargs["header"].split()[-1], "the reward itself gets the real value"
    return [float(len(text) % 2) for text in completions]


def unreachable(completions, **kwargs):
    raise ConnectionError(f"{kwargs['header']} was refused by {kwargs['address']}")
"""
SECRETS = dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY", "OUR_JUDGE_TOKEN"), MARKER)
BASE = REPOSITORY / "tests/system/base.yaml"


def judged_by(folder: Path, function: str) -> list[str]:
    """Overrides of one short step whose reward is told secrets in three ways."""
    reward = folder / "judge.py"
    reward.write_text(REWARD)
    functions = (
        f"rewards.functions=[{{name: accuracy}}, {{name: judge, path: '{reward}:{function}', "
        "kwargs: {api_key: '${oc.env:OUR_JUDGE_TOKEN}', header: 'Bearer ${oc.env:OUR_JUDGE_TOKEN}', "
        f"address: 'https://user:{MARKER}@host/v1'}}}}]"
    )
    return ["train.max_steps=1", "data.eval=null", functions]


@pytest.mark.full
@pytest.mark.timeout(300)
def test_a_run_leaves_no_secret_in_any_file_or_line(tmp_path):
    run_dir = tmp_path / "run"
    arguments = [
        *CLI, "train", BASE, f"output_dir={run_dir}", *judged_by(tmp_path, "judge"),
        "logging.report=true", "logging.tensorboard=true", "logging.sample_steps=1",
    ]  # fmt: skip
    (ended,) = run_ranks(arguments, tmp_path / "logs", timeout_s=240, **SECRETS)
    assert ended.code == 0, ended.stderr[-2000:]
    assert leaks(run_dir) == [] and leaks(tmp_path / "logs") == []
    names = {path.name for path in run_dir.rglob("*")}
    assert {"run.json", "config.yaml", "metrics.jsonl", "report.html", "state.json"} <= names
    kwargs = json.loads((run_dir / "run.json").read_text())["config"]["rewards"]["functions"][1]["kwargs"]
    assert kwargs == {"api_key": "***", "header": "Bearer ***", "address": "https://***@host/v1"}


@pytest.mark.full
@pytest.mark.timeout(300)
def test_neither_a_dump_nor_a_profile_nor_a_comparison_holds_a_secret(tmp_path, monkeypatch):
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    left, honest = tmp_path / "left", judged_by(tmp_path, "judge")
    commands = [
        ["train", BASE, f"output_dir={left / 'failed'}", *judged_by(tmp_path, "unreachable")],
        ["profile", BASE, f"output_dir={left / 'profiled'}", *honest, "--steps", 1],
        [
            "compare",
            BASE,
            *honest[:1],
            honest[2],
            "--objectives",
            "mhpo,grpo",
            "--seeds",
            "0,1",
            "--out",
            left / "compared",
        ],
    ]
    failed, profiled, compared = run_commands(commands, tmp_path / "commands", timeout_s=280)
    assert failed["code"] == 2 and "Bearer *** was refused by https://***@host/v1" in failed["stderr"]
    assert (profiled["code"], compared["code"]) == (0, 0), profiled["stderr"] + compared["stderr"]
    assert MARKER not in "".join(each["stdout"] + each["stderr"] for each in (failed, profiled, compared))
    names = {path.name for path in left.rglob("*")}
    assert {"rank_0.json", "profile.json", "comparison.json", "comparison.html"} <= names
    assert leaks(left) == []


def leaks(folder: Path) -> list[str]:
    """The files that hold the marker."""
    return [str(path) for path in folder.rglob("*") if path.is_file() and MARKER.encode() in path.read_bytes()]
