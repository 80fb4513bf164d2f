"""verify() and Verifier: from a completion and a gold to a Score, with workers only where they are needed."""

from __future__ import annotations

import atexit
import os
import re
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache

from rewards.answers.choice import Choices, decide_choice, read_choices
from rewards.answers.commas import with_decimal_points
from rewards.answers.equality import Undecided, is_defined
from rewards.answers.golds import gold_readings, ordered_parts
from rewards.answers.math import Comparison, read, suits_the_engine, worth_a_worker
from rewards.answers.notation import clean
from rewards.answers.number import Quantity
from rewards.answers.number_words import in_digits
from rewards.answers.structures import Chain, Named, Value
from rewards.answers.text import normal_text, same_text
from rewards.answers.units import parse_unit
from rewards.answers.wording import look_through
from rewards.response.response import extract
from rewards.types import KINDS, Item, Sample, Score, Verdict, VerifierError
from rewards.workers import limits
from rewards.workers.limits import TooLarge
from rewards.workers.pool import Pool, WorkerTimeout
from rewards.workers.worker import WorkerDied

_INTEGER = re.compile(r"[+-]?\d{1,15}", re.ASCII)
_CACHED_CHARS = 200
_PROBE = ("$\\frac{1}{2}$", "$\\frac{2}{4}$")
_LETTER_GOLD = re.compile(r"^\(?[A-H]\)?\.?$")


@dataclass(frozen=True, slots=True, eq=False)
class Gold:
    """A gold that was read once: its route and what that route compares with.

    Attributes:
        comma: what it says if its commas are decimal ones.
        in_parts: it lists values in a fixed order, and an answer may write them as it does.
        others: are right too.
    """

    text: str
    kind: str
    value: Value | Chain | None = None
    comma: Value | Chain | None = None
    choices: Choices | None = None
    comparison: Comparison | None = None
    in_parts: bool = False
    others: tuple[Gold, ...] = ()


@dataclass(frozen=True, slots=True)
class Pending:
    """A comparison that only a worker can make.

    Attributes:
        gold, answer: as math-verify reads them.
        time_share: of the usual time limit.
        gold_is_read: our own grammar reads the gold, or another one that is accepted.
        then: the next gold to compare with, where this one differs.
    """

    gold: str
    answer: str
    time_share: float
    gold_is_read: bool = False
    then: Pending | None = None


