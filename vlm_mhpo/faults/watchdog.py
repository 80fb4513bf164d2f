"""Notice a rank that died or stands still, say which one and where, and end this one instead of waiting for ever.

Each rank publishes where it is through the store that the process group was made with, over a connection of its own,
and reads what the others say. Two threads: one talks, which may block when the store's host is frozen; one judges.
Not covered: a single process has nobody to watch it.
"""

from __future__ import annotations

import faulthandler
import json
import os
import sys
import threading
import time
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from typing import NoReturn

import torch
import torch.distributed as dist

from vlm_mhpo.config import FaultsConfig
from vlm_mhpo.errors import RankError, VlmMhpoError
from vlm_mhpo.faults.stopping import StopRequest
from vlm_mhpo.runtime import ranks

# In the order of a step: among ranks that stand still, the one that is behind holds up the others.
PHASES = ("setup", "prompts", "sample", "verify", "log_probs", "update", "evaluate", "checkpoint", "done")
# Ranks that fail together each report by themselves; only who is still waiting after this is ended.
FAILURE_GRACE_S = 8.0
# A broken connection proves that a rank is gone; this much silence then tells which.
BROKEN_SILENCE_S = 8.0


@dataclass(frozen=True, slots=True)
class Place:
    """Where a rank is.

    Attributes:
        phase: one of PHASES.
        step: 1-based, 0 before the first.
        progress: grows while the rank gets on inside a phase.
        failure: the error that ends it; "" = none.
        signum: the signal that asked it to stop; 0 = none.
    """

    phase: str = "setup"
    step: int = 0
    progress: int = 0
    failure: str = ""
    signum: int = 0

    def __str__(self) -> str:
        return f"phase {self.phase} of step {self.step}" if self.step else f"phase {self.phase}"

    @property
    def position(self) -> tuple[int, int]:
        """What a rank that is behind has less of."""
        return self.step, PHASES.index(self.phase)


@dataclass(slots=True)
class Peer:
    """What is known of a rank: where it is, and when (monotonic seconds) it last spoke and last got on."""

    place: Place
    heard: float
    moved: float
    beat: int = -1


