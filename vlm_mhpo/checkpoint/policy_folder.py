"""Write a policy as a folder that transformers loads with from_pretrained: safetensors, config, processor."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path

from safetensors import SafetensorError

from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint import DISK, Disk
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.errors import CheckpointError, ModelError
from vlm_mhpo.models.folder import ADAPTER_FILE, examine_folder
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.weights import folder_digest
from vlm_mhpo.runtime import ranks

POLICY_FOLDER = "policy"
# What a policy is made of: tensors, settings, vocabularies, templates and words about them.
DATA = (".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken", ".md")
# What a model of the hub has beside them.
TEXTS = ("LICENSE", "NOTICE", ".gitattributes")
# What torch writes with pickle, under the names in use.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def save_policy(engine: Engine, codec: Codec, folder: Path, disk: Disk = DISK) -> None:
    """Gather the weights (ZeRO-3) and write them once; called on all ranks.

    Raises:
        OSError: on the main rank, after all ranks have left the gathered weights; also when what was written has other
            tensors than the folder that was loaded.
    """
    policy = engine.policy

    def write(target: Path) -> None:
        policy.save(target)
        codec.processor.save_pretrained(target)
        _make_readable(target)

    problem: OSError | None = None
    with engine.whole_weights():
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


def _make_readable(folder: Path) -> None:
    """Give every file of a policy the mode of its config.json: safetensors makes files that their owner alone reads."""
    mode = stat.S_IMODE(next(folder.glob("*config.json")).stat().st_mode)
    for path in folder.rglob("*"):
        if path.is_file():
            path.chmod(mode)


def find_policy(path: str, which: str = "newest") -> str:
    """The model folder that `path` means: itself, a checkpoint's policy, or that of a checkpoint of a run.

    Args:
        which: of a run, the "newest" checkpoint or the "best" by its `checkpoint.keep_best`.

    Raises:
        CheckpointError: a run folder without a whole checkpoint, or without a best one.
    """
    folder = Path(path)
    for candidate in (folder, folder / POLICY_FOLDER):
        if any((candidate / name).is_file() for name in ("config.json", ADAPTER_FILE)):
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


def export(source: str, out: Path, which: str = "newest") -> Path:
    """Copy the policy of a run or checkpoint to `out`, which must not exist or be empty; see `find_policy`.

    Raises:
        CheckpointError: nothing to export, something but safetensors and text, other tensors than the run loaded, or
            `out` is not empty.
        ModelError: the tensors are not those of the model (`models.weights.examine_weights`).
    """
    found = Path(find_policy(source, which))
    if not (found / "config.json").is_file():
        raise CheckpointError(f"{source}: neither a run folder, a checkpoint nor a model folder")
    refuse_programs(found)
    _check_tensors(found)
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty: choose another folder")
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    shutil.copytree(found, staging)
    _make_readable(staging)
    if out.exists():
        out.rmdir()
    staging.rename(out)
    return out


def _check_tensors(folder: Path) -> None:
    """Refuse a policy whose tensors are not the model's, or not named and shaped as those that its run loaded."""
    examine_folder(str(folder), offline=True)
    # RUN/policy of a warm start, RUN/checkpoints/step_N/policy of RL.
    runs = [parent for parent in folder.resolve().parents[:3] if (parent / "run.json").is_file()]
    due = json.loads((runs[0] / "run.json").read_text()).get("model", {}).get("tensors") if runs else None
    if due and folder_digest(folder) != due:
        raise CheckpointError(
            f"{folder}: its tensors have other names or shapes than those that {runs[0]} loaded, so other programs may "
            "not read it: train one more step with this version and export that"
        )


def refuse_programs(folder: Path) -> None:
    """CheckpointError for a model folder with anything but a policy's data files: what is exported cannot run."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_symlink():
            raise CheckpointError(f"{folder}: {name} is a link: export a folder that holds its own files")
        if path.suffix.lower() in PICKLED:
            raise CheckpointError(f"{folder}: {name} may run code when it is loaded: convert it to safetensors first")
        if not path.is_dir() and path.suffix not in DATA and path.name not in TEXTS:
            raise CheckpointError(f"{folder}: {name} is no file of a policy ({', '.join(DATA)}): remove it first")
    if not any(folder.glob("*.safetensors")):
        raise CheckpointError(f"{folder} holds no weights as safetensors")
