"""`vlm-mhpo compare`: bad input is one sentence and nothing has started; good input ends in a report."""

from __future__ import annotations

import json
import sys

import pytest

from tests.vlm_mhpo.test_comparison.cases import QUICKSTART, Trainer
from vlm_mhpo import cli


@pytest.fixture
def command(monkeypatch, capsys):
    """`command(arguments...)` -> exit status, standard output, standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["vlm-mhpo", "compare", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        return (caught.value.code or 0, *capsys.readouterr())

    return call


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["--objectives", "mhpo,ppo"], "'ppo'"),
        (["--objectives", ","], "--objectives"),
        (["--objectives", "grpo,grpo"], "twice"),
        (["--objectives", "grpo,mhpo:c"], "key=value"),
        (["--objectives", "grpo,mhpo:c=-1"], "objective.c"),
        (["--objectives", "grpo,mhpo:tau_pos=1"], "tau_pos"),
        (["--objectives", "grpo,mhpo:c="], "objective.c"),
        (["--objectives", "grpo,mhpo:c=[1"], "YAML"),
        (["--seeds", "5..2"], "--seeds"),
        (["--seeds", "0,0"], "--seeds"),
        (["--seeds", "many"], "--seeds"),
        (["--baseline", "sapo"], "--baseline"),
        (["--objectives", "mhpo"], "--baseline"),
        (["train.max_step=3"], "max_steps"),
        (["data.eval=null"], "data.eval"),
    ],
)
def test_bad_input_is_one_sentence_and_nothing_starts(command, trainer: Trainer, tmp_path, arguments, named):
    code, out, err = command(QUICKSTART, *arguments, "--out", tmp_path / "out")
    assert code == 2 and out == ""
    assert err.startswith("error: ") and err.count("\n") == 1 and named in err, err
    assert trainer.starts == [] and not (tmp_path / "out").exists()


def test_a_missing_configuration_is_one_sentence(command, trainer: Trainer, tmp_path):
    code, _, err = command(tmp_path / "none.yaml", "--out", tmp_path / "out")
    assert code == 2 and err.startswith("error: no configuration file at ") and err.count("\n") == 1


def test_a_failing_run_ends_in_an_error_that_names_it(command, trainer: Trainer, tmp_path):
    trainer.set(fails=["mhpo1"])
    code, _, err = command(QUICKSTART, "--seeds", "0,1", "--out", tmp_path / "out")
    assert code == 2 and "error: mhpo with seed 1 failed" in err and "Traceback" not in err
    assert not (tmp_path / "out" / "comparison.html").exists()


def test_a_comparison_writes_its_report_and_a_second_call_starts_nothing(command, trainer: Trainer, tmp_path):
    arguments = (QUICKSTART, "train.max_steps=1", "--seeds", "0..2", "--out", tmp_path / "out", "--jobs", 2)
    code, out, _ = command(*arguments)
    assert code == 0 and len(trainer.starts) == 6
    assert str(tmp_path / "out" / "comparison.html") in out
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    # The stub gives mhpo a quarter more than grpo on every seed.
    difference = record["paired_differences"]["mhpo"]["accuracy"]
    # All seeds alike tell no spread, so there is no interval.
    assert difference == {"mean": 0.25, "low": None, "high": None, "num_seeds": 3}
    assert "3 seeds" in record["description"] and "train.max_steps=1" in record["description"]
    page = (tmp_path / "out" / "comparison.html").read_bytes()
    assert command(*arguments)[0] == 0 and len(trainer.starts) == 6
    assert (tmp_path / "out" / "comparison.html").read_bytes() == page


def test_a_variant_with_constants_can_be_the_baseline_by_its_own_text(command, trainer: Trainer, tmp_path):
    text = "mhpo:c=1.0"
    code, _, err = command(QUICKSTART, "--objectives", f"{text},grpo", "--baseline", text, "--out", tmp_path / "out")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert list(record["paired_differences"]) == ["grpo"]
