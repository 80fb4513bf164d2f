"""Write a checkpoint so that a kill, a power loss or a full disk at any moment leaves whole ones only.

Stage, fsync, manifest with sha256, rename, and only then remove older ones, which first lose their name.
DeepSpeed's own `latest` file is not written: it is updated before the other ranks' shards are safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from vlm_mhpo import distributed
from vlm_mhpo.checkpoint.best import Best, write_best
from vlm_mhpo.checkpoint.files import DISK, Disk, files_of, folders_of, listing_of, remove_tree, write_json
from vlm_mhpo.checkpoint.names import (
    ENGINE_TAG,
    FORMAT_VERSION,
    MANIFEST,
    REMOVED,
    STAGING,
    STATE,
    folder_of,
    leftovers_in,
    steps_in,
)
from vlm_mhpo.engine import Engine
from vlm_mhpo.errors import SaveError

Listing = dict[str, dict[str, Any]]


def save(
    engine: Engine,
    root: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int,
    extra: Callable[[Path, Disk], None],
    best: Best | None = None,
    disk: Disk = DISK,
) -> Path:
    """Write `root/step_XXXXXX` so that a kill at any moment leaves either the old or the new checkpoint.

    Args:
        engine: its weights and optimizer state.
        root: folder of all checkpoints of the run.
        step: finished training steps.
        state: JSON values that resuming must find again (see `check_state`); "scores" holds metrics for `best`.
        keep: newest checkpoints that stay.
        extra: writes more files into the folder that it is given; called on all ranks.
        best: also keep the best checkpoint by this metric.
        disk: takes every file operation.

    Raises:
        SaveError: on every rank, when any could not write; older checkpoints are intact.
    """
    final = folder_of(root, step)
    staging = root / f"{STAGING}{final.name}"
    state = {**state, "format_version": FORMAT_VERSION, "step": step}
    try:
        together(step, lambda: make_staging(disk, root, staging), main_only=True)
        shards = together(step, lambda: write_shards(engine, staging, disk))
        together(step, lambda: extra(staging, disk))
        listing = {name: entry for part in distributed.gather_objects(shards) for name, entry in part.items()}
        together(step, lambda: commit(staging, final, state, listing=listing, disk=disk), main_only=True)
    except SaveError:
        if distributed.is_main() and staging.exists():
            # A disk that refuses writes may refuse this too; the next save clears it away.
            with suppress(OSError):
                remove_tree(disk, staging)
        raise
    if distributed.is_main():
        tidy(disk, root, keep, step, best)
    distributed.barrier()
    return final


def together(step: int, act: Callable[[], Any], *, main_only: bool = False) -> Any:
    """Do something on all ranks or the main one; SaveError on every rank when the disk refused it on any."""
    result, error = None, None
    if distributed.is_main() or not main_only:
        try:
            result = act()
        except OSError as problem:
            error = SaveError(f"step {step} could not be saved: {problem}; older checkpoints are intact")
    distributed.raise_together(error)
    return result


def make_staging(disk: Disk, root: Path, staging: Path) -> None:
    """Clear away what interrupted saves left, and make the folder that is filled."""
    if not root.is_dir():
        disk.make_folder(root)
        disk.fsync(root.parent)
    for left in leftovers_in(root):
        remove_tree(disk, left)
    disk.make_folder(staging)


def write_shards(engine: Engine, staging: Path, disk: Disk) -> Listing:
    """DeepSpeed's shards of this rank, written by `disk` and fsynced; returns their manifest entries."""
    with through(disk, engine.deepspeed) as written:
        engine.deepspeed.save_checkpoint(str(staging), tag=ENGINE_TAG, save_latest=False)
    for file in written:
        disk.fsync(file)
    return listing_of(written, staging)


@contextmanager
def through(disk: Disk, deepspeed: Any) -> Iterator[list[Path]]:
    """Inside, DeepSpeed writes through `disk`; gives the files written so far, and raises the first OSError at the end.

    At the end, because the other ranks wait for this one inside DeepSpeed's save.
    """
    engine, written, problems = deepspeed.checkpoint_engine, [], []

    def attempt(act: Callable[[], None]) -> None:
        try:
            if not problems:
                act()
        except OSError as problem:
            problems.append(problem)

    def write(state_dict: Any, path: str) -> None:
        attempt(lambda: disk.write(Path(path), lambda stream: torch.save(state_dict, stream)))
        written.append(Path(path))

    # DeepSpeed would put a program beside its shards; a checkpoint is data.
    replaced = {(engine, "save"): write, (deepspeed, "_copy_recovery_script"): lambda folder: None}
    replaced[engine, "makedirs"] = lambda path, exist_ok=False: attempt(lambda: disk.make_folder(Path(path)))
    for (owner, name), function in replaced.items():
        setattr(owner, name, function)
    try:
        yield written
    finally:
        for owner, name in replaced:
            delattr(owner, name)
    if problems:
        raise problems[0]


def commit(
    staging: Path, final: Path, state: dict[str, Any], *, listing: Listing | None = None, disk: Disk = DISK
) -> None:
    """Write state and manifest into the staging folder, then make it the checkpoint by a rename.

    Args:
        listing: manifest entries of the files that are on the disk already; the others are fsynced and listed here.
    """
    listing = dict(listing or {})
    write_json(disk, staging / STATE, state)
    others = [file for file in files_of(staging) if str(file.relative_to(staging)) not in listing]
    for file in others:
        if file.name != STATE:
            disk.fsync(file)
    write_json(disk, staging / MANIFEST, {"files": listing | listing_of(others, staging)})
    for folder in folders_of(staging):
        disk.fsync(folder)
    if final.exists():
        # Only a run that went back to an older step writes one again.
        disk.rename(final, final.with_name(f"{REMOVED}{final.name}"))
    disk.rename(staging, final)
    disk.fsync(final.parent)


def tidy(disk: Disk, root: Path, keep: int, step: int, best: Best | None) -> None:
    """Name the best checkpoint and remove the needless ones. The new one is safe, so a failure here is a warning."""
    try:
        prune(root, keep, newest=step, best=best, disk=disk)
    except OSError as problem:
        print(f"WARNING: step {step} is saved, but older checkpoints could not be removed: {problem}", flush=True)


def prune(root: Path, keep: int, *, newest: int, best: Best | None = None, disk: Disk = DISK) -> None:
    """Remove all but the last `keep` checkpoints up to step `newest` and the best of them.

    Later ones go too: the run went back from them.
    """
    for step in steps_in(root):
        if step > newest:
            remove_checkpoint(disk, root, step)
    kept = steps_in(root)[-keep:]
    if best is not None:
        kept.append(write_best(disk, root, best))
    for step in steps_in(root):
        if step not in kept:
            remove_checkpoint(disk, root, step)
    for left in leftovers_in(root):
        remove_tree(disk, left)


def remove_checkpoint(disk: Disk, root: Path, step: int) -> None:
    """Take a checkpoint its name at once, so that half of one is never taken for a checkpoint, then its files."""
    removed = root / f"{REMOVED}{folder_of(root, step).name}"
    disk.rename(folder_of(root, step), removed)
    disk.fsync(root)
    remove_tree(disk, removed)
