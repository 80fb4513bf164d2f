"""Runs of `vlm-mhpo` in which a rank gets a signal at a named place; programs are loaded once and forked for each.

A JSON file lists the runs: name, arguments, num_ranks, more_of (arguments of the second rank), and optionally signal
("raise" = an exception), ranks (which get it), phase, step and token (which call for a token in that phase) or call
(the function whose first call it is). Others: nan (where the second rank meets one; see drive_nan), memory (the
second rank has none to train), away (a folder: the second rank works there, in another time zone, with another home and
its clock two seconds ahead). The answer file tells of each: exit codes, seconds from the
signal to the end of the last rank that could end by itself, and what processes were left.
"""

from __future__ import annotations

import ctypes
import json
import os
import pkgutil
import signal
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

# Loaded once, before the forks.
import deepspeed  # noqa: F401
import torch
import transformers  # noqa: F401

from tests.system import drive_nan
from tests.system.ranks import environment, free_port
from vlm_mhpo import cli
from vlm_mhpo.commands import replay  # noqa: F401
from vlm_mhpo.faults.watchdog import Watchdog
from vlm_mhpo.training import run as training  # noqa: F401

# Of a whole run; what is promised is counted from the signal on.
LIMIT_S = 110.0
PR_SET_CHILD_SUBREAPER = 36


def main(requests: Path, folder: Path) -> None:
    """Run everything that the file asks for."""
    # What a rank leaves behind becomes our child, so it can be seen.
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)
    torch.set_num_threads(1)
    answers = {}
    for request in json.loads(requests.read_text()):
        answers[request["name"]] = run(request, folder)
        (folder / "answers.json").write_text(json.dumps(answers))


def run(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Fork the ranks, wait for them, look for what is left."""
    num_ranks, port = request.get("num_ranks", 1), str(free_port())
    pids = [fork(request, rank, num_ranks, port, folder) for rank in range(num_ranks)]
    frozen = {pids[rank] for rank in request.get("ranks", ())} if request.get("signal") == "SIGSTOP" else set()
    codes: dict[int, int] = {}
    deadline = time.monotonic() + LIMIT_S
    while set(pids) - frozen - codes.keys() and time.monotonic() < deadline:
        collect(codes)
        time.sleep(0.05)
    ended, late = time.monotonic(), set(pids) - frozen - codes.keys()
    for pid in frozen | late:
        os.kill(pid, signal.SIGKILL)
    patience = time.monotonic() + 5
    while children() and time.monotonic() < patience:
        collect(codes)
        time.sleep(0.05)
    strikes = [float(file.read_text()) for file in folder.glob(f"{request['name']}.*.struck")]
    left = [Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")[:200] for pid in children()]
    return {
        "codes": [None if pid in late else codes[pid] for pid in pids],
        "seconds": ended - min(strikes) if strikes else None,
        "left": left,
        "stdout": [(folder / f"{request['name']}.{rank}.out").read_text() for rank in range(num_ranks)],
        "stderr": [(folder / f"{request['name']}.{rank}.err").read_text() for rank in range(num_ranks)],
    }


def collect(codes: dict[int, int]) -> None:
    """Take the exit codes of children that have ended."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if not pid:
            return
        codes[pid] = os.waitstatus_to_exitcode(status)


def children() -> list[int]:
    """Processes that belong to us."""
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def no_memory_to_train(module: torch.nn.Module, args: Any) -> None:
    """A hook on all modules: a text layer finds no memory when gradients are wanted."""
    if torch.is_grad_enabled() and type(module).__name__.endswith("DecoderLayer"):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


def fork(request: dict[str, Any], rank: int, num_ranks: int, port: str, folder: Path) -> int:
    """Start one rank; returns its process id."""
    if pid := os.fork():
        return pid
    os.setsid()
    name = folder / f"{request['name']}.{rank}"
    for stream, suffix in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{name}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.environ.clear()
    os.environ.update(environment(rank, num_ranks, port, {}) | request.get("env", {}))
    if "signal" in request and rank in request["ranks"]:
        arm(request, Path(f"{name}.struck"))
    if "nan" in request and rank == 1:
        drive_nan.arm(request["nan"])
    if "memory" in request and rank == 1:
        torch.nn.modules.module.register_module_forward_pre_hook(no_memory_to_train)
    if "away" in request and rank == 1:
        go_away(request["away"])
    code: Any = 1
    try:
        arguments = [*request["arguments"], *(request.get("more_of", []) if rank else [])]
        with mock.patch.object(sys, "argv", ["vlm-mhpo", *arguments]):
            cli.main()
        code = 0
    except SystemExit as end:
        code = end.code
    finally:
        # As at the interpreter's own exit.
        import atexit
        import traceback

        if sys.exc_info()[0] is not None and code == 1:
            traceback.print_exc()
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code or 0)


def go_away(folder: str) -> None:
    """As on a host that is set up in another way."""
    os.chdir(folder)
    os.environ.update(TZ="Asia/Kathmandu", LANG="tr_TR.UTF-8", LC_ALL="C", HOME=folder, USER="other", HOSTNAME="other")
    time.tzset()
    clock = time.time
    time.time = lambda: clock() + 2.0


def arm(request: dict[str, Any], struck: Path) -> None:
    """Let this process send itself the signal at the place that is asked for."""
    kind, tokens, here = request["signal"], 0, ("", 0)
    place = (request["phase"], request["step"])
    enter, tick = Watchdog.enter, Watchdog.tick

    def strike() -> None:
        if struck.exists():
            return
        if kind in ("SIGKILL", "SIGSTOP"):
            # Until the others have heard where this rank is.
            time.sleep(2.5)
        struck.write_text(str(time.monotonic()))
        if kind == "raise":
            raise RuntimeError("boom")
        os.kill(os.getpid(), signal.Signals[kind])

    def entering(self: Watchdog, phase: str, step: int) -> None:
        nonlocal here
        enter(self, phase, step)
        here = (phase, step)
        if here == place and not {"token", "call"} & request.keys():
            strike()

    def ticking(self: Watchdog) -> None:
        nonlocal tokens
        tick(self)
        tokens += (self._place.phase, self._place.step) == place
        if tokens and tokens == request.get("token"):
            strike()

    def calling(*args: Any, **kwargs: Any) -> Any:
        if here == place:
            strike()
        return called(*args, **kwargs)

    Watchdog.enter, Watchdog.tick = entering, ticking
    if "call" in request:
        called = pkgutil.resolve_name(request["call"])
        mock.patch(request["call"], calling).start()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
