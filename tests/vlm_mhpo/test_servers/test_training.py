"""A training run on a server: what its records say, and how it ends and goes on when the server is gone."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from starlette.responses import PlainTextResponse

from tests.system.ranks import run_ranks
from tests.vlm_mhpo.test_servers.fake_server import FakeServer, fake_of, serving
from vlm_mhpo.config import load_config
from vlm_mhpo.errors import NoServerError
from vlm_mhpo.records.metric_table import metric_of
from vlm_mhpo.rollout.vllm import sampler as sampling
from vlm_mhpo.training.run import train

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]
BASE = Path(__file__).resolve().parents[2] / "system" / "base.yaml"


def overrides_for(server: FakeServer, folder: Path, **more) -> list[str]:
    """A run of three steps on a server."""
    values = {
        "output_dir": folder,
        "model.path": server.model.folder,
        "train.max_steps": 3,
        "rollout.engine": "vllm",
        "rollout.vllm.servers": f"[{server.url}]",
        "rollout.vllm.sync_dir": folder.parent / "sync",
        "rollout.mismatch.mode": "icepop",
        "checkpoint.save_steps": 0,
        **more,
    }
    return [f"{key}={value}" for key, value in values.items()]


def rows_of(folder: Path) -> list[dict]:
    """The rows of metrics.jsonl."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def run_on(server: FakeServer, folder: Path, **more) -> list[dict]:
    """Train in this process."""
    train(load_config(BASE, overrides_for(server, folder, **more)))
    return rows_of(folder)


def learnt(rows: list[dict]) -> list[tuple]:
    """What does not depend on the clock."""
    names = ("reward", "policy_loss", "grad_norm", "completions/mean_length", "eval/accuracy")
    return [tuple(row.get(name) for name in names) for row in rows]


def test_a_run_saves_and_ends_without_a_server_and_goes_on_as_if_nothing_had_happened(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "PROBE_S", 0.05)
    with serving(fake_of(tiny("qwen2_5_vl"))) as server:
        undisturbed = run_on(server, tmp_path / "whole")
    steps = [row for row in undisturbed if "policy_loss" in row]
    assert len(steps) == 3
    assert all(metric_of(name) for row in steps for name in row if name.startswith("sampling/"))
    for row in steps:
        # Old log-probs are the trainer's own, and the server's are the same up to rounding.
        assert row["sampling/sampling_logp_difference/max"] < 1e-4
        low, high = (row[f"sampling/importance_sampling_ratio/{extent}"] for extent in ("min", "max"))
        assert 0.999 < low <= high < 1.001
        assert row["sampling/num_servers"] == 1 and row["sampling/sync_bytes"] > 1e5
        assert 0 < row["sampling/server_0/busy"] <= 1

    def gone(server: FakeServer, path: str, body):
        """From the second step's weights on."""
        if server.version.endswith(":1"):
            return PlainTextResponse("EngineCore encountered an issue", 500)
        return None

    with serving(fake_of(tiny("qwen2_5_vl"), fault=gone)) as server:
        with pytest.raises(NoServerError, match=r"step 2: no rollout server .* after step 1: its checkpoint is saved"):
            run_on(server, tmp_path / "cut", **{"rollout.vllm.give_up_after": 0.01})
        assert [path.name for path in (tmp_path / "cut" / "checkpoints").glob("step_*")] == ["step_000001"]
        server.fault = None
        assert learnt(run_on(server, tmp_path / "cut")) == learnt(undisturbed)


def test_ranks_that_share_the_weights_gather_them_layer_by_layer(tiny, tmp_path):
    """ZeRO-3 on two ranks with a frozen tower: the server gets the policy, and of the tower nothing."""
    # By default ZeRO-3 leaves weights as small as these whole.
    whole = tmp_path / "zero3.json"
    whole.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    more = {"deepspeed.zero_stage": 3, "deepspeed.config": whole, "model.freeze_vision_tower": "true"}
    more |= {"data.eval": "null", "rollout.vllm.give_up_after": 0.2, "train.max_steps": 2}
    with serving(fake_of(tiny("qwen2_5_vl"))) as server:
        values = overrides_for(server, tmp_path / "run", **more)
        ended = run_ranks(("-m", "vlm_mhpo.cli", "train", BASE, *values), tmp_path, num_ranks=2, timeout_s=160)
    assert [one.code for one in ended] == [0, 0], ended[0].stderr[-2000:]
    steps = [row for row in rows_of(tmp_path / "run") if "policy_loss" in row]
    assert len(steps) == 2 and server.pushes == 2
    assert max(row["sampling/sampling_logp_difference/max"] for row in steps) < 1e-4
    assert steps[1]["sampling/fingerprint/max"] < 1e-4 < 0.01 < steps[1]["sampling/fingerprint/moved"]
    assert server.loaded and not any("visual.blocks" in name for name in server.loaded)
