"""Start programs on several gloo ranks of this machine, with a time limit, and end what they leave."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
CLI = ("-m", "vlm_mhpo.cli")


@dataclass(frozen=True)
class Ended:
    """How one process ended: its exit code (negative = a signal, None = cut off by the time limit) and its output."""

    code: int | None
    stdout: str
    stderr: str


def run_ranks(
    arguments: Sequence[str | Path], folder: Path, *, num_ranks: int = 1, timeout_s: float = 120.0, **env: str
) -> list[Ended]:
    """Run `python ARGUMENTS` once per rank, as torchrun would, and wait for all of them.

    As with torchrun, one rank that fails ends the others, after a few seconds in which they may end by themselves.

    Args:
        arguments: of the interpreter, for example ("-m", "vlm_mhpo.cli", "train", file).
        folder: where the outputs are kept, one pair of files a rank.
        num_ranks: processes; 1 = a plain process without any launcher's variables.
        timeout_s: after it all processes are killed; their code is None.
        env: more environment variables.
    """
    command = [sys.executable, *map(str, arguments)]
    port = str(free_port())
    surroundings = [environment(rank, num_ranks, port, env) for rank in range(num_ranks)]
    return run_together([command] * num_ranks, surroundings, folder, timeout_s=timeout_s)


def fork_ranks(module: str, *arguments: Path, folder: Path, num_ranks: int, timeout_s: float = 120.0) -> None:
    """Call `module.main(*arguments)` on so many ranks, see `tests.system.forked`; all must end well."""
    folder.mkdir(parents=True, exist_ok=True)
    command = ("-m", "tests.system.forked", str(num_ranks), str(free_port()), folder, module, *arguments)
    (parent,) = run_ranks(command, folder / "forked", timeout_s=timeout_s)
    told = [(folder / f"rank{rank}.err").read_text()[-3000:] for rank in range(num_ranks)]
    assert parent.code == 0, "\n".join([parent.stderr[-1000:], *told])


def run_together(
    commands: Sequence[Sequence[str]],
    surroundings: Sequence[Mapping[str, str]],
    folder: Path,
    *,
    timeout_s: float,
    name: str = "rank",
) -> list[Ended]:
    """Run a command in each of the environments at once and wait for all, as `run_ranks` does."""
    folder.mkdir(parents=True, exist_ok=True)
    processes, files = [], []
    for index, (command, env) in enumerate(zip(commands, surroundings, strict=True)):
        names = [folder / f"{name}{index}.{stream}" for stream in ("out", "err")]
        files.append(names)
        with names[0].open("w") as out, names[1].open("w") as err:
            processes.append(
                subprocess.Popen(
                    command,
                    cwd=REPOSITORY,
                    env=env,
                    stdin=subprocess.DEVNULL,
                    stdout=out,
                    stderr=err,
                    start_new_session=True,
                )
            )
    cut_off = wait(processes, timeout_s)
    return [
        Ended(None if index in cut_off else process.returncode, out.read_text(), err.read_text())
        for index, (process, (out, err)) in enumerate(zip(processes, files, strict=True))
    ]


def run_commands(commands: Sequence[Sequence[object]], folder: Path, timeout_s: float = 120.0) -> list[dict[str, Any]]:
    """Run `vlm-mhpo` command lines one after the other in one new process; {code, stdout, stderr} of each."""
    folder.mkdir(parents=True, exist_ok=True)
    requests, answers = folder / "commands.json", folder / "answers.json"
    requests.write_text(json.dumps([[str(part) for part in command] for command in commands]))
    (ended,) = run_ranks(("-m", "tests.system.drive_commands", requests, answers), folder, timeout_s=timeout_s)
    assert ended.code == 0, ended.stderr[-3000:]
    return json.loads(answers.read_text())


def wait(processes: Sequence[subprocess.Popen], timeout_s: float, grace_s: float = 15.0) -> set[int]:
    """Wait for all; returns the ranks that had to be killed because of the time limit."""
    deadline = time.monotonic() + timeout_s
    try:
        while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
            if any(process.returncode for process in processes):
                deadline = min(deadline, time.monotonic() + grace_s)
                grace_s = float("inf")
            time.sleep(0.05)
    finally:
        late = {rank for rank, process in enumerate(processes) if process.poll() is None}
        for process in processes:
            kill_group(process)
            process.wait()
    return late


def kill_group(process: subprocess.Popen) -> None:
    """Kill a process that we started and the workers it left in its own session."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def environment(rank: int, num_ranks: int, port: str, more: Mapping[str, str]) -> dict[str, str]:
    """The variables of one rank: offline, one thread, no GPU, and torchrun's own when there is more than one."""
    values = dict(os.environ)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        values.pop(name, None)
    values |= {
        "OMP_NUM_THREADS": "1",
        "CUDA_VISIBLE_DEVICES": "",
        "DS_ACCELERATOR": "cpu",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "PYTHONPATH": str(REPOSITORY),
        "COLUMNS": "200",
    }
    if num_ranks > 1:
        values |= {
            "RANK": str(rank),
            "WORLD_SIZE": str(num_ranks),
            "LOCAL_RANK": str(rank),
            "LOCAL_WORLD_SIZE": str(num_ranks),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
        }
    return values | more


def free_port() -> int:
    """A port that nobody listens on, outside the range that the system hands out by itself; never twice the same.

    The ranks bind it seconds later, when a port out of that range may be another test's.
    """
    for number in PORTS:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", number))
            return number
    raise AssertionError("no free port")


# Another start for each process that runs tests.
PORTS = iter(itertools.chain(*([range(20_000 + 89 * os.getpid() % 11_000, 32_000), range(20_000, 32_000)])))
