"""Run a program on several CPU ranks of this machine, with a time limit, and tell what it said when it failed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from vlm_mhpo.errors import TrainingError
from vlm_mhpo.runtime.ranks import LAUNCHER_VARIABLES

PROGRAM = "vlm_mhpo.commands.proofs.rank"
# A tiny model needs seconds; what is slow is a first start on a busy machine.
TIMEOUT_S = 900.0


def run_ranks(request: Path, log: Path, *, num_ranks: int, program: str = PROGRAM) -> int:
    """Run `python -m program request`, under torch's launcher when there are several ranks; returns the exit code.

    Args:
        request: a JSON file, see `proofs.rank`.
        log: where all output goes.
        num_ranks: processes.
        program: module that reads the request.
    """
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(num_ranks)]
    command = [sys.executable, *(launcher if num_ranks > 1 else []), "-m", program, str(request)]
    environment = {name: value for name, value in os.environ.items() if name not in LAUNCHER_VARIABLES}
    # On the CPU, where the same run gives the same bits.
    environment |= {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    with log.open("w") as stream:
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(TIMEOUT_S)
        except subprocess.TimeoutExpired as error:
            raise TrainingError(f"the check did not end in {TIMEOUT_S:.0f} s; see {log}: {tail(log)}") from error
        finally:
            # Whatever a launcher that failed has left in the session that we made for it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run_or_fail(request: Path, log: Path, *, num_ranks: int, program: str = PROGRAM) -> None:
    """The same; TrainingError with the end of the output when the program fails."""
    code = run_ranks(request, log, num_ranks=num_ranks, program=program)
    if code:
        raise TrainingError(f"a run of the check ended with exit code {code}: {tail(log)}")


def tail(log: Path) -> str:
    """The error that a log names, else its last words."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    named = [line for line in lines if line.startswith("error: ") or "Error: " in line]
    return (named or lines or ["no output"])[-1][-500:]
