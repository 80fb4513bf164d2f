"""Write a policy as a folder that transformers loads with from_pretrained: safetensors, config, processor."""

from __future__ import annotations

import stat
from pathlib import Path

from safetensors import SafetensorError

from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint import DISK, Disk
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import CheckpointError, ModelError
from vlm_mhpo.models.adapters import adapters_of
from vlm_mhpo.models.folder import ADAPTER_FILE
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.runtime import ranks

POLICY_FOLDER = "policy"
# One of them is in every model or adapter.
SETTINGS = ("config.json", ADAPTER_FILE)


def save_policy(engine: Engine, codec: Codec, folder: Path, disk: Disk = DISK) -> None:
    """Gather the weights, or the adapters alone, (ZeRO-3) and write them once; called on all ranks.

    Raises:
        OSError: on the main rank, after all ranks have left the gathered weights; also when what was written has other
            tensors than the folder that was loaded.
    """
    policy = engine.policy

    def write(target: Path) -> None:
        policy.save(target)
        codec.processor.save_pretrained(target)
        make_readable(target)

    problem: OSError | None = None
    with engine.whole_weights(adapters_of(policy.model)):
        if ranks.is_main():
            try:
                disk.write_folder(folder, write)
            except OSError as error:
                problem = error
            except (SafetensorError, ModelError) as error:
                # The Rust code of the former reports a full disk so.
                problem = OSError(str(error))
    ranks.barrier()
    if problem is not None:
        raise problem


def make_readable(folder: Path) -> None:
    """Give every file of a policy the mode of its settings: safetensors makes files that their owner alone reads."""
    settings = next(file for name in SETTINGS if (file := folder / name).exists())
    mode = stat.S_IMODE(settings.stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def holds_policy(folder: Path) -> bool:
    """Whether a model or an adapter lies directly in a folder."""
    return any((folder / name).is_file() for name in SETTINGS)


def find_policy(path: str, which: str = "newest") -> str:
    """The model folder that `path` means: itself, a checkpoint's policy, or that of a checkpoint of a run.

    Args:
        which: of a run, the "newest" checkpoint or the "best" by its `checkpoint.keep_best`.

    Raises:
        CheckpointError: a run folder without a whole checkpoint, or without a best one.
    """
    folder = Path(path)
    for candidate in (folder, folder / POLICY_FOLDER):
        if holds_policy(candidate):
            return str(candidate)
    root = folder / "checkpoints"
    if root.is_dir():
        if which == "best":
            step = checkpoint.read_best(root)
            checkpoint.read_state(checkpoint.folder_of(root, step))
        else:
            found = checkpoint.newest_valid(root)
            if found is None:
                raise CheckpointError(f"{folder} has no finished checkpoint yet")
            step = found[0]
        return str(checkpoint.folder_of(root, step) / POLICY_FOLDER)
    return path
