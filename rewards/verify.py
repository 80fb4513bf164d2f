"""verify() and Verifier: from a completion and a gold to a Score, with workers only where they are needed."""

from __future__ import annotations

import atexit
import os
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from rewards.judge import Gold, Pending, judge_item, score_of
from rewards.types import Item, Sample, Score, Verdict, VerifierError
from rewards.workers import limits
from rewards.workers.pool import Pool, WorkerTimeout
from rewards.workers.worker import WorkerDied

_PROBE = ("$\\frac{1}{2}$", "$\\frac{2}{4}$")


class Verifier:
    """Verifies completions with a pool of killable workers; safe to use from several threads.

    Fewer than one answer in two hundred needs a worker, so one is enough. It starts at the first answer that needs it;
    `with` and `start` load its engine in the background before. `timeout_s` is processor time.
    """

    def __init__(self, num_workers: int = 1, timeout_s: float = 1.0, memory_limit_bytes: int = 2**30) -> None:
        if num_workers < 1 or timeout_s <= 0 or memory_limit_bytes < 2**28:
            raise ValueError(
                f"Verifier needs num_workers >= 1, timeout_s > 0 and memory_limit_bytes >= 2**28, "
                f"got {num_workers}, {timeout_s}, {memory_limit_bytes}"
            )
        self.timeout_s = timeout_s
        self.pool = Pool(num_workers, memory_limit_bytes)

    def __enter__(self) -> Verifier:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Begin to load the workers' engine without waiting for it; VerifierError if no process can be started."""
        self.pool.start()

    def close(self) -> None:
        """End all workers; the verifier cannot be used for symbolic answers afterwards."""
        self.pool.close()

    def score(self, items: Sequence[Item | Sample]) -> list[Score]:
        """Verdicts in the order of `items`.

        Raises:
            ValueError: an item has an unknown template or kind.
            VerifierError: workers do not start or do not work at all.
        """
        judged = [judge_item(item) for item in items]
        waiting: dict[Pending, Future[Score]] = {}
        for outcome in judged:
            if isinstance(outcome, Pending) and outcome not in waiting:
                waiting[outcome] = self.pool.submit(self.compare, outcome)
        return [waiting[o].result() if isinstance(o, Pending) else o for o in judged]

    def score_one(self, item: Item) -> Score:
        """The verdict of one item, in the calling thread."""
        outcome = judge_item(item)
        return self.compare(outcome) if isinstance(outcome, Pending) else outcome

    def compare(self, pending: Pending) -> Score:
        """Let a worker decide, gold after gold until one equals the answer."""
        score = replace(self._compare_with_one(pending), by_worker=True)
        if score.correct or pending.then is None:
            return score
        other = self.compare(pending.then)
        return other if other.correct or score.verdict is Verdict.bad_gold else score

    def _compare_with_one(self, pending: Pending) -> Score:
        """A dead worker, or a cold one that ran out of time, is replaced once; then other answers are tried."""
        timeout_s = self.timeout_s * pending.time_share
        answer = pending.answer[1:-1]
        # The first worker may have been killed while idle, so the second try always gets a fresh, warm one.
        for fresh in (False, True):
            try:
                reply = self.pool.ask(pending.gold, pending.answer, timeout_s, fresh)
                return _worker_score(reply, answer, pending.gold_is_read)
            except WorkerTimeout as timeout:
                if not (fresh or timeout.warm):
                    continue
                return Score(Verdict.timeout, False, answer, f"no decision in {timeout_s:g} s")
            except WorkerDied:
                continue
        self._probe()
        return Score(Verdict.worker_lost, False, answer, "two workers died on this answer; others work")

    def _probe(self) -> None:
        """Tell an answer that kills workers from workers that never work."""
        try:
            reply = self.pool.ask(*_PROBE, self.timeout_s + 5, fresh=True)
        except (WorkerDied, WorkerTimeout) as error:
            raise VerifierError(f"verifier workers die even on a simple comparison: {error}") from error
        if reply != "same":
            raise VerifierError(f"verifier workers answer {reply!r} to a simple comparison; is math-verify intact?")


def _worker_score(reply: str, answer: str, gold_is_read: bool) -> Score:
    if reply == "same":
        return score_of(True, answer, "math-verify finds them equal")
    if reply == "different":
        return score_of(False, answer, "math-verify finds them different")
    if reply == "bad_gold" and not gold_is_read:
        return Score(Verdict.bad_gold, False, answer, "neither our grammar nor math-verify reads the gold")
    if reply == "memory":
        return Score(Verdict.too_large, False, answer, "the comparison passed the memory limit")
    return Score(Verdict.wrong, False, answer, "neither our grammar nor math-verify reads the answer")


# One verifier a process, by process id: a fork must not use its parent's.
_shared: dict[int, Verifier] = {}


def _shared_verifier() -> Verifier:
    verifier = _shared.get(os.getpid())
    if verifier is None:
        # setdefault is atomic; a second thread's spare Verifier has started nothing yet.
        verifier = _shared.setdefault(os.getpid(), Verifier(num_workers=1))
        atexit.register(verifier.close)
    return verifier


def verify(
    completion: str,
    gold: str | Sequence[str],
    *,
    template: str = "auto",
    kind: str = "auto",
    choices: Sequence[str] | None = None,
    precision: int | None = None,
    unit: str | None = None,
) -> Score:
    """Verdict on one completion; never raises on any completion, from any thread or process.

    Args:
        completion: the sampled text.
        gold: the reference answer, or several of which each alone is right.
        template: where the answer stands: "think_answer", "think_boxed", "boxed", "bare" or "auto".
        kind: how it is compared: "math", "number", "choice", "text" or "auto" (by the gold and `choices`).
        choices: the options of a multiple-choice question, in letter order.
        precision: decimals to which both sides are rounded, or None.
        unit: the unit of a gold that is written without one.
    Raises:
        ValueError: unknown template or kind.
        VerifierError: worker processes cannot be started at all.
    """
    frozen = tuple(str(choice) for choice in choices) if choices else None
    golds = gold if isinstance(gold, str) else tuple(gold)
    item = Item(completion, golds, template, kind, frozen, precision, unit)
    outcome = judge_item(item)
    return outcome if isinstance(outcome, Score) else _shared_verifier().compare(outcome)


def gold_is_parsed(gold: Gold) -> bool:
    """Whether math-verify makes anything of a gold that our grammar does not read.

    Raises:
        VerifierError: worker processes cannot be started at all.
    """
    text = f"${gold.text}$"
    pending = Pending(text, text, limits.worker_time_share(gold.text))
    return _shared_verifier().compare(pending).correct
