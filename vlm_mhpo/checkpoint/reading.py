"""Read checkpoints as untrusted input: every file is checked against the manifest, and loading runs no code."""

from __future__ import annotations

import json
import os
import pickle
import re
import stat
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from vlm_mhpo.checkpoint.files import files_of, sha256
from vlm_mhpo.checkpoint.names import ENGINE_TAG, FORMAT_VERSION, MANIFEST, STATE, folder_of, steps_in
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import CheckpointError
from vlm_mhpo.runtime import ranks


def newest_valid(root: Path) -> tuple[int, dict[str, Any]] | None:
    """Step and state of the newest checkpoint whose files are what the manifest says; None when there never was one.

    Raises:
        CheckpointError: checkpoints exist and all are damaged.
    """
    problems: list[str] = []
    for step in reversed(steps_in(root)):
        try:
            return step, read_state(folder_of(root, step))
        except CheckpointError as error:
            problems.append(str(error))
            if ranks.is_main():
                print(f"ERROR: {error}; trying the one before", flush=True)
    if problems:
        raise CheckpointError(
            f"no checkpoint in {root} can be used ({problems[0]}): move the folder away to start over"
        )
    return None


def read_state(folder: Path) -> dict[str, Any]:
    """The state of a checkpoint after checking every file against the manifest."""
    _refuse_links(folder)
    try:
        entries = json.loads((folder / MANIFEST).read_text())["files"].items()
        listing = {name: (entry["bytes"], entry["sha256"]) for name, entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{folder}: unreadable manifest ({error})") from error
    present = {str(file.relative_to(folder)) for file in files_of(folder)} - {MANIFEST}
    if extra := sorted(present - set(listing)):
        raise CheckpointError(f"{folder}: {extra[0]} is not in the manifest")
    if STATE not in listing:
        raise CheckpointError(f"{folder}: {STATE} is not in the manifest")
    for name, (num_bytes, digest) in listing.items():
        # Not the disk's own answer: a listed `../name` may exist, but not in here.
        if name not in present:
            raise CheckpointError(f"{folder}: {name} is missing")
        file = folder / name
        if file.stat().st_size != num_bytes or sha256(file) != digest:
            raise CheckpointError(f"{folder}: {name} differs from the manifest")
    state = json.loads((folder / STATE).read_text())
    if state["format_version"] != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} is whole, but of format {state['format_version']}, which another version of this program wrote; "
            f"this one reads {FORMAT_VERSION}"
        )
    return state


def digest(root: Path, step: int) -> str | None:
    """What tells a checkpoint from others of the same step: the digest of its manifest; None if it is not there."""
    try:
        return sha256(folder_of(root, step) / MANIFEST)
    except OSError:
        return None


def _refuse_links(folder: Path) -> None:
    """CheckpointError for a checkpoint that is, or holds, anything but files and folders of its own."""
    for path in (folder, *sorted(folder.rglob("*"))):
        mode = path.lstat().st_mode
        if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
            kind = "a link" if stat.S_ISLNK(mode) else "neither a file nor a folder"
            raise CheckpointError(f"{folder}: {path.relative_to(folder)} is {kind}")


def refuse_strangers(folder: Path) -> None:
    """CheckpointError when somebody else may have written a checkpoint, or the folder that holds it.

    An optimizer state from a stranger runs no code, but it can train what the stranger wants.
    """
    for path in (folder.parent, folder, *sorted(folder.rglob("*"))):
        found = path.stat()
        if found.st_uid != os.geteuid():
            problem = f"belongs to user {found.st_uid}, and this process is user {os.geteuid()}"
        elif found.st_mode & stat.S_IWOTH:
            problem = f"can be written by everybody (chmod -R o-w {folder.parent})"
        else:
            continue
        raise CheckpointError(f"{path} {problem}: set checkpoint.trust_folder=true if you trust what is in it")


def check_state(
    state: Mapping[str, Any],
    expected: Mapping[str, Any],
    folder: Path,
    *,
    free: tuple[str, ...] = (),
    advice: str = "Use the same values, or another output_dir",
) -> dict[str, str]:
    """Refuse a checkpoint of another setting, naming every value that differs; `advice` ends the sentence.

    Returns:
        What differs among the keys in `free`, a phrase for each key.

    Raises:
        CheckpointError: another key differs.
    """
    phrases = {
        key: f"{key} was {state.get(key)!r} and is now {value!r}"
        for key, value in expected.items()
        if state.get(key) != value
    }
    if different := [phrase for key, phrase in phrases.items() if key not in free]:
        raise CheckpointError(f"{folder} belongs to another setting: {'; '.join(different)}. {advice}")
    return phrases


def refuse_programs(folder: Path) -> None:
    """CheckpointError for a checkpoint with a shard that might run code; its tensors stay on the disk.

    Loading refuses it as well, but shard by shard, when other ranks may wait for the one that met it.
    """
    for shard in sorted((folder / ENGINE_TAG).rglob("*.pt")):
        safe_load(str(shard), "cpu", mmap=True)


def load(engine: Engine, folder: Path) -> None:
    """Put a checkpoint's weights and optimizer state into the engine; no pickle but DeepSpeed's own is read."""
    engine.deepspeed.checkpoint_engine.load = safe_load
    # Of a policy with adapters they alone are in a checkpoint.
    path, _ = engine.deepspeed.load_checkpoint(
        str(folder), tag=ENGINE_TAG, load_lr_scheduler_states=False, load_module_strict=not engine.policy.has_adapters
    )
    if path is None:
        raise CheckpointError(f"{folder}: DeepSpeed found nothing to load")


def safe_load(path: str, map_location: Any = None, *, mmap: bool = False) -> Any:
    """torch.load that runs no code: tensors, plain values, and three classes of DeepSpeed's shards.

    Raises:
        CheckpointError: the file holds anything else, which is named.
    """
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    with torch.serialization.safe_globals([LossScaler, ZeroStageEnum, fragment_address]):
        try:
            # torch maps only zip files; what is none is read, to say what it holds.
            mmap = mmap and zipfile.is_zipfile(path)
            return torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            # Of torch's page only this word: the rest tells how to load it all the same.
            named = re.search(r"GLOBAL ([\w.]+)", str(error))
            what = f"holds {named[1]}, which may run code" if named else "holds more than tensors and plain values"
            raise CheckpointError(f"{path} {what}, and is not read") from error
        # A file made to harm can break torch's reader in any way.
        except Exception as error:
            raise CheckpointError(f"{path} cannot be read ({error!r})") from error
