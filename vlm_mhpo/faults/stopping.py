"""A polite stop: a signal asks, all ranks agree at the next safe place, nothing that was learnt is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

from vlm_mhpo.runtime import ranks
from vlm_mhpo.types import Group

# SIGUSR1 is what slurm sends ahead of the time limit (--signal=USR1@120).
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class Abandoned(Exception):
    """This rank has given up its sampling because the run is asked to stop."""


class Interrupted(Exception):
    """All ranks have agreed to stop here."""


class StopRequest:
    """Remembers that a signal asked this run to stop; as a context manager it answers the signals.

    The second SIGINT ends the process at once, even in the middle of a collective.

    Attributes:
        signum: the signal that asked, on this rank or on one that told us; 0 = none.
    """

    def __init__(self) -> None:
        self.signum = 0
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        # Only a main thread may have handlers; a caller that trains in another keeps its own.
        if threading.current_thread() is threading.main_thread():
            self._previous = {signum: signal.signal(signum, self._answer) for signum in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def ask(self, signum: int) -> None:
        """Ask this rank to stop."""
        self.signum = self.signum or signum

    def give_up(self) -> None:
        """Called once a sampled token: raises `Abandoned` when there is a request."""
        if self.signum:
            raise Abandoned

    def sample(self, sample: Callable[[], list[Group]]) -> list[Group]:
        """`sample()` on all ranks, or `Interrupted` on all of them when one was asked to stop meanwhile."""
        groups: list[Group] = []
        with contextlib.suppress(Abandoned):
            groups = sample()
        self.check()
        return groups

    def check(self) -> None:
        """Raise `Interrupted` on every rank if any was asked to stop; called by all ranks."""
        if self.agreed():
            raise Interrupted

    def agreed(self) -> bool:
        """Whether any rank was asked to stop, the same answer on all of them; called by all ranks."""
        signum = ranks.largest(self.signum)
        self.ask(signum)
        # Not our own number: a signal that came while the ranks agreed is unknown to the others, and waits.
        return bool(signum)

    @property
    def exit_code(self) -> int:
        """130 after SIGINT, as shells have it; 143 after the other two, which both say that the time is up."""
        return 128 + (signal.SIGINT if self.signum == signal.SIGINT else signal.SIGTERM)

    def _answer(self, signum: int, frame: FrameType | None) -> None:
        self.ask(signum)
        if signum == signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Not print: the signal may have interrupted a print.
        os.write(2, f"\n{signal.Signals(signum).name}: stopping at the next safe place\n".encode())
