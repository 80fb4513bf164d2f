"""Take a trained policy out of a run: a folder that from_pretrained, or peft, loads, and that can run no code."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from vlm_mhpo.checkpoint.opening import open_policy
from vlm_mhpo.checkpoint.policy_folder import find_policy, holds_policy, make_readable
from vlm_mhpo.config import ModelConfig
from vlm_mhpo.errors import CheckpointError
from vlm_mhpo.models.adapters import add_saved
from vlm_mhpo.models.folder import base_of, examine_folder, read_config
from vlm_mhpo.models.loading import DTYPES
from vlm_mhpo.models.weights import folder_digest

# What a policy is made of: tensors, settings, vocabularies, templates and words about them.
DATA = (".safetensors", ".json", ".txt", ".jinja", ".model", ".tiktoken", ".md")
# What a model of the hub has beside them.
TEXTS = ("LICENSE", "NOTICE", ".gitattributes")
# What torch writes with pickle, under the names in use.
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def export(source: str, out: Path, which: str = "newest", *, merge: bool = False) -> Path:
    """Copy the policy of a run or checkpoint to `out`, which must not exist or be empty; see `find_policy`.

    Args:
        merge: add an adapter to the weights of its base, in the base's own type, and write the whole model; what has
            no adapter is whole already.

    Raises:
        CheckpointError: nothing to export, something but safetensors and text, other tensors than the run loaded, or
            `out` is not empty.
        ModelError: the tensors are not those of the model (`models.weights.examine_weights`).
    """
    found = Path(find_policy(source, which))
    if not holds_policy(found):
        raise CheckpointError(f"{source}: neither a run folder, a checkpoint nor a model folder")
    refuse_programs(found)
    _check_tensors(found)
    if out.exists() and any(out.iterdir()):
        raise CheckpointError(f"{out} is not empty: choose another folder")
    staging = out.with_name(f".{out.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    if merge and base_of(str(found)).adapter:
        _write_merged(found, staging)
    else:
        shutil.copytree(found, staging)
    make_readable(staging)
    if out.exists():
        out.rmdir()
    staging.rename(out)
    return out


def _write_merged(adapter: Path, folder: Path) -> None:
    """The base of an adapter with it, as a model folder; its tensors are compared with the base's."""
    dtype = str(read_config(str(adapter)).dtype).removeprefix("torch.")
    model = ModelConfig(path=str(adapter), dtype=dtype if dtype in DTYPES else "float32")
    opened = open_policy(model, folder, "train")
    folder.mkdir(parents=True)
    opened.policy.save(folder)
    opened.codec.processor.save_pretrained(folder)


def _check_tensors(folder: Path) -> None:
    """Refuse a policy whose tensors are not the model's, or not named and shaped as those that its run loaded."""
    _, empty = examine_folder(str(folder), offline=True)
    if adapter := base_of(str(folder)).adapter:
        add_saved(empty, adapter)
        return
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