class Watchdog:
    """Watches the other ranks while the context is open.

    Args:
        config: limits; see `FaultsConfig`.
        stop: learns of signals that reached other ranks, so that all give up a rollout together.
    """

    def __init__(self, config: FaultsConfig, stop: StopRequest) -> None:
        self._hang_s = config.hang_s
        self._silence_s = config.silence_s
        self._interval_s = min(2.0, config.silence_s / 5)
        self._stop = stop
        self._place = Place()
        self._peers: list[Peer] = []
        self._talked = 0.0
        self._closed, self._spoken, self._wake = threading.Event(), threading.Event(), threading.Event()
        self._talker: threading.Thread | None = None

    def __enter__(self) -> Watchdog:
        if ranks.world_size() == 1 or not self._silence_s:
            return self
        store = _own_connection(self._silence_s)
        store.set(key(ranks.rank()), encoded(self._place, 0))
        ranks.barrier()
        self._talked = time.monotonic()
        self._peers = [Peer(Place(), self._talked, self._talked) for _ in range(ranks.world_size())]
        self._talker = threading.Thread(target=self._talk, args=(store,), daemon=True, name="watchdog")
        self._talker.start()
        threading.Thread(target=self._judge, daemon=True, name="watchdog-judge").start()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._talker is None:
            return
        if error is None:
            self.enter("done", self._place.step)
            # Nobody leaves before all are here, or those who stay would miss it.
            ranks.barrier()
        elif is_broken_connection(error):
            self._wait_for_the_culprit()
        if error is not None:
            self._fail(error)
        self._closed.set()
        self._wake.set()
        self._talker.join(timeout=self._interval_s)

    def enter(self, phase: str, step: int) -> None:
        """This rank begins a phase, which the others are told at once."""
        self._place = replace(self._place, phase=phase, step=step, progress=self._place.progress + 1)
        self._wake.set()

    def tick(self) -> None:
        """This rank gets on inside its phase."""
        self._place = replace(self._place, progress=self._place.progress + 1)

    def _fail(self, error: BaseException) -> None:
        """Tell the others before this process ends."""
        text = str(error) if isinstance(error, VlmMhpoError) else f"{type(error).__name__}: {error}"
        self._spoken.clear()
        self._place = replace(self._place, failure=text[:2000] or type(error).__name__)
        self._wake.set()
        self._spoken.wait(timeout=2 * self._interval_s)

    def _wait_for_the_culprit(self) -> None:
        """A connection broke, so somebody is gone: let the judge find out who, which ends this process."""
        self._silence_s = min(self._silence_s, BROKEN_SILENCE_S)
        time.sleep(self._silence_s + FAILURE_GRACE_S)

    def _talk(self, store: dist.TCPStore) -> None:
        """Publish and read until closed."""
        names = [key(rank) for rank in range(len(self._peers))]
        beat = 0
        while True:
            beat += 1
            closing = self._closed.is_set()
            place = replace(self._place, signum=self._stop.signum)
            try:
                store.set(key(ranks.rank()), encoded(place, beat))
                answers = store.multi_get(names)
            except (dist.DistError, RuntimeError):
                # The judge sees the silence.
                return
            self._listen(answers)
            if place.failure:
                self._spoken.set()
            if closing:
                return
            self._wake.wait(self._interval_s)
            self._wake.clear()

    def _listen(self, answers: list[bytes]) -> None:
        """Take in what all ranks said."""
        self._talked = now = time.monotonic()
        for peer, answer in zip(self._peers, answers, strict=True):
            beat, values = json.loads(answer)
            place = Place(**values)
            if beat != peer.beat:
                peer.beat, peer.heard = beat, now
            if replace(place, signum=0) != replace(peer.place, signum=0):
                peer.moved = now
            peer.place = place
            if place.signum:
                self._stop.ask(place.signum)

    def _judge(self) -> None:
        """End this process when another rank can no longer be waited for."""
        while not self._closed.wait(self._interval_s / 2):
            if self._place.failure:
                # Leaving already, with a reason of our own.
                return
            if verdict := self.verdict(time.monotonic()):
                self._end(verdict)

    def verdict(self, now: float) -> str:
        """What is wrong with another rank at this monotonic time; "" = nothing."""
        # At the end the host may leave before us.
        if now - self._talked > self._silence_s and self._place.phase != "done":
            host = "the launcher" if _uses_launchers_store() else "rank 0"
            where = "" if _uses_launchers_store() else f"; last seen in {self._peers[0].place}"
            return f"{host} is gone or frozen: no answer for {now - self._talked:.0f} s{where}"
        others = [(rank, peer) for rank, peer in enumerate(self._peers) if rank != ranks.rank()]
        for rank, peer in others:
            silence = now - peer.heard
            if peer.place.failure:
                if silence > FAILURE_GRACE_S:
                    return f"rank {rank} failed in {peer.place}: {peer.place.failure}"
            elif peer.place.phase != "done" and silence > self._silence_s:
                return f"rank {rank} is gone or frozen: no sign of life for {silence:.0f} s; last seen in {peer.place}"
        return self._standstill(now)

    def _standstill(self, now: float) -> str:
        """Nobody gets on: who is behind? Loading is left out, which may rightly take long."""
        still = now - max(peer.moved for peer in self._peers)
        if still <= self._hang_s or any(peer.place.phase == "setup" for peer in self._peers):
            return ""
        last = min(peer.place.position for peer in self._peers)
        behind = [str(rank) for rank, peer in enumerate(self._peers) if peer.place.position == last]
        place = self._peers[int(behind[0])].place
        # Where every thread of this process is, for whoever looks for the reason.
        faulthandler.dump_traceback(all_threads=True)
        return f"rank {', '.join(behind)} stands still: no progress in {place} for {still:.0f} s (faults.hang_s)"

    def _end(self, verdict: str) -> NoReturn:
        sys.stdout.flush()
        message = (
            f"\nerror: {verdict} (this is rank {ranks.rank()}, in {self._place}). Start the same command again "
            "to continue from the last checkpoint\n"
        )
        os.write(2, message.encode())
        os._exit(RankError.exit_code)


def _own_connection(timeout_s: float) -> dist.TCPStore:
    """Another connection to the process group's store: two threads must not share one."""
    return dist.TCPStore(
        os.environ["MASTER_ADDR"],
        int(os.environ["MASTER_PORT"]),
        is_master=False,
        wait_for_workers=False,
        timeout=timedelta(seconds=max(30.0, timeout_s)),
    )


def _uses_launchers_store() -> bool:
    """torchrun's agent hosts the store; else the first rank does."""
    return os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"


def key(rank: int) -> str:
    """Where a rank publishes; apart from those of an earlier attempt under the same launcher."""
    return f"vlm_mhpo/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}/{rank}"


def encoded(place: Place, beat: int) -> str:
    """A place as it is published; `beat` differs each time."""
    return json.dumps([beat, asdict(place)])


def is_broken_connection(error: BaseException) -> bool:
    """A collective failed because another rank is not there any more."""
    if isinstance(error, torch.OutOfMemoryError):
        return False
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "gloo" in str(error))
