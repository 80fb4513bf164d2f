"""Two nodes, each with a launcher of its own: one run in a shared folder, none where each has a disk of its own.

The run is a job of Slurm, which is stood in for (`tests.system.slurm`); launchers, ranks and training are real.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.system.nodes import node_environment, own_disks, own_networks, source_at
from tests.system.outcomes import contents
from tests.system.ranks import free_port, kill_group, run_together
from tests.system.resume_cases import SMALL, rows_of
from tests.system.slurm import logs_of, submit
from tests.vlm_mhpo.test_evaluation.planted import plant_mathvista
from vlm_mhpo import checkpoint

pytestmark = [pytest.mark.full, pytest.mark.timeout(300)]

BASE = Path(__file__).with_name("base.yaml")
HELD = "rewards.functions=[{name: held, path: 'tests/system/user_rewards.py:held_after_two_steps'}]"
OVERRIDES = [*SMALL, HELD, "train.max_steps=3", "deepspeed.zero_stage=2", "checkpoint.save_steps=0"]


@dataclass(frozen=True)
class Job:
    """A job that was told that its time is up after its second step, and its second start.

    Attributes:
        source, folder, run_dir: where the scripts, the logs and the run are.
        codes: of both starts.
        stopped: names of the checkpoints after the first start, and what the nodes then had written to stderr.
        own_networks: whether the nodes had them.
    """

    source: Path
    folder: Path
    run_dir: Path
    codes: tuple[int, int]
    stopped: tuple[list[str], list[str]]
    own_networks: bool


@pytest.fixture(scope="module")
def job(tmp_path_factory) -> Job:
    folder = tmp_path_factory.mktemp("job")
    source, run_dir = source_at(folder / "source"), folder / "run"
    arguments = [str(BASE), f"output_dir={run_dir}", *OVERRIDES]
    run_dir.mkdir()
    (run_dir / "HOLD").touch()
    with own_networks() as nodes:
        batch = submit(folder, source, nodes, arguments, RUN=str(run_dir))
        try:
            wait_until(lambda: has_two_rows(run_dir), batch, folder)
            # To the batch script alone, as --signal=B: does it.
            os.kill(batch.pid, signal.SIGUSR1)
            wait_until(lambda: all("SIGUSR1: stopping" in log for log in errors_of(folder)), batch, folder)
            (run_dir / "HOLD").unlink()
            first = batch.wait(100)
        finally:
            kill_group(batch)
        stopped = ([path.name for path in (run_dir / "checkpoints").iterdir()], errors_of(folder))
        batch = submit(folder, source, nodes, arguments, RUN=str(run_dir))
        try:
            second = batch.wait(120)
        finally:
            kill_group(batch)
    return Job(source, folder, run_dir, (first, second), stopped, bool(nodes[0][0]))


def wait_until(true: Callable[[], bool], batch: subprocess.Popen, folder: Path) -> None:
    """Wait for something that happens while the job runs."""
    deadline = time.monotonic() + 120
    while not true():
        assert batch.poll() is None and time.monotonic() < deadline, logs_of(folder)
        time.sleep(0.1)


def has_two_rows(run_dir: Path) -> bool:
    file = run_dir / "metrics.jsonl"
    return file.exists() and file.read_text().count("\n") == 2


def errors_of(folder: Path) -> list[str]:
    """What each node has written to stderr."""
    return [(folder / f"node{node}.err").read_text() for node in (0, 1)]


def test_a_job_saves_before_its_time_limit_and_goes_back_into_the_queue(job):
    assert job.codes[0] != 0
    names, logs = job.stopped
    assert names == ["step_000002"]
    for log in logs:
        assert "stopped: after step 2 of 3, as asked; its checkpoint is saved" in log
    asked = [line.split()[0] for line in (job.folder / "scontrol").read_text().splitlines()]
    # Each node asks for the name of the first; the second start ends by itself.
    assert asked == ["show", "show", "requeue", "show", "show"], logs_of(job.folder)


def test_out_of_the_queue_again_both_nodes_continue_the_run_to_its_end(job):
    assert job.codes[1] == 0, logs_of(job.folder)
    assert "continuing after step 2 of 3" in logs_of(job.folder)
    assert [row["step"] for row in rows_of(job.run_dir)] == [1, 2, 3]
    step, state = checkpoint.newest_valid(job.run_dir / "checkpoints")
    assert (step, state["world_size"]) == (3, 2)
    shards = [path.name for path in (checkpoint.folder_of(job.run_dir / "checkpoints", 3) / "engine").iterdir()]
    assert len([name for name in shards if "rank_1_" in name]) == len([name for name in shards if "rank_0_" in name])


def test_the_nodes_had_networks_of_their_own(job):
    if not job.own_networks:
        pytest.skip("this machine gives no network namespaces (ip netns add): both nodes were on 127.0.0.1")
    assert job.codes[1] == 0


def test_a_fresh_node_as_rank_0_does_not_begin_anew_what_the_other_has_trained(job, tmp_path):
    """Each has its own disk under the same path; the second holds the run, the first, rank 0 now, holds nothing.

    The two launchers start `drive_disks`: the warm start, an evaluation, and at last the command `train` itself.
    """
    place, disks = tmp_path / "run", [tmp_path / "disk0", tmp_path / "disk1"]
    shutil.copytree(job.run_dir, disks[1])
    before = contents(disks[1])
    prefixes = own_disks(place, disks, tmp_path / "probe")
    asked = {"arguments": [str(BASE), f"output_dir={place}", *OVERRIDES], "out": str(place), "answers": str(tmp_path)}
    asked["benchmark"] = f"mathvista={plant_mathvista(tmp_path / 'benchmarks', 2)}"
    (tmp_path / "request.json").write_text(json.dumps(asked))
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--master_addr=127.0.0.1", f"--master_port={free_port()}"]
    program = ["-m", "tests.system.drive_disks", str(tmp_path / "request.json")]
    env = node_environment()
    commands = [
        [*prefix, env["PYTHON"], *launcher, f"--node_rank={rank}", *program] for rank, prefix in enumerate(prefixes)
    ]
    ended = run_together(commands, [env, env], tmp_path, timeout_s=200, name="node")
    told = f"{place} of rank 1 on "
    for rank, node in enumerate(ended):
        assert node.code not in (0, None)
        assert f"error: output_dir: {told}" in node.stderr and "exitcode  : 2" in node.stderr, node.stderr[-3000:]
        assert "put it on a file system that all nodes share, under the same path" in node.stderr
        answers = json.loads((tmp_path / f"rank{rank}.json").read_text())
        assert answers["sft"].startswith(f"ConfigError: output_dir: {told}"), answers
        assert answers["evaluate"].startswith(f"ConfigError: --out: {told}"), answers
    # A lock, and no word that is left.
    assert list(contents(disks[0])) == [".lock"]
    assert contents(disks[1]) == before


def test_a_launcher_without_the_addresses_says_what_is_missing(job):
    script = ["bash", str(job.source / "scripts" / "train_multinode.sh"), str(BASE)]
    env = node_environment(NNODES="2", NODE_RANK="1")
    ended = subprocess.run(script, env=env, capture_output=True, text=True, timeout=60)
    assert ended.returncode == 2
    assert (
        ended.stderr == "error: MASTER_ADDR is not set: set NNODES, NODE_RANK and MASTER_ADDR, or run this under srun\n"
    )
