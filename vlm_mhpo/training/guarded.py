"""What the steps of a run stand under: one context per step that times it, keeps the evidence, and stops politely."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from tqdm import tqdm

from vlm_mhpo.errors import NonFiniteError, NoServerError, Stopped, TrainingError, UnreadableError
from vlm_mhpo.faults.dump import POLICY_FOLDER, dump_folder, unscored, whole_step, write_dump
from vlm_mhpo.faults.guard import Guard
from vlm_mhpo.faults.health import Alarm
from vlm_mhpo.faults.stopping import Interrupted
from vlm_mhpo.faults.watchdog import PHASES
from vlm_mhpo.rollout.finite import NonFiniteGroups
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.clock import Clock, span
from vlm_mhpo.scoring import RewardError, VerifierError
from vlm_mhpo.training.saving import Checkpoints
from vlm_mhpo.types import Group, Minibatch, ScoredGroup

# Skipped updates that are dumped; a run that skips all the time must not fill the disk.
MAX_DUMPS = 5


@dataclass(frozen=True, slots=True)
class Dumps:
    """Where the batches of bad steps go.

    Attributes:
        run_dir: folder of the run.
        values: its configuration, which a replay reads.
        save_policy: writes the policy into a folder, for an update that ends the run; None = not wanted.
    """

    run_dir: Path
    values: dict[str, Any]
    save_policy: Callable[[Path], None] | None = None

    def write(self, step: int, batch: Minibatch, reason: str, details: str = "") -> Path:
        """Write this rank's share of step `step` (1-based); see `faults.dump.write_dump`."""
        return write_dump(self.run_dir, step, batch, self.values, reason, details)

    def bad_update(self, step: int, batch: Minibatch, message: str, *, stops: bool) -> None:
        """Keep the minibatch of an update that was not finite, and the weights if it ends the run."""
        folder = dump_folder(self.run_dir, step)
        others = [path for path in folder.parent.glob("step_*") if path.name != folder.name]
        if not stops and len(others) >= MAX_DUMPS:
            return
        self.write(step, batch, message)
        if stops and self.save_policy:
            self.save_policy(folder / POLICY_FOLDER)
        if ranks.is_main():
            tqdm.write(f"the batch of step {step} is in {folder}: vlm-mhpo replay {folder}")


@dataclass(slots=True)
class Step:
    """One step under watch.

    Attributes:
        number: 1-based.
        batch: what a dump would keep: sampled groups, or the minibatches that were made of them.
    """

    number: int
    batch: Callable[[], Minibatch] | None = None
    began: float = field(default_factory=time.perf_counter)

    def holds(self, groups: Sequence[ScoredGroup] = (), minibatches: Sequence[Minibatch] = ()) -> None:
        """From here on the step's evidence is this."""
        self.batch = partial(whole_step, minibatches) if minibatches else partial(unscored, [g.group for g in groups])