@lru_cache(maxsize=8192)
def read_gold(
    gold: str, kind: str, choices: tuple[str, ...] | None, precision: int | None, unit: str | None
) -> Gold | str:
    """The gold in the form its kind compares, or why it cannot be verified against.

    Raises:
        ValueError: unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; use one of {', '.join(KINDS)}")
    try:
        limits.check_size(gold)
        text = clean(_unboxed(gold))
        if not text:
            return "the gold is empty"
        if kind == "choice" or (kind == "auto" and (choices or _LETTER_GOLD.match(text))):
            read_in = read_choices(text, choices)
            return read_in if isinstance(read_in, str) else Gold(text, "choice", choices=read_in)
        if kind == "text":
            return Gold(text, "text") if normal_text(text) else "the gold is empty"
        comparison = Comparison(precision, parse_unit(clean(unit)) if unit else None)
        return _read_math_readings(_unboxed(gold), kind, comparison)
    except (TooLarge, RecursionError) as error:
        return f"the gold is too large: {error}"


def _read_math_readings(gold: str, kind: str, comparison: Comparison) -> Gold | str:
    """Each of the readings of a gold; the first one decides how it is compared."""
    texts = gold_readings(gold)
    first, *others = (_read_math_gold(clean(text), kind, comparison) for text in texts)
    if isinstance(first, str):
        return first
    in_parts = texts[-1] != gold and texts[-1] == ordered_parts(gold)
    return replace(first, in_parts=in_parts, others=tuple(other for other in others if isinstance(other, Gold)))


def _read_math_gold(text: str, kind: str, comparison: Comparison) -> Gold | str:
    value = read(text)
    if kind == "number" and not isinstance(value.value if isinstance(value, Named) else value, Quantity):
        return f"the gold {text[:60]!r} is not a number"
    if value is not None:
        return Gold(text, "math", value, _read_commas(text), comparison=comparison)
    if worth_a_worker(text):
        return Gold(text, "symbolic", comparison=comparison)
    return Gold(text, "text") if kind == "auto" else f"the gold {text[:60]!r} is not mathematics we can read"


def _read_commas(text: str) -> Value | Chain | None:
    """A text with decimal commas as a value, or None if it has none."""
    pointed = with_decimal_points(text)
    return None if pointed is None else read(pointed)


def _read_words(text: str) -> Value | Chain | None:
    """An answer that is a number in words ("thirty-six dollars") as a value; golds in words stay texts."""
    said = look_through(text)
    digits = in_digits(said)
    return None if digits == said else read(digits)


def _unboxed(gold: str) -> str:
    """A gold may come as a whole response: cut its answer out by the same rules."""
    return extract(gold, "auto").answer or "" if "\\boxed" in gold or "<answer>" in gold else gold


def _judge(gold: Gold, answer: str) -> Score | Pending:
    """Decide one extracted answer in-process, or say what a worker has to compare."""
    try:
        limits.check_size(answer)
        if gold.kind == "choice" and gold.choices is not None:
            right, reason = decide_choice(gold.choices, answer)
            return _score(right, answer, reason)
        if gold.in_parts:
            answer = ordered_parts(answer) or answer
        for other in gold.others:
            if (outcome := _judge(other, answer)) and isinstance(outcome, Score) and outcome.correct:
                return outcome
        if gold.kind == "text":
            right = same_text(gold.text, answer)
            return _score(right, answer, "the texts are equal" if right else "the texts differ")
        return _judge_math(gold, answer)
    except TooLarge as error:
        return Score(Verdict.too_large, False, answer[:200], str(error))
    except RecursionError:
        return Score(Verdict.too_large, False, answer[:200], "the answer is nested too deep")


_judge_cached = lru_cache(maxsize=16384)(_judge)


def _judge_math(gold: Gold, answer: str) -> Score | Pending:
    if _INTEGER.fullmatch(answer) and _INTEGER.fullmatch(gold.text):
        right = int(answer) == int(gold.text)
        return _score(right, answer, "equal integers" if right else "different integers")
    text = clean(answer)
    if text == gold.text:
        return _score(True, answer, "identical to the gold")
    value = read(text) or _read_commas(text) or _read_words(text)
    if gold.value is not None and value is not None and gold.comparison is not None:
        try:
            right = gold.comparison.same(gold.value, value) or _same_with_commas(gold, text, value)
            return _score(right, answer, "equal to the gold" if right else "differs from the gold")
        except Undecided:
            pass
    if not worth_a_worker(text, plain=value is not None) or not suits_the_engine(gold.value):
        return _score(False, answer, "the answer is not one value in mathematical notation")
    if isinstance(value, Quantity) and not is_defined(value.node):
        return _score(False, answer, "the answer has no value")
    share = limits.worker_time_share(text)
    return Pending(f"${gold.text}$", f"${text}$", share, gold.value is not None)


def _same_with_commas(gold: Gold, answer: str, value: Value | Chain) -> bool:
    """Whether they agree once the commas of one side, which separate at first, are decimal ones."""
    pointed = _read_commas(answer)
    if gold.comparison is None or (gold.comma is None) == (pointed is None):
        return False
    return gold.comparison.same(gold.comma or gold.value, pointed or value)


def _score(right: bool, answer: str, reason: str) -> Score:
    return Score(Verdict.correct if right else Verdict.wrong, right, answer, reason)


def judge_item(item: Item | Sample) -> Score | Pending:
    """Everything of a verification that needs no worker.

    Raises:
        ValueError: unknown template or kind.
    """
    choices = item.choices
    if choices is not None and type(choices) is not tuple:
        choices = tuple(str(choice) for choice in choices)
    texts = (item.gold,) if isinstance(item.gold, str) else item.gold
    read_in = [read_gold(text, item.kind, choices or None, item.precision, item.unit) for text in texts]
    golds = [gold for gold in read_in if isinstance(gold, Gold)]
    if not golds:
        return Score(Verdict.bad_gold, False, None, str(read_in[0]) if read_in else "there is no gold")
    extraction = extract(item.response, item.template)
    answer = extraction.answer
    if answer is None:
        return Score(extraction.verdict or Verdict.no_answer, False, None, extraction.reason)
    if len(answer) > limits.MAX_ANSWER_CHARS:
        return Score(Verdict.too_large, False, answer[:200], f"the answer has {len(answer)} characters")
    # Only short answers come again, and long ones would fill the memory.
    judge = _judge_cached if len(answer) <= _CACHED_CHARS else _judge
    return _best([judge(gold, answer) for gold in golds])


def _best(outcomes: Sequence[Score | Pending]) -> Score | Pending:
    """Of one answer and several golds: right if it equals any, else what a worker has yet to compare, else wrong."""
    scores = [outcome for outcome in outcomes if isinstance(outcome, Score)]
    if decided := next((score for score in scores if score.correct), None):
        return decided
    pending: Pending | None = None
    for outcome in reversed(outcomes):
        if isinstance(outcome, Pending):
            pending = replace(outcome, gold_is_read=outcome.gold_is_read or bool(scores), then=pending)
    return pending or scores[0]


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
        """A dead worker is replaced once, then other answers are tried."""
        timeout_s = self.timeout_s * pending.time_share
        answer = pending.answer[1:-1]
        # The first worker may have been killed while idle, so the second try always gets a fresh one.
        for fresh in (False, True):
            try:
                reply = self.pool.ask(pending.gold, pending.answer, timeout_s, fresh)
                return _worker_score(reply, answer, pending.gold_is_read)
            except WorkerTimeout:
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
        return _score(True, answer, "math-verify finds them equal")
    if reply == "different":
        return _score(False, answer, "math-verify finds them different")
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
