"""The doctor sees bad golds, long prompts, wrong versions and full disks, and says what to change."""

from __future__ import annotations

import json
import shutil
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.builders import picture
from tests.vlm_mhpo.bfloat16_cases import build_and_load_bfloat16
from vlm_mhpo import cli
from vlm_mhpo.commands.doctor import Check, Options, examine, parity
from vlm_mhpo.commands.doctor.environment import examine_versions
from vlm_mhpo.config import Config, load_config

BASE = Path(__file__).parents[1] / "system" / "base.yaml"
SIDE = 28


def config_of(tmp_path: Path, rows: list[dict], *overrides: str) -> Config:
    """A run on these rows, training and held-out."""
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in rows))
    return load_config(BASE, [f"data.train={file}", f"data.eval={file}", f"output_dir={tmp_path}/run", *overrides])


def row(problem: str, answer: str = "7", **more) -> dict:
    return {"problem": problem, "answer": answer, **more}


def found(findings: list[Check], subject: str) -> Check:
    (only,) = [finding for finding in findings if finding.subject == subject]
    return only


def test_a_gold_that_does_not_verify_is_named_with_its_row(tmp_path):
    rows = [row("What is 3 + 4 ?"), row("What is x ?", "unknown", kind="number"), row("5 + 5 ?", "10")]
    findings = examine(config_of(tmp_path, rows), Options(quick=False))
    golds = found(findings, "training golds")
    assert golds.state == "warning"
    assert golds.text.startswith("2 of 3 golds verify (3 rows in all); row ")
    assert "'unknown'" in golds.text and "vlm-mhpo prepare" in golds.text


def test_the_number_of_rows_that_are_looked_at_is_bounded_and_said(tmp_path):
    rows = [row(f"What is {n} + 1 ?", str(n + 1)) for n in range(20)]
    findings = examine(config_of(tmp_path, rows), Options(quick=False, num_rows=5))
    assert found(findings, "training golds").text == "5 of 5 golds verify (20 rows in all)"
    assert found(findings, "held-out prompts").text.startswith("longest of 5, of data.max_prompt_length=64: row ")


def test_a_picture_that_makes_a_prompt_too_long_is_named_with_the_pixels_that_would_fit(tmp_path):
    for name, side in (("small", 2), ("large", 12)):
        (tmp_path / f"{name}.png").write_bytes(picture(side * SIDE, side * SIDE))
    rows = [row("What is 3 + 4 ?", images=["small.png"]), row("What is 3 + 4 ?", images=["large.png"])]
    config = config_of(tmp_path, rows)
    prompts = found(examine(config, Options(quick=False)), "training prompts")
    # 144 image tokens beside a few of text in a limit of 64.
    assert prompts.state == "warning" and "144 of them of images" in prompts.text
    pixels = int(prompts.text.rpartition("model.max_pixels=")[2])
    wider = config.model_copy(update={"model": config.model.model_copy(update={"max_pixels": pixels})})
    assert found(examine(wider, Options(quick=False)), "training prompts").state == "ok"
    # It is the largest that fits: the text leaves room for less than one token more.
    tokens = int(prompts.text.split(" tokens, 144")[0].rpartition(" ")[2]) - 144
    assert pixels == (64 - tokens) * SIDE**2


def test_rows_are_not_read_when_quick_or_when_something_is_red(tmp_path):
    config = config_of(tmp_path, [row("What is 3 + 4 ?")])
    assert not any("golds" in finding.subject for finding in examine(config))
    (tmp_path / "rows.jsonl").unlink()
    findings = examine(config, Options(quick=False))
    assert found(findings, "rows").text.startswith("not examined")
    assert found(findings, "data.train").state == "error"


def test_sampler_and_trainer_agree_on_a_tiny_model_and_a_wrong_sampler_is_an_error(tmp_path, monkeypatch):
    config = config_of(tmp_path, [row("What is 3 + 4 ?"), row("What is 1 + 1 ?", "2")])
    assert found(examine(config, Options(parity=True)), "log-prob parity").state == "ok"
    from vlm_mhpo.rollout.hf import decoding

    real = decoding.scaled_logits
    monkeypatch.setattr(decoding, "scaled_logits", lambda logits, banned, temperature: real(logits, banned, 1.1))
    assert found(examine(config, Options(parity=True)), "log-prob parity").state == "error"


def test_what_parity_advises_helps_a_model_that_bfloat16_rounds_to_another(tmp_path, monkeypatch):
    """Logits of 20 and keys of 60: some 0.02 nats in bfloat16, 1e-4 at most in float32."""
    monkeypatch.setitem(parity.LIMITS, "bfloat16", ("mean", 0.005))
    folder = tmp_path / "model"
    model = build_and_load_bfloat16(folder, "qwen2", 60.0)
    model.policy.float().model.save_pretrained(folder)

    def check_of(*overrides: str) -> Check:
        config = config_of(tmp_path, [row("What is 3 + 4 ?"), row("What is 1 + 1 ?", "2")], *overrides)
        return found(examine(config, Options(parity=True)), "log-prob parity")

    rounded = check_of(f"model.path={folder}", "model.dtype=bfloat16")
    assert rounded.state == "error", rounded.text
    advice = rounded.text.rpartition("--parity ")[2].partition("`")[0]
    assert check_of(f"model.path={folder}", advice).state == "ok"


def test_a_package_outside_its_bounds_or_missing_is_said():
    wanted = [Requirement("torch>=2.9"), Requirement("deepspeed>=0.19.5,<0.20"), Requirement("rich>=13")]
    installed = {"torch": "2.15.0", "deepspeed": "0.21.0"}
    tested = {"torch": "2.14.1", "deepspeed": "0.21.0"}
    (first, *rest) = examine_versions(wanted, installed, tested)
    assert "torch 2.15.0" in first.text and "transformers missing" in first.text
    assert [(each.state, each.subject) for each in rest] == [
        ("warning", "deepspeed"),
        ("error", "rich"),
        ("warning", "torch"),
    ]
    assert "the tests ran with 2.14.1" in rest[-1].text
    assert len(list(examine_versions(wanted[:1], {"torch": "2.9.0"}, {"torch": "2.9.1"}))) == 1


def test_a_disk_that_is_too_small_for_the_checkpoints_is_an_error(tmp_path, monkeypatch):
    config = config_of(tmp_path, [row("What is 3 + 4 ?")])
    assert found(examine(config), "disk").state == "ok"
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(10**7, 0, 10**7))
    disk = found(examine(config), "disk")
    # 811,456 weights: 4 bytes each for weights and policy, 8 for AdamW; 2 + 1 checkpoints are 37 MiB.
    assert disk.state == "error" and "need 37.1 MiB" in disk.text and "save_total_limit" in disk.text


@pytest.mark.parametrize(("ranks", "code", "sentence"), [("2", 0, "fits"), ("3", 1, "3 ranks cannot share evenly")])
def test_the_command_takes_ranks_and_memory_and_ends_with_its_verdict(ranks, code, sentence, monkeypatch, capsys):
    arguments = ["vlm-mhpo", "doctor", str(BASE), "--quick", "--ranks", ranks, "--gpu-memory", "40"]
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setenv("COLUMNS", "300")
    try:
        cli.main()
        ended = 0
    except SystemExit as stopped:
        ended = stopped.code or 0
    assert ended == code
    assert sentence in capsys.readouterr().out