@dataclass(frozen=True, slots=True)
class Watch:
    """Watches over the steps of a run, warm start or RL.

    Attributes:
        guard: who asked to stop, and where the other ranks are.
        clock: of the run; its outermost phases are what the other ranks are told.
        saving: saves before the run ends.
        max_steps: of the run.
        dumps: keeps the evidence; None = nothing is dumped.
    """

    guard: Guard
    clock: Clock
    saving: Checkpoints
    max_steps: int
    dumps: Dumps | None = None

    @contextmanager
    def step(self, number: int, start: int) -> Iterator[Step]:
        """Step `number` (1-based) of a run that began after `start` steps.

        Raises:
            NoServerError: the step could not be sampled; what was learnt is saved.
            Stopped: the step was given up because a signal asked for it; what was learnt is saved.
            TrainingError: the model cannot read a completion; the batch is dumped by the rank that has it.
        """
        step = Step(number)
        self.clock.fresh_totals()
        self.clock.on_stage = partial(self._enter, number)
        try:
            with self.evidence(number):
                yield step
        except Interrupted:
            self.leave(number - 1, is_saved=number - 1 == start or self.saving.is_due(number - 1))
        except NoServerError as problem:
            # Raised on all ranks, and nothing of this step has been learnt.
            saved = self._saved(number - 1, is_saved=number - 1 == start or self.saving.is_due(number - 1))
            told = f"step {number}: {problem}; after step {number - 1}: {saved}. Then start the same command again"
            raise NoServerError(told) from problem
        except UnreadableError as problem:
            if self.dumps is None or step.batch is None:
                raise
            folder = self.dumps.write(number, step.batch(), str(problem))
            raise TrainingError(
                f"step {number}: {problem}. The batch is in {folder}: vlm-mhpo replay {folder}"
            ) from problem

    @contextmanager
    def evidence(self, number: int) -> Iterator[None]:
        """Inside, groups of step `number` (0 = before the first) whose logits were not finite are kept.

        Raises:
            NonFiniteError: on all ranks; names step, ranks, prompts and the dump.
        """
        try:
            yield
        except NonFiniteGroups as problem:
            message = f"step {number}: {problem}"
            if self.dumps is None:
                raise NonFiniteError(message) from problem
            self.dumps.bad_update(number, unscored(problem.groups), message, stops=True)
            folder = dump_folder(self.dumps.run_dir, number)
            raise NonFiniteError(f"{message}. The batch is in {folder}: vlm-mhpo replay {folder}") from problem

    def _enter(self, number: int, stage: str) -> None:
        if stage in PHASES:
            self.guard.watchdog.enter(stage, number)

    def seconds(self, step: Step) -> dict[str, float]:
        """`step_time` and `time/STAGE` of a step up to now."""
        parts = {f"time/{stage}": seconds for stage, seconds in self.clock.totals.items()}
        return {"step_time": time.perf_counter() - step.began, **parts}

    def alarmed(self, step: Step, found: Sequence[Alarm]) -> None:
        """Say, and dump, what is wrong with a finished step."""
        for alarm in found:
            folder = self.dumps.write(step.number, step.batch(), alarm.message)
            if ranks.is_main():
                tqdm.write(f"WARNING: step {step.number}: {alarm.message}; the batch is in {folder}")

    def save(self, step: Step, metrics: dict[str, float], *, found: Sequence[Alarm] = (), last: bool = False) -> None:
        """Save after a recorded step if it is due, and end the run if a signal or an alarm wants it.

        After the records: a run that dies in between continues from the checkpoint before and writes them again.
        """
        asked = self.guard.stop.agreed()
        with span("checkpoint"):
            stops = asked or last or any(alarm.stops for alarm in found)
            self.saving.if_due(step.number, metrics, asked=stops)
        for alarm in found:
            if alarm.stops:
                raise TrainingError(f"step {step.number}: {alarm.message}; the checkpoint of this step is saved")
        if asked:
            self.leave(step.number, is_saved=True)

    def leave(self, step: int, *, is_saved: bool) -> NoReturn:
        """Save the state after `step` finished steps, if there is any that is not saved, and end all ranks politely."""
        saved = self._saved(step, is_saved=is_saved)
        raise Stopped(
            f"after step {step} of {self.max_steps}, as asked; {saved}. Start the same command again to continue",
            exit_code=self.guard.stop.exit_code,
        )

    def _saved(self, step: int, *, is_saved: bool) -> str:
        """Save the state after `step` finished steps, as far as it is not, and what to say of it."""
        if not is_saved and step:
            self.guard.watchdog.enter("checkpoint", step)
            self.saving.if_due(step, asked=True)
        self.saving.finish(last=True, wait=True)
        return "its checkpoint is saved" if step else "there was nothing to save"


def score_together(
    score: Callable[[Sequence[Group], int], list[ScoredGroup]], groups: Sequence[Group], dumps: Dumps, step: int
) -> list[ScoredGroup]:
    """`score(groups, step - 1)` on all ranks; when it fails on one, its batch is dumped and all raise.

    Args:
        step: 1-based.

    Raises:
        TrainingError: the scoring failed on some rank.
    """
    scored: list[ScoredGroup] = []
    error = None
    try:
        scored = score(groups, step - 1)
    except (RewardError, VerifierError) as problem:
        folder = dumps.write(step, unscored(groups), str(problem), "".join(traceback.format_exception(problem)))
        error = TrainingError(f"{problem}. The batch of step {step} is in {folder}")
    if ranks.largest(int(error is not None)):
        ranks.raise_together(error)
    return scored
