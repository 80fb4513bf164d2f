"""The graders that measurements/verifiers.py compares, each in a forked child process that can be killed.

Every peer is tried in two forms: "plain" (the gold as the data set has it) and "dollars" (the gold, and an answer that
was cut out before, in $...$). verifiers.py keeps the form that serves the peer better. What a peer has no argument for
(choices, rounding, units) it is not given. TRL's None, which skips a sample, counts as "not paid". A peer that raises,
dies or passes the limit gave no verdict, which is never right.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import re
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from math_verify import parse, verify
from trl.rewards.accuracy_rewards import accuracy_reward

from rewards import Item, Verifier
from rewards.response import extract

START_LIMIT_S = 120.0
# For the machine's sake; Math-Verify was seen to take 0.8 GB.
MEMORY_LIMIT_BYTES = 4 * 2**30
# Needs a worker of ours and every parser of the peers, so the first measured response pays for no import.
WARM_UP = Item("<answer>$\\sqrt{x^2+2x+1}+e^{y}$</answer>", "e^{y}+\\sqrt{1+x^2+2x}", "think_answer")
LETTERS = "ABCDEFGH"
_LONE_LETTER = re.compile(r"(?<![A-Za-z0-9\\])[A-H](?![A-Za-z0-9])")

Grade = Callable[[Item], bool]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a grader did: paid (None = no verdict), the seconds of its own work, and the seconds until we had it."""

    paid: bool | None
    seconds: float
    wall_seconds: float


def plain(text: str) -> str:
    """The text as it is."""
    return text


def dollars(text: str) -> str:
    """The text in LaTeX's inline math."""
    return f"${text}$"


def ours() -> Grade:
    """Our verifier, as the trainer uses it."""
    verifier = Verifier()
    return lambda item: verifier.score_one(item).correct


def math_verify_on_the_response(form: Callable[[str], str]) -> Grade:
    """Math-Verify's own extraction and comparison, with its defaults."""
    return lambda item: verify(parse(form(item.gold)), parse(item.completion))


def math_verify_on_our_extraction(form: Callable[[str], str]) -> Grade:
    """Math-Verify's comparison of the answer that our reader cuts out; no answer is not paid."""

    def grade(item: Item) -> bool:
        answer = extract(item.completion, item.template).answer
        return answer is not None and verify(parse(form(item.gold)), parse(form(answer)))

    return grade


def trl_accuracy_reward(form: Callable[[str], str]) -> Grade:
    """TRL's reward function on one completion."""
    return lambda item: bool(
        accuracy_reward([[{"role": "assistant", "content": item.completion}]], [form(item.gold)])[0]
    )


def letter_matcher() -> Grade:
    """A plain matcher for choices, for scale: the last lone capital A-H outside the think block against the gold's."""

    def grade(item: Item) -> bool:
        choices = item.choices or ()
        gold = LETTERS[choices.index(item.gold)] if item.gold in choices else item.gold.strip("(). ")
        found = _LONE_LETTER.findall(item.completion.rpartition("</think>")[2])
        return bool(found) and found[-1] == gold

    return grade


# Name of a grader -> its forms; only the letter matcher is for choices alone.
GRADERS: dict[str, dict[str, Callable[[], Grade]]] = {
    "ours": {"plain": ours},
    "Math-Verify, whole response": {
        form.__name__: lambda form=form: math_verify_on_the_response(form) for form in (plain, dollars)
    },
    "Math-Verify, our extraction": {
        form.__name__: lambda form=form: math_verify_on_our_extraction(form) for form in (plain, dollars)
    },
    "TRL accuracy_reward": {form.__name__: lambda form=form: trl_accuracy_reward(form) for form in (plain, dollars)},
    "letter matcher (choices only)": {"plain": letter_matcher},
}
CHOICES_ONLY = "letter matcher (choices only)"


class Grader:
    """One grader in one form, in a child process that is killed and replaced when it passes a limit."""

    def __init__(self, name: str, form: str) -> None:
        self.name, self.form = name, form
        self._start()

    def _start(self) -> None:
        # A fork shares the imports of this process, which has no threads; a replacement costs milliseconds.
        context = multiprocessing.get_context("fork")
        self._channel, theirs = context.Pipe()
        self._process = context.Process(target=serve, args=(GRADERS[self.name][self.form], theirs), daemon=True)
        self._process.start()
        theirs.close()
        if not self._channel.poll(START_LIMIT_S) or self._channel.recv() != "ready":
            raise RuntimeError(f"{self.name} ({self.form}) did not start in {START_LIMIT_S:g} s")

    def grade(self, item: Item, limit_s: float) -> Outcome:
        """Its verdict on one response, or none if it needs more than `limit_s` seconds or dies."""
        begun = time.perf_counter()
        self._channel.send(item)
        try:
            if self._channel.poll(limit_s):
                paid, seconds = self._channel.recv()
                return Outcome(paid, seconds, time.perf_counter() - begun)
        except EOFError:
            pass  # the child died: no verdict, like a child that had to be killed
        spent = time.perf_counter() - begun
        self.close()
        self._start()
        return Outcome(None, spent, spent)

    def close(self) -> None:
        """End the child, whatever it is at."""
        self._process.kill()
        self._process.join()
        self._channel.close()


def serve(build: Callable[[], Grade], channel: Connection) -> None:
    """The child's loop: items in, (paid, seconds) out, until the parent is gone."""
    parent = os.getppid()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT_BYTES, MEMORY_LIMIT_BYTES))
    logging.disable(logging.CRITICAL)
    gc.freeze()
    grade = build()
    grade(WARM_UP)
    channel.send("ready")
    while os.getppid() == parent:
        if not channel.poll(1.0):
            continue
        item = channel.recv()
        begun = time.perf_counter()
        try:
            paid = bool(grade(item))
        except Exception:  # untrusted boundary: a peer may raise anything on a hostile text; that is no verdict
            paid = None
        channel.send((paid, time.perf_counter() - begun))
