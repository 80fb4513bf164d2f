"""The child's side of a comparison: the nursery, which imports math-verify once and forks, and the workers it forks.

Workers end when their socket or the nursery ends, and the nursery kills its workers and ends when the parent does.
Memory is limited by RLIMIT_AS and the processor time of each comparison by ITIMER_PROF, whose signal ends the worker
in the midst of any computation; the parent's wall clock only catches what uses no processor time.
Not a security sandbox: no system calls are filtered.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys

_HEADER = struct.Struct("!I")
_MAX_MESSAGE = 1 << 20
# The first use of each of these loads parts of sympy for up to half a second; forked later, a worker has them.
_FIRST_USES = (
    ("$\\frac{1}{2}$", "$0.5$"),
    ("$\\frac{(n-1)!}{k!} n$", "$\\frac{n!}{k!}$"),
    ("$\\frac{n!}{k!(n-k)!}$", "$\\binom{n}{k}$"),
    ("$6$", "$\\sum_{i=1}^{3} i$"),
)
_LATER_USES = (
    ("$\\frac{1}{3}$", "$\\int_0^1 x^2 dx$"),
    ("$e$", "$\\sum_{k=0}^{\\infty} \\frac{1}{k!}$"),
    ("$2$", "$\\lim_{x \\to 0} \\frac{\\sin 2x}{x}$"),
    ("$\\{1, 2\\} \\cup \\{3\\}$", "$\\{1, 2, 3\\}$"),
    ("$\\sqrt{x^2+1} e^x$", "$\\exp(x) \\sqrt{1+x^2}$"),
)


class WorkerDied(ConnectionError):
    """The socket closed before the other side had answered."""


def send(channel: socket.socket, message: object) -> None:
    """One JSON message behind its length."""
    data = json.dumps(message).encode()
    channel.sendall(_HEADER.pack(len(data)) + data)


def receive(channel: socket.socket) -> object:
    """The next message; raises WorkerDied when the other side is gone."""
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


def run_nursery(descriptor: int) -> None:
    """Main loop of the nursery process: fork and kill workers until the parent is gone; warm up while idle.

    A worker forked before the warm-up has ended is cold: it may spend its time limit on loading sympy.
    """
    channel = socket.socket(fileno=descriptor)
    try:
        _prepare_engine()
    except ImportError as error:
        send(channel, str(error))
        return
    send(channel, "ready")
    children: set[int] = set()
    warm_ups = list(_LATER_USES)
    try:
        while True:
            if warm_ups and not select.select([channel], [], [], 0)[0]:
                _guarded_compare(*warm_ups.pop(0))
                continue
            action, value = receive(channel)
            if action == "warm_up":
                while warm_ups:
                    _guarded_compare(*warm_ups.pop(0))
            elif action == "spawn":
                _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
                child = os.fork()
                if child == 0:
                    channel.close()
                    _run_worker(descriptors[0], value)
                os.close(descriptors[0])
                children.add(child)
                send(channel, [child, not warm_ups])
            else:
                known = value in children
                children.discard(value)
                send(channel, _end(value) if known else 0)
    except OSError:
        pass  # the parent is gone
    finally:
        for child in children:
            _end(child)


def _end(pid: int) -> int:
    """Kill a child that may have ended before; the number of the signal it died by, 0 if it exited."""
    with contextlib.suppress(ProcessLookupError, ChildProcessError):
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
    return 0


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
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        while True:
            gold, answer, cpu_s = receive(channel)
            signal.setitimer(signal.ITIMER_PROF, cpu_s)
            reply = _guarded_compare(gold, answer)
            signal.setitimer(signal.ITIMER_PROF, 0)
            send(channel, reply)
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
    except Exception:  # an untrusted boundary: sympy and antlr raise anything; the caller counts it as a verdict
        return "no_parse"


def _compare(gold: str, answer: str) -> str:
    from math_verify import LatexExtractionConfig, parse, verify

    from rewards.workers.closeness import agree_closely

    # Only the LaTeX reader: the plain-expression one calls sympy's parse_expr, which runs Python.
    config = [LatexExtractionConfig()]
    wanted = parse(gold, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
    if not wanted:
        return "bad_gold"
    given = parse(answer, extraction_config=config, fallback_mode="no_fallback", parsing_timeout=None)
    if not given:
        return "no_parse"
    for left in wanted:
        for right in given:
            same = verify([left], [right], float_rounding=12, numeric_precision=15, strict=True, timeout_seconds=None)
            if same and agree_closely(left, right):
                return "same"
    return "different"
