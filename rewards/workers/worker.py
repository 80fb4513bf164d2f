"""Killable worker processes that run math-verify behind sockets.

One nursery process per pool imports math-verify once and forks workers on request, so that replacing a killed
worker takes milliseconds. It is a plain child process (no multiprocessing): it works from threads, from daemonic
processes and without a main guard, and touches neither the caller's signal handlers nor its timers. Time is limited
by the parent, which kills; memory by RLIMIT_AS in the worker. Workers end when their socket or the nursery ends, and
the nursery kills its workers and ends when the parent does. Not a security sandbox: no system calls are filtered.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path

from rewards.types import VerifierError

START_TIMEOUT_S = 60.0
_HEADER = struct.Struct("!I")
_MAX_MESSAGE = 1 << 20
# -P keeps the current folder off the path; our own root goes last, so it can shadow nothing.
_BOOT = (
    "import sys; sys.path.append(sys.argv[2]); "
    "from rewards.workers.worker import run_nursery; run_nursery(int(sys.argv[1]))"
)
# The first use of each of these loads parts of sympy for up to half a second; forked later, a worker has them.
_FIRST_USES = (
    ("$\\frac{1}{2}$", "$0.5$"),
    ("$\\frac{(n-1)!}{k!} n$", "$\\frac{n!}{k!}$"),
    ("$\\frac{n!}{k!(n-k)!}$", "$\\binom{n}{k}$"),
    ("$6$", "$\\sum_{i=1}^{3} i$"),
)
_LATER_USES = (
    ("$\\frac{1}{3}$", "$\\int_0^1 x^2 dx$"),
    ("$2$", "$\\lim_{x \\to 0} \\frac{\\sin 2x}{x}$"),
    ("$\\{1, 2\\} \\cup \\{3\\}$", "$\\{1, 2, 3\\}$"),
    ("$\\sqrt{x^2+1} e^x$", "$\\exp(x) \\sqrt{1+x^2}$"),
)


class WorkerDied(RuntimeError):
    """The worker's socket closed before it answered."""


class WorkerTimeout(RuntimeError):
    """The worker did not answer in time."""


def _send(channel: socket.socket, message: object) -> None:
    data = json.dumps(message).encode()
    channel.sendall(_HEADER.pack(len(data)) + data)


def _receive(channel: socket.socket) -> object:
    (size,) = _HEADER.unpack(_read_exactly(channel, _HEADER.size))
    if size > _MAX_MESSAGE:
        raise WorkerDied("a worker sent an oversized message")
    return json.loads(_read_exactly(channel, size))


def _read_exactly(channel: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            raise WorkerDied("the worker closed its socket")
        data += piece
    return data


class Nursery:
    """Parent's side of the process that forks workers; it loads math-verify while its parent goes on."""

    def __init__(self, memory_limit_bytes: int) -> None:
        self.channel, theirs = socket.socketpair()
        self.memory_limit_bytes = memory_limit_bytes
        root = str(Path(__file__).resolve().parents[2])
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONFAULTHANDLER": ""}
        try:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOT, str(theirs.fileno()), root],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                env=environment,
            )
        except OSError as error:
            self.channel.close()
            raise VerifierError(f"cannot start the verifier's worker process: {error}") from error
        finally:
            theirs.close()
        self.channel.settimeout(START_TIMEOUT_S)
        self.ready = False

    def _await_ready(self) -> None:
        if self.ready:
            return
        try:
            ready = _receive(self.channel)
        except (OSError, WorkerDied) as error:
            self.close()
            raise VerifierError(f"the verifier's worker process ended while starting: {error}") from error
        if ready != "ready":
            self.close()
            raise VerifierError(f"the verifier's worker process cannot import math-verify: {ready}")
        self.ready = True

    def spawn(self) -> Worker:
        """Fork a fresh worker.

        Raises:
            WorkerDied: the nursery is gone.
            VerifierError: it never came up.
        """
        self._await_ready()
        ours, theirs = socket.socketpair()
        try:
            _send(self.channel, ["spawn", self.memory_limit_bytes])
            socket.send_fds(self.channel, [b"F"], [theirs.fileno()])
            pid = _receive(self.channel)
        except OSError as error:
            ours.close()
            raise WorkerDied(f"the nursery is gone: {error}") from error
        except WorkerDied:
            ours.close()
            raise
        finally:
            theirs.close()
        return Worker(ours, int(pid))

    def kill(self, worker: Worker) -> None:
        """End a worker for good. Its parent, the nursery, does it, so a reused pid can never be hit."""
        worker.channel.close()
        with contextlib.suppress(OSError, WorkerDied):
            _send(self.channel, ["kill", worker.pid])
            _receive(self.channel)

    def close(self) -> None:
        """End the nursery and with it all its workers."""
        self.channel.close()
        if not self.ready:  # still loading: it has no workers to end
            self.process.kill()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()

    def abandon(self) -> None:
        """Drop handles inherited by a fork: the processes belong to the parent."""
        self.channel.close()
        self.process.returncode = 0  # not our child: keeps Popen from waiting for it


