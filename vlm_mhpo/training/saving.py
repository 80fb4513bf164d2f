"""Continue a run where its newest whole checkpoint ends, or refuse to, naming what differs."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint.policy_folder import save_policy
from vlm_mhpo.config import Config
from vlm_mhpo.config.reading import flatten
from vlm_mhpo.errors import CheckpointError, SaveError
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.secrets import without_secrets
from vlm_mhpo.training.assembly import Setup

# Keys that may change between a run and its continuation: they do not change what is learnt.
FREE_KEYS = (
    "output_dir",
    "num_threads",
    "logging.",
    "checkpoint.",
    "eval.",
    "faults.",
    "rewards.num_workers",
    "rewards.max_timeout_share",
    "rewards.max_zero_accuracy_steps",
    "data.eval",
    "data.max_eval_rows",
)
# What may change because a checkpoint can be cut anew.
LAYOUT_KEYS = ("world_size", "deepspeed.zero_stage")


@contextmanager
def only_writer(config: Config) -> Iterator[None]:
    """Hold the run folder for this run; CheckpointError on every rank when another run holds it."""
    with ExitStack() as stack:
        error: CheckpointError | None = None
        if ranks.is_main():
            try:
                stack.enter_context(checkpoint.only_writer(Path(config.output_dir)))
            except CheckpointError as problem:
                error = problem
        ranks.raise_together(error)
        yield


def resume(setup: Setup) -> int:
    """Load the newest whole checkpoint of the run folder; returns the finished steps, 0 for a new run.

    Raises:
        CheckpointError: the checkpoint is of another setting, a stranger's or holds a program, all are damaged, or a
            run is there without any.
    """
    root = setup.run_dir / "checkpoints"
    found, recut, error = None, [], None
    if ranks.is_main():
        try:
            found = checkpoint.newest_valid(root)
            if found:
                folder = checkpoint.folder_of(root, found[0])
                if not setup.config.checkpoint.trust_folder:
                    checkpoint.refuse_strangers(folder)
                recut = checkpoint.check_state(found[1], fixed_values(setup), folder, free=LAYOUT_KEYS)
                checkpoint.refuse_programs(folder)
            else:
                refuse_silent_restart(setup.run_dir)
        except CheckpointError as problem:
            error = problem
    ranks.raise_together(error)
    step, recut = ranks.gather_objects((found and found[0], recut))[0]
    if not step:
        return 0
    (checkpoint.load_resharded if recut else checkpoint.load)(setup.engine, checkpoint.folder_of(root, step))
    if ranks.is_main():
        tqdm.write(f"continuing after step {step} of {setup.config.train.max_steps}")
        if recut:
            tqdm.write(f"resharded: {'; '.join(recut)}")
    return step


def refuse_silent_restart(run_dir: Path) -> None:
    """CheckpointError when the folder holds trained steps and no checkpoint to continue from."""
    metrics = run_dir / "metrics.jsonl"
    steps = [line for line in metrics.read_text().splitlines() if '"reward"' in line] if metrics.exists() else []
    if steps:
        raise CheckpointError(
            f"{run_dir} holds {len(steps)} trained steps but no checkpoint to continue from: remove the folder or "
            "choose another output_dir"
        )


def is_due(config: Config, step: int) -> bool:
    """Whether the configuration asks for a checkpoint after `step` steps."""
    every = config.checkpoint.save_steps
    return step == config.train.max_steps or bool(every and step % every == 0)


def save_if_due(setup: Setup, step: int, metrics: Mapping[str, float] | None = None, *, asked: bool = False) -> None:
    """Write the checkpoint after `step` steps if it is time: shards for resuming, `policy/` for from_pretrained.

    Args:
        metrics: row of the step, the same on all ranks; `checkpoint.keep_best` looks its metric up there.
        asked: write it whatever the configuration says, because the run stops here.

    Raises:
        SaveError: the disk refused it, and the configuration says to stop or this was the last chance.
    """
    config, last = setup.config, asked or step == setup.config.train.max_steps
    due = asked or is_due(config, step)
    finish_pending(setup, last=last, wait=due)
    if not due:
        return
    best, scores = None, {}
    if metric := config.checkpoint.keep_best:
        best = checkpoint.Best(metric, highest=config.checkpoint.best_is == "highest")
        scores = {name: value for name, value in (metrics or {}).items() if name == metric}
        if not scores and ranks.is_main():
            tqdm.write(f"WARNING: step {step} has no {metric}, so its checkpoint cannot be kept as the best")
    background = config.checkpoint.background and not last
    with refusal(setup, last=last):
        setup.pending.append(
            checkpoint.begin(
                setup.engine,
                setup.run_dir / "checkpoints",
                step,
                fixed_values(setup) | {"scores": scores},
                keep=config.checkpoint.save_total_limit,
                extra=lambda folder, disk: save_policy(setup.engine, setup.codec, folder / "policy", disk),
                best=best,
                background=background,
            )
        )
    finish_pending(setup, last=last, wait=not background)


def finish_pending(setup: Setup, *, last: bool, wait: bool) -> None:
    """Commit the checkpoint that is on its way, if its files are on every rank's disk; with `wait`, in any case.

    Raises:
        SaveError: as `save_if_due`.
    """
    if setup.pending and (wait or not ranks.largest(int(not setup.pending[0].settled.done()))):
        with refusal(setup, last=last):
            checkpoint.finish(setup.pending.pop())


@contextmanager
def refusal(setup: Setup, *, last: bool) -> Iterator[None]:
    """Inside, a checkpoint that the disk refuses is left out, if the run is told so and goes on."""
    try:
        yield
    except SaveError as problem:
        if last or setup.config.checkpoint.on_error == "stop":
            raise
        if ranks.is_main():
            tqdm.write(f"WARNING: {problem}; going on without it (checkpoint.on_error=continue)")


def fixed_values(setup: Setup) -> dict[str, Any]:
    """What a continuation must share with the run that it continues."""
    values = {
        key: value
        for key, value in flatten(without_secrets(setup.config.model_dump())).items()
        if not any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE_KEYS)
    }
    if setup.config.train.lr_scheduler_type == "constant":
        # A longer run with a constant rate is the same run, only longer.
        values.pop("train.max_steps")
    identity = "\n".join(f"{row.id}\t{row.answer}" for row in setup.train_rows)
    return values | {
        # A user's own DeepSpeed file may decide the stage.
        "deepspeed.zero_stage": setup.engine.zero_stage,
        "world_size": ranks.world_size(),
        "training rows": f"{len(setup.train_rows)} rows, {hashlib.sha256(identity.encode()).hexdigest()[:16]}",
    }
