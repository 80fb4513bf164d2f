"""Write a checkpoint so that a kill, a power loss or a full disk at any moment leaves whole ones only.

Stage, fsync, manifest with sha256, rename, and only then remove older ones, which first lose their name.
DeepSpeed's own `latest` file is not written: it is updated before the other ranks' shards are safe.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from vlm_mhpo.checkpoint.best import Best, write_best
from vlm_mhpo.checkpoint.files import (
    DISK,
    Disk,
    check_all_here,
    files_of,
    folders_of,
    listing_of,
    remove_tree,
    write_json,
)
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
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import SaveError
from vlm_mhpo.runtime import ranks

Listing = dict[str, dict[str, Any]]


def save(*args: Any, **options: Any) -> Path:
    """`begin` and `finish` at once; arguments, result and errors as theirs."""
    return finish(begin(*args, **options))


@dataclass(frozen=True, slots=True)
class Saving:
    """A checkpoint that is written and not yet committed.

    Attributes:
        settled: manifest entries of this rank's files once they are on the disk; raises OSError when they cannot be.
    """

    root: Path
    step: int
    state: dict[str, Any]
    keep: int
    best: Best | None
    disk: Disk
    settled: Future[Listing]

    @property
    def staging(self) -> Path:
        """The folder that becomes the checkpoint."""
        return self.root / f"{STAGING}{folder_of(self.root, self.step).name}"


def begin(
    engine: Engine,
    root: Path,
    step: int,
    state: dict[str, Any],
    *,
    keep: int,
    extra: Callable[[Path, Disk], None],
    best: Best | None = None,
    disk: Disk = DISK,
    background: bool = False,
) -> Saving:
    """Write the files of `root/step_XXXXXX` into a staging folder; training may go on afterwards.

    Args:
        engine: its weights and optimizer state.
        root: folder of all checkpoints of the run.
        step: finished training steps.
        state: JSON values that resuming must find again (see `check_state`); "scores" holds metrics for `best`.
        keep: newest checkpoints that stay.
        extra: writes more files into the folder that it is given; called on all ranks.
        best: also keep the best checkpoint by this metric.
        disk: takes every file operation.
        background: force the files to the disk and compute their checksums in a thread; until it is through they
            lie in the system's file cache.

    Raises:
        SaveError: on every rank, when any could not write; older checkpoints are intact.
    """
    state = {**state, "format_version": FORMAT_VERSION, "step": step}
    saving = Saving(root, step, state, keep, best, disk, Future())
    staging = saving.staging
    with _clearing(saving):
        together(step, lambda: _make_staging(disk, root, staging), main_only=True)
        written = together(step, lambda: _write_shards(engine, staging, disk))
        together(step, lambda: extra(staging, disk))
    if ranks.is_main():
        # The shards of other ranks may lie there, too; each settles its own.
        written += [file for file in files_of(staging) if file.relative_to(staging).parts[0] != ENGINE_TAG]
    settle = Thread(target=settle_files, args=(saving, written), name="checkpoint")
    settle.start()
    if not background:
        settle.join()
    return saving


def settle_files(saving: Saving, files: Sequence[Path]) -> None:
    """Force files to the disk and list them."""
    try:
        for file in files:
            saving.disk.fsync(file)
        saving.settled.set_result(listing_of(list(files), saving.staging))
    except BaseException as problem:  # whatever it is, `finish` raises it
        saving.settled.set_exception(problem)


def finish(saving: Saving) -> Path:
    """Make a written checkpoint the newest, so that a kill at any moment leaves either the old or the new one.

    Waits for the files to be on the disk. Called by all ranks.

    Raises:
        SaveError: on every rank, when any could not write; older checkpoints are intact.
    """
    final = folder_of(saving.root, saving.step)
    with _clearing(saving):
        own = together(saving.step, saving.settled.result)
        listing = {name: entry for part in ranks.gather_objects(own) for name, entry in part.items()}
        together(
            saving.step,
            lambda: commit(saving.staging, final, saving.state, listing=listing, disk=saving.disk),
            main_only=True,
        )
    if ranks.is_main():
        _tidy(saving.disk, saving.root, saving.keep, saving.step, saving.best)
    ranks.barrier()
    return final


@contextmanager
def _clearing(saving: Saving) -> Iterator[None]:
    """Inside, a save that is refused removes what it has written."""
    try:
        yield
    except SaveError:
        if ranks.is_main() and saving.staging.exists():
            # A disk that refuses writes may refuse this too; the next save clears it away.
            with suppress(OSError):
                remove_tree(saving.disk, saving.staging)
        raise


def together(step: int, act: Callable[[], Any], *, main_only: bool = False) -> Any:
    """Do something on all ranks or the main one; SaveError on every rank when the disk refused it on any."""
    result, error = None, None
    if ranks.is_main() or not main_only:
        try:
            result = act()
        except OSError as problem:
            error = SaveError(f"step {step} could not be saved: {problem}; older checkpoints are intact")
    ranks.raise_together(error)
    return result


def _make_staging(disk: Disk, root: Path, staging: Path) -> None:
    """Clear away what interrupted saves left, and make the folder that is filled."""
    if not root.is_dir():
        disk.make_folder(root)
        disk.fsync(root.parent)
    for left in leftovers_in(root):
        remove_tree(disk, left)
    disk.make_folder(staging)


def _write_shards(engine: Engine, staging: Path, disk: Disk) -> list[Path]:
    """DeepSpeed's shards of this rank, written by `disk`; not yet forced to the disk."""
    with through(disk, engine.deepspeed) as written:
        # The weights beside adapters are those of the base, and stay there.
        engine.deepspeed.save_checkpoint(
            str(staging), tag=ENGINE_TAG, save_latest=False, exclude_frozen_parameters=engine.policy.has_adapters
        )
    return written


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

    Raises:
        OSError: a file of the listing is not there with its size, or the disk refuses something.
    """
    listing = dict(listing or {})
    check_all_here(staging, listing)
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


def _tidy(disk: Disk, root: Path, keep: int, step: int, best: Best | None) -> None:
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
            _remove_checkpoint(disk, root, step)
    kept = steps_in(root)[-keep:]
    if best is not None:
        kept.append(write_best(disk, root, best))
    for step in steps_in(root):
        if step not in kept:
            _remove_checkpoint(disk, root, step)
    for left in leftovers_in(root):
        remove_tree(disk, left)


def _remove_checkpoint(disk: Disk, root: Path, step: int) -> None:
    """Take a checkpoint its name at once, so that half of one is never taken for a checkpoint, then its files."""
    removed = root / f"{REMOVED}{folder_of(root, step).name}"
    disk.rename(folder_of(root, step), removed)
    disk.fsync(root)
    remove_tree(disk, removed)