class Worker:
    """Parent's side of one worker: its socket and its pid."""

    def __init__(self, channel: socket.socket, pid: int) -> None:
        self.channel = channel
        self.pid = pid

    def ask(self, gold: str, answer: str, timeout_s: float) -> str:
        """One comparison: "same", "different", "bad_gold", "no_parse" or "memory".

        Raises:
            WorkerTimeout, WorkerDied: the worker must be replaced.
        """
        self.channel.settimeout(timeout_s)
        try:
            _send(self.channel, [gold, answer])
            return str(_receive(self.channel))
        except TimeoutError as error:
            raise WorkerTimeout(f"no answer in {timeout_s:g} s") from error
        except OSError as error:
            raise WorkerDied(str(error)) from error


def run_nursery(descriptor: int) -> None:
    """Main loop of the nursery process: fork and kill workers until the parent is gone; warm up while idle."""
    channel = socket.socket(fileno=descriptor)
    try:
        _prepare_engine()
    except ImportError as error:
        _send(channel, str(error))
        return
    _send(channel, "ready")
    children: set[int] = set()
    warm_ups = list(_LATER_USES)
    try:
        while True:
            if warm_ups and not select.select([channel], [], [], 0)[0]:
                _guarded_compare(*warm_ups.pop(0))
                continue
            action, value = _receive(channel)
            if action == "spawn":
                _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
                child = os.fork()
                if child == 0:
                    channel.close()
                    _run_worker(descriptors[0], value)
                os.close(descriptors[0])
                children.add(child)
                _send(channel, child)
            else:
                if value in children:
                    children.discard(value)
                    _end(value)
                _send(channel, "ended")
    except (WorkerDied, OSError):
        pass  # the parent is gone
    finally:
        for child in children:
            _end(child)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _prepare_engine() -> None:
    import logging
    import warnings

    import math_verify  # noqa: F401  (imported before the forks, so each worker has it at once)

    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    for gold, answer in _FIRST_USES:
        _compare(gold, answer)


def _run_worker(descriptor: int, memory_limit_bytes: int) -> None:
    """Answer comparisons until the socket closes; never returns."""
    import resource

    try:
        _die_with_parent()
        resource.setrlimit(resource.RLIMIT_AS, (memory_limit_bytes, memory_limit_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        channel = socket.socket(fileno=descriptor)
        while True:
            gold, answer = _receive(channel)
            _send(channel, _guarded_compare(gold, answer))
    finally:
        os._exit(0)


def _die_with_parent() -> None:
    """Linux: be killed with the nursery even while computing (elsewhere the socket's end does it later)."""
    if sys.platform == "linux":
        import ctypes

        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def _guarded_compare(gold: str, answer: str) -> str:
    try:
        return _compare(gold, answer)
    except MemoryError:
        return "memory"
    except RecursionError:
        return "no_parse"
    except Exception:  # an untrusted boundary: sympy and antlr raise anything; the caller counts it as a verdict
        return "no_parse"


def _compare(gold: str, answer: str) -> str:
    from math_verify import LatexExtractionConfig, parse, verify

    # Only the LaTeX reader: the plain-expression one calls sympy's parse_expr, which runs Python.
    config = [LatexExtractionConfig()]
    wanted = parse(gold, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
    if not wanted:
        return "bad_gold"
    given = parse(answer, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
    if not given:
        return "no_parse"
    same = verify(wanted, given, float_rounding=12, numeric_precision=15, strict=True, timeout_seconds=None)
    return "same" if same else "different"
