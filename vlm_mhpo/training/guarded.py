"""What the training loop does when it is asked or forced to stop: agree, keep the evidence, save, say why."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from tqdm import tqdm

from rewards import RewardError, VerifierError
from vlm_mhpo.checkpoint.policy_folder import save_policy
from vlm_mhpo.errors import Stopped, TrainingError
from vlm_mhpo.faults.dump import POLICY_FOLDER, dump_folder, unscored, whole_step, write_dump
from vlm_mhpo.faults.guard import Guard
from vlm_mhpo.faults.health import Alarm, alarms, idle_steps, vitals_of
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.assembly import Setup
from vlm_mhpo.training.saving import finish_pending, is_due, save_if_due
from vlm_mhpo.types import Group, Minibatch, ScoredGroup

# Skipped updates that are dumped; a run that skips all the time must not fill the disk.
MAX_DUMPS = 5


def leave(setup: Setup, guard: Guard, step: int, *, is_saved: bool) -> NoReturn:
    """Save the state after `step` finished steps, if there is any that is not saved, and end all ranks politely."""
    if not is_saved and step:
        guard.watchdog.enter("checkpoint", step)
        save_if_due(setup, step, asked=True)
    finish_pending(setup, last=True, wait=True)
    saved = "its checkpoint is saved" if step else "there was nothing to save"
    raise Stopped(
        f"after step {step} of {setup.config.train.max_steps}, as asked; {saved}. Start the same command again "
        "to continue",
        exit_code=guard.stop.exit_code,
    )


def leave_before(setup: Setup, guard: Guard, step: int, start: int) -> NoReturn:
    """`leave` when step `step` (0-based) was given up before a weight moved; the run began at `start`."""
    leave(setup, guard, step, is_saved=step == start or is_due(setup.config, step))


def examine(
    setup: Setup, guard: Guard, metrics: dict[str, Any], batches: Sequence[Minibatch], step: int
) -> list[Alarm]:
    """Take a finished step (1-based) into the history; say, and dump, what is wrong with it. Adds `idle_steps`."""
    guard.history.append(vitals_of(metrics))
    metrics["idle_steps"] = float(idle_steps(guard.history))
    found = alarms(guard.history, setup.config)
    for finding in found:
        folder = write_dump(setup.run_dir, step, whole_step(batches), setup.config, finding.message)
        if ranks.is_main():
            tqdm.write(f"WARNING: step {step}: {finding.message}; the batch is in {folder}")
    return found


def stop_if_asked(setup: Setup, guard: Guard, found: Sequence[Alarm], asked: bool, step: int) -> None:
    """After step `step` (1-based) is recorded and saved: end the run if a signal or a finding wants it."""
    for finding in found:
        if finding.stops:
            raise TrainingError(f"step {step}: {finding.message}; the checkpoint of this step is saved")
    if asked:
        leave(setup, guard, step, is_saved=True)


def dump_bad_update(setup: Setup, step: int) -> Callable[[Minibatch, str], None]:
    """What keeps the minibatch of an update that was not finite, and the weights if it ends the run."""
    config = setup.config
    stops = config.train.on_nonfinite == "stop"

    def keep(batch: Minibatch, message: str) -> None:
        folder = dump_folder(setup.run_dir, step)
        others = [path for path in folder.parent.glob("step_*") if path.name != folder.name]
        if not stops and len(others) >= MAX_DUMPS:
            return
        write_dump(setup.run_dir, step, batch, config, message)
        if stops and config.faults.dump_weights:
            save_policy(setup.engine, setup.codec, folder / POLICY_FOLDER)
        if ranks.is_main():
            tqdm.write(f"the batch of step {step} is in {folder}: vlm-mhpo replay {folder}")

    return keep


def score_together(
    setup: Setup, score: Callable[[], list[ScoredGroup]], groups: Sequence[Group], step: int
) -> list[ScoredGroup]:
    """`score()` of these groups on all ranks; when it fails on one, its batch is dumped and all raise.

    Raises:
        TrainingError: the scoring failed on some rank.
    """
    scored: list[ScoredGroup] = []
    error = None
    try:
        scored = score()
    except (RewardError, VerifierError) as problem:
        folder = write_dump(setup.run_dir, step, unscored(groups), setup.config, str(problem))
        error = TrainingError(f"{problem}. The batch of step {step} is in {folder}")
    if ranks.largest(int(error is not None)):
        ranks.raise_together(error)
    return scored


@contextmanager
def dumping(setup: Setup, step: int, batch: Callable[[], Minibatch]) -> Iterator[None]:
    """Inside, a completion that the model cannot read is dumped by the rank that has it, which then ends."""
    try:
        yield
    except TrainingError as problem:
        folder = write_dump(setup.run_dir, step, batch(), setup.config, str(problem))
        raise TrainingError(f"step {step}: {problem}. The batch is in {folder}: vlm-mhpo replay {folder}") from problem
