"""The nouns of the rewards package: verdicts, scores, items, reward specs and the two errors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

TEMPLATES = ("auto", "think_answer", "think_boxed", "boxed", "bare")
KINDS = ("auto", "math", "number", "choice", "text")

Golds = str | tuple[str, ...]
"""The reference answer (gold), or several of which each alone is right."""


class VerifierError(RuntimeError):
    """The verifier itself cannot work (workers do not start); never the fault of one completion."""


class RewardError(RuntimeError):
    """A reward could not be computed: a user's function raised, returned nonsense, or cannot be found."""


class Verdict(StrEnum):
    """What became of one completion; only `correct` pays."""

    correct = "correct"
    wrong = "wrong"
    no_answer = "no_answer"
    bad_format = "bad_format"
    too_large = "too_large"
    timeout = "timeout"
    worker_lost = "worker_lost"
    bad_gold = "bad_gold"


@dataclass(frozen=True, slots=True)
class Score:
    """A verdict with the answer that was cut out (None if there was none) and one sentence why.

    `by_worker`: a worker process was asked, because our own grammar did not decide.
    """

    verdict: Verdict
    correct: bool
    extracted: str | None
    reason: str
    by_worker: bool = False


@dataclass(frozen=True, slots=True)
class Item:
    """One completion to verify; `choices`, `precision` and `unit` describe the gold.

    A gold is a text, or a tuple of texts of which each alone is a right answer.

    `opened` is what the prompt had opened of the response, such as "<think>": the whole is judged.
    """

    completion: str
    gold: Golds
    template: str = "auto"
    kind: str = "auto"
    choices: tuple[str, ...] | None = None
    precision: int | None = None
    unit: str | None = None
    opened: str = ""

    @property
    def response(self) -> str:
        """What is judged."""
        return self.opened + self.completion


@dataclass(frozen=True, slots=True)
class RewardSpec:
    """One named reward with its weight; `path` ("file.py:function") makes it a user's own.

    `conversational` gives it messages in place of texts; None = if it seems to read them.
    """

    name: str
    weight: float = 1.0
    path: str | None = None
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    conversational: bool | None = None


@dataclass(frozen=True, slots=True)
class Sample:
    """One sampled completion with what any reward may need.

    `columns` holds further row columns, `opened` is as Item's, `earlier_turns` (role, text) what came before `prompt`.
    """

    prompt: str
    completion: str
    gold: Golds
    template: str
    kind: str
    choices: tuple[str, ...] | None
    precision: int | None
    unit: str | None
    num_tokens: int
    truncated: bool
    completion_ids: tuple[int, ...] = ()
    columns: Mapping[str, Any] = field(default_factory=dict)
    opened: str = ""
    earlier_turns: tuple[tuple[str, str], ...] = ()

    @property
    def response(self) -> str:
        """What accuracy and format judge."""
        return self.opened + self.completion


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Rewards of a batch, all in sample order.

    `totals` is the weighted sum a sample; `by_name` keeps each reward unweighted (None = does not apply);
    `scores` and `verdicts` are empty when no reward with a weight needs the verifier. `logged` holds means of the
    numbers that users' functions logged, `columns` what they logged for each sample.
    """

    totals: tuple[float, ...]
    by_name: dict[str, tuple[float | None, ...]]
    verdicts: tuple[Verdict, ...]
    scores: tuple[Score, ...]
    logged: Mapping[str, float] = field(default_factory=dict)
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
