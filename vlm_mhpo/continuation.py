"""Continue a run where its newest whole checkpoint ends, or refuse to, naming what differs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from tqdm import tqdm

from vlm_mhpo import checkpoint, distributed
from vlm_mhpo.config import Config
from vlm_mhpo.errors import CheckpointError
from vlm_mhpo.models.export import save_policy
from vlm_mhpo.setup import Setup

# Keys that may change between a run and its continuation: they do not change what is learnt.
FREE_KEYS = (
    "output_dir",
    "num_threads",
    "logging.",
    "checkpoint.",
    "eval.",
    "rewards.num_workers",
    "data.eval",
    "data.max_eval_rows",
)


def resume(setup: Setup) -> int:
    """Load the newest whole checkpoint of the run folder; returns the finished steps, 0 for a new run.

    Raises:
        CheckpointError: the checkpoint is of another setting, all are damaged, or a run is there without any.
    """
    root = setup.run_dir / "checkpoints"
    found, error = None, None
    if distributed.is_main():
        try:
            found = checkpoint.newest_valid(root)
            if found:
                checkpoint.check_state(found[1], fixed_values(setup), checkpoint.folder_of(root, found[0]))
            else:
                refuse_silent_restart(setup.run_dir)
        except CheckpointError as problem:
            error = problem
    distributed.raise_together(error)
    found = distributed.gather_objects(found)[0]
    if not found:
        return 0
    checkpoint.load(setup.engine, checkpoint.folder_of(root, found[0]))
    if distributed.is_main():
        tqdm.write(f"continuing after step {found[0]} of {setup.config.train.max_steps}")
    return found[0]


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


def save_if_due(setup: Setup, step: int, asked: bool = False) -> None:
    """Write the checkpoint after `step` steps if it is time, or if it is asked for.

    Shards for resuming, `policy/` for from_pretrained.
    """
    if not (asked or is_due(setup.config, step)):
        return
    checkpoint.save(
        setup.engine,
        setup.run_dir / "checkpoints",
        step,
        fixed_values(setup),
        keep=setup.config.checkpoint.save_total_limit,
        extra=lambda folder: save_policy(setup.engine, setup.tools, folder / "policy"),
    )


def fixed_values(setup: Setup) -> dict[str, Any]:
    """What a continuation must share with the run that it continues."""
    values = {
        key: value
        for key, value in flatten(setup.config.model_dump()).items()
        if not any(key == free or (free.endswith(".") and key.startswith(free)) for free in FREE_KEYS)
    }
    if setup.config.train.lr_scheduler_type == "constant":
        # A longer run with a constant rate is the same run, only longer.
        values.pop("train.max_steps")
    identity = "\n".join(f"{row.id}\t{row.answer}" for row in setup.train_rows)
    return values | {
        "world_size": distributed.world_size(),
        "training rows": f"{len(setup.train_rows)} rows, {hashlib.sha256(identity.encode()).hexdigest()[:16]}",
    }


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
