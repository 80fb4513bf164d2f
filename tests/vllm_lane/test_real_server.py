"""Rollouts on a real vLLM server (CPU), on request: VLLM_PYTHON names the python of an environment that has vllm.

    VLLM_PYTHON=.venv-vllm/bin/python python -m pytest -m vllm -s tests/vllm_lane

`scripts/install_vllm.sh --cpu` makes the environment. One server at a time; a start takes one to three minutes. Prints
the gap of log-probs, nats, between server and stock transformers before and after every sync.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from contextlib import contextmanager, nullcontext
from pathlib import Path

import httpx2
import pytest
import torch

from tests.builders import Tiny, build_and_load, plain_log_probs, problem_row, prompts_of
from vlm_mhpo.config import VllmConfig, load_config
from vlm_mhpo.errors import RolloutError
from vlm_mhpo.rollout.base import SamplingParams
from vlm_mhpo.rollout.vllm import sync as syncing
from vlm_mhpo.rollout.vllm.sampler import VllmSampler
from vlm_mhpo.rollout.vllm.sync import FilesSync, GlooSync
from vlm_mhpo.types import Prompt

PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(not PYTHON, reason="VLLM_PYTHON names no python that has vllm (scripts/install_vllm.sh --cpu)"),
]
ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ("qwen2_5_vl", "qwen2_vl", "qwen3_vl", "qwen2")
PARAMS = SamplingParams(num_samples=4, max_tokens=12, temperature=0.7)
TOKEN = "sesame-of-the-lane-4711"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def served(model: Path, tmp: Path, *, images: int = 2, sync: str = "files"):
    """A server of scripts/serve_rollouts.sh: its address and the process; all of it has ended behind it."""
    token, port = tmp / "token", free_port()
    token.write_text(TOKEN)
    options = ["--cpu", "--dtype", "float32", "--max-len", "512", "--images", str(images), "--port", str(port)]
    options += [
        "--token-file",
        str(token),
        "--venv",
        str(Path(PYTHON).parent.parent),
        "--logs",
        str(tmp),
        "--sync",
        sync,
    ]
    # Caches hold whole blocks; the smallest that a CPU has.
    command = ["bash", str(ROOT / "scripts/serve_rollouts.sh"), str(model), *options, "--", "--block-size", "32"]
    clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=clean, start_new_session=True)
    url, begun = f"http://127.0.0.1:{port}", time.monotonic()
    try:
        while time.monotonic() - begun < 600:
            try:
                if httpx2.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx2.HTTPError:
                time.sleep(1)
            assert process.poll() is None, (tmp / f"server_{port}.log").read_text()[-2000:]
        print(f"\n{model.name}: server up after {time.monotonic() - begun:.0f} s")
        yield url, process
    finally:
        process.terminate()
        process.wait(timeout=60)


def sampler_of(model: Tiny, url: str, tmp: Path, kind=FilesSync, **options) -> VllmSampler:
    config = VllmConfig(servers=[url], token_file=str(tmp / "token"), sync_dir=str(tmp / "sync"), **options)
    weights = kind(config, model.policy, lambda _=(): nullcontext())
    return VllmSampler(config, model.policy, model.codec, sync=weights, is_collective=True)


def moved(model: Tiny, seed: int, scale: float = 0.3) -> None:
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.policy.parameters():
            weight.add_(scale * weight.abs().mean() * torch.randn(weight.shape, generator=random))


def gap(model: Tiny, groups) -> tuple[float, float]:
    gaps = [
        (one.log_probs.double() - plain_log_probs(model, group.prompt, one.token_ids, 0.7).detach().double()).abs()
        for group in groups
        for one in group.completions
    ]
    return float(torch.cat(gaps).max()), float(torch.cat(gaps).mean())


def prompts_for(model: Tiny) -> list[Prompt]:
    """Some with more tokens than a block of the cache."""
    text = problem_row("long text", "What is red plus blue? " * 12)
    return [*prompts_of(model), *prompts_of(model, [text])]


def check_syncs(model: Tiny, sampler: VllmSampler, num_syncs: int) -> None:
    """After every sync the log-probs are the trainer's, and before it they are not."""
    prompts = prompts_for(model)
    for step in range(num_syncs):
        begun = time.monotonic()
        sampler.sync(step)
        spent = time.monotonic() - begun
        groups = sampler.sample(prompts, PARAMS, (0, "rollout", step))
        after = gap(model, groups)
        moved(model, step)
        before = gap(model, groups)
        print(
            f"{model.family} sync {step}: {spent:.2f} s, gap after it {after[0]:.1e} (mean {after[1]:.1e}), "
            f"before the next {before[0]:.1e}"
        )
        assert after[0] < 1e-4 < 0.1 < before[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_real_server_follows_the_trainer(tmp_path, family, monkeypatch):
    model = build_and_load(tmp_path / family, family)
    with served(model.folder, tmp_path, images=2 if model.has_vision else 0) as (url, _):
        for path, method in (("/weight_info", "GET"), ("/collective_rpc", "POST"), ("/inference/v1/generate", "POST")):
            assert httpx2.request(method, url + path, timeout=10).status_code == 401, path
        sampler = sampler_of(model, url, tmp_path)
        check_syncs(model, sampler, 3)
        check_that_lies_are_found(model, sampler, monkeypatch)
        if family == "qwen2_5_vl":
            check_training(model, url, tmp_path)
        sampler.close()


def check_that_lies_are_found(model: Tiny, sampler: VllmSampler, monkeypatch) -> None:
    """Each of three ways to serve other weights than the trainer's, all of which the server reports as success."""
    prompts, ways = prompts_for(model), {}
    told, close, layers = r"do not hold the policy", syncing.close_update, sampler.weights.layers

    async def no_reset(server, timeout_s, version, total):
        with monkeypatch.context() as patch:
            patch.setattr(syncing, "CACHES", ())
            await close(server, timeout_s, version, total)

    async def nothing_given(self, server):
        await server.client.call("/update_weight_version", {"new_version": self.version}, timeout_s=30)

    async def no_pause(server, timeout_s, init, join=None):
        await server.client.call("/init_weight_transfer_engine", {"init_info": init}, timeout_s=timeout_s)
        await server.client.call("/start_weight_update", timeout_s=timeout_s)

    ways["skipped push"] = lambda patch: patch.setattr(FilesSync, "_give", nothing_given)
    ways["half a push"] = lambda patch: patch.setattr(sampler.weights, "layers", layers[: len(layers) // 2])
    ways["no cache reset, no pause"] = lambda patch: (
        patch.setattr(syncing, "close_update", no_reset),
        patch.setattr(syncing, "open_update", no_pause),
    )
    for number, (way, change) in enumerate(ways.items(), start=100):
        # Fills the caches with what the weights of now say.
        sampler.sync(2 * number)
        sampler.sample(prompts, PARAMS, (0, way))
        moved(model, number)
        with monkeypatch.context() as patch:
            change(patch)
            sampler.sync(2 * number + 1)
            with pytest.raises(RolloutError, match=told) as caught:
                sampler.sample(prompts, PARAMS, (0, way))
        print(f"{model.family} {way}: found ({str(caught.value).partition('(')[2].partition(')')[0]})")


def check_training(model: Tiny, url: str, tmp: Path) -> None:
    """20 steps with a sync each: every step's tokens are the trainer's."""
    from vlm_mhpo.training.run import train

    values = [f"output_dir={tmp / 'run'}", f"model.path={model.folder}", "train.max_steps=20", "rollout.engine=vllm"]
    values += [f"rollout.vllm.servers=[{url}]", f"rollout.vllm.token_file={tmp / 'token'}"]
    values += [f"rollout.vllm.sync_dir={tmp / 'sync'}", "rollout.mismatch.mode=token", "checkpoint.save_steps=0"]
    train(load_config(ROOT / "tests/system/base.yaml", values))
    rows = [json.loads(line) for line in (tmp / "run/metrics.jsonl").read_text().splitlines()]
    steps = [row for row in rows if "sampling/sync_time" in row]
    largest = max(row.get("sampling/sampling_logp_difference/max", 0.0) for row in steps)
    sync, whole = (sum(row[name] for row in steps) / len(steps) for name in ("sampling/sync_time", "step_time"))
    print(f"20 steps: largest gap {largest:.1e}, sync {sync:.2f} s a step of {whole:.2f} s")
    assert len(steps) >= 20 and largest < 1e-3
    assert TOKEN not in "".join(path.read_text() for path in (tmp / "run").glob("*.json*"))


def test_a_server_killed_in_a_step_changes_no_reward(tmp_path):
    """It is killed while it answers, started again with the weights of the disk, and given the current ones."""
    model = build_and_load(tmp_path / "qwen2_5_vl", "qwen2_5_vl")
    moved(model, 5)
    prompts = prompts_of(model) * 4
    long = SamplingParams(num_samples=8, max_tokens=64)
    with served(model.folder, tmp_path) as (url, process):
        sampler = sampler_of(model, url, tmp_path, request_timeout=120)
        sampler.sync(3)
        undisturbed = sampler.sample(prompts, long, (0, "rollout", 3))
        # The server's own, which the script has told; the script goes on.
        group = int(process.stdout.readline().rpartition("process group ")[2].rstrip(")\n"))

        def kill() -> None:
            if not killed:
                killed.append(group)
                os.killpg(group, signal.SIGKILL)

        killed: list[int] = []
        answers: list = []
        sampler.config = sampler.config.model_copy(update={"give_up_after": 0.05})
        with pytest.raises(RolloutError, match="no rollout server has been fit"):
            sampler.sample(prompts, long, (0, "rollout", 3), answers.extend, kill)
        assert killed
    with served(model.folder, tmp_path) as (again, _):
        sampler.servers.all[0].client.url = again
        sampler.config = sampler.config.model_copy(update={"give_up_after": 5.0})
        found = sampler.sample(prompts, long, (0, "rollout", 3))
        assert [group.completions for group in found] == [group.completions for group in undisturbed]
        print("killed and started again: same tokens and log-probs")
        sampler.close()


def test_weights_over_gloo(tmp_path):
    model = build_and_load(tmp_path / "qwen2_5_vl", "qwen2_5_vl")
    with served(model.folder, tmp_path, sync="gloo") as (url, _):
        sampler = sampler_of(model, url, tmp_path, GlooSync)
        check_syncs(model, sampler, 3)
        sampler.close()
