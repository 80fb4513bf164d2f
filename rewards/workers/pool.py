"""The parent's side of the killable processes that run math-verify: a pool of workers behind sockets.

One nursery process per pool imports math-verify once and forks workers on request, so that replacing a killed worker
takes milliseconds. It is a plain child process (no multiprocessing): it works from threads, from daemonic processes
and without a main guard, and touches neither the caller's signal handlers nor its timers.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rewards.types import VerifierError
from rewards.workers.worker import WorkerDied, receive, send

START_TIMEOUT_S = 60.0
WALL_FACTOR, WALL_MARGIN_S = 20.0, 10.0
# -P keeps the current folder off the path; our own root goes last, so it can shadow nothing.
_BOOT = (
    "import sys; sys.path.append(sys.argv[2]); "
    "from rewards.workers.worker import run_nursery; run_nursery(int(sys.argv[1]))"
)


class WorkerTimeout(RuntimeError):
    """The worker did not answer in time; a cold one may have spent it on loading sympy."""

    def __init__(self, message: str, warm: bool) -> None:
        super().__init__(message)
        self.warm = warm


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
            ready = receive(self.channel)
        except OSError as error:
            self.close()
            raise VerifierError(f"the verifier's worker process ended while starting: {error}") from error
        if ready != "ready":
            self.close()
            raise VerifierError(f"the verifier's worker process cannot import math-verify: {ready}")
        self.ready = True

    def spawn(self, warm: bool) -> Worker:
        """Fork a fresh worker, if `warm` only after the nursery has loaded all of sympy that it warms up with.

        Raises:
            WorkerDied: the nursery is gone.
            VerifierError: it never came up.
        """
        self._await_ready()
        ours, theirs = socket.socketpair()
        try:
            if warm:
                send(self.channel, ["warm_up", None])
            send(self.channel, ["spawn", self.memory_limit_bytes])
            socket.send_fds(self.channel, [b"F"], [theirs.fileno()])
            pid, is_warm = receive(self.channel)
        except OSError as error:
            ours.close()
            raise WorkerDied(f"the nursery is gone: {error}") from error
        finally:
            theirs.close()
        return Worker(ours, int(pid), bool(is_warm))

    def kill(self, worker: Worker) -> int:
        """End a worker for good; the number of the signal it died by, 0 if that is not known.

        Its parent, the nursery, does it, so a reused pid can never be hit.
        """
        worker.channel.close()
        with contextlib.suppress(OSError):
            send(self.channel, ["kill", worker.pid])
            return int(receive(self.channel))
        return 0

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
    """Parent's side of one worker: its socket, its pid, and whether it was forked from a warm nursery."""

    def __init__(self, channel: socket.socket, pid: int, warm: bool) -> None:
        self.channel = channel
        self.pid = pid
        self.warm = warm

    def ask(self, gold: str, answer: str, timeout_s: float) -> str:
        """One comparison: "same", "different", "bad_gold", "no_parse" or "memory".

        The worker ends itself after `timeout_s` of processor time; the wall clock is a guard against one that stands
        still, wide enough for a machine with many other tasks.

        Raises:
            WorkerTimeout, WorkerDied: the worker must be replaced.
        """
        self.channel.settimeout(WALL_FACTOR * timeout_s + WALL_MARGIN_S)
        try:
            send(self.channel, [gold, answer, timeout_s])
            return str(receive(self.channel))
        except TimeoutError as error:
            raise WorkerTimeout("the worker stands still", warm=True) from error
        except OSError as error:
            raise WorkerDied(str(error)) from error


class Pool:
    """At most `num_workers` workers, started when they are asked; safe to use from several threads.

    A process forked from the owner starts its own.
    """

    def __init__(self, num_workers: int, memory_limit_bytes: int) -> None:
        self.num_workers = num_workers
        self.memory_limit_bytes = memory_limit_bytes
        self._reset()

    def _reset(self) -> None:
        self._pid = os.getpid()
        self._lock = threading.Lock()
        self.nursery: Nursery | None = None
        self.workers: set[Worker] = set()
        self._free: queue.LifoQueue[Worker | None] = queue.LifoQueue()
        for _ in range(self.num_workers):
            self._free.put(None)
        self._threads: ThreadPoolExecutor | None = None
        self._closed = False

    def _adopt(self) -> None:
        """In a forked process: leave the parent's workers alone and start afresh."""
        if self._pid != os.getpid():
            for worker in self.workers:
                worker.channel.close()
            if self.nursery:
                self.nursery.abandon()
            self._reset()
        if self._closed:
            raise VerifierError("this Verifier is closed")

    def start(self) -> None:
        """Begin to load math-verify without waiting for it; VerifierError when a process cannot be started."""
        self._adopt()
        with self._lock:
            if self.nursery is None:
                self._renew()

    def submit(self, function: Callable[..., Any], *arguments: Any) -> Future[Any]:
        """Call a function that asks workers in one of `num_workers` threads."""
        self._adopt()
        with self._lock:
            if self._threads is None:
                self._threads = ThreadPoolExecutor(self.num_workers, thread_name_prefix="verifier")
        return self._threads.submit(function, *arguments)

    def ask(self, gold: str, answer: str, timeout_s: float, fresh: bool = False) -> str:
        """One comparison by a free worker, or, if `fresh`, by a new, warm one; see `Worker.ask`. Waits for a free one.

        Raises:
            WorkerTimeout, WorkerDied: the worker was replaced.
            VerifierError: the pool is closed, or no worker can be started.
        """
        self._adopt()
        worker, keep = self._free.get(), None
        try:
            if fresh and worker is not None:
                self._discard(worker)
                worker = None
            worker = worker or self._spawn(warm=fresh)
            try:
                reply = worker.ask(gold, answer, timeout_s)
            except WorkerDied as death:
                dead, worker = worker, None
                if self._discard(dead) == signal.SIGPROF:
                    raise WorkerTimeout(f"no answer in {timeout_s:g} s of processor time", dead.warm) from death
                raise
            keep = worker
            return reply
        finally:
            if keep is None and worker is not None:
                self._discard(worker)
            self._free.put(keep)

    def _spawn(self, warm: bool) -> Worker:
        with self._lock:
            if self.nursery is None or self.nursery.process.poll() is not None:
                self._renew()
            try:
                worker = self.nursery.spawn(warm)
            except WorkerDied:  # it was killed a moment ago
                self._renew()
                worker = self.nursery.spawn(warm)
            self.workers.add(worker)
            return worker

    def _renew(self) -> None:
        if self.nursery:
            self.nursery.close()
        self.nursery = Nursery(self.memory_limit_bytes)

    def _discard(self, worker: Worker) -> int:
        """End a worker; the number of the signal it died by, 0 if that is not known."""
        with self._lock:
            self.workers.discard(worker)
            return self.nursery.kill(worker) if self.nursery else 0

    def close(self) -> None:
        """End all processes; nothing can be asked afterwards."""
        if self._pid != os.getpid():
            return
        self._closed = True
        if self._threads:
            self._threads.shutdown(wait=True)
        with self._lock:
            for worker in self.workers:
                worker.channel.close()
            self.workers.clear()
            if self.nursery:
                self.nursery.close()
                self.nursery = None
