"""The tensors of a model folder: all that the model needs and no others, and written again under the same names.

transformers draws what a folder lacks at random, passes over what it does not know, and goes on. Here a first loading
on the meta device, which reads no values, says how files and model fit, the same on every rank and under every ZeRO
stage (under stage 3 transformers itself looks at nothing but missing names).
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family

ONE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"
NUM_NAMED = 3
_ADAPTER = re.compile(r"\.lora_|\.base_layer\.|\.modules_to_save\.")
_SHARD = re.compile(r"-of-(\d{5})\.safetensors$")
_LAYER = re.compile(r"\b(?:layers|blocks)\.(\d+)\.")
_DTYPES = {"F64": torch.float64, "F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


@dataclass(frozen=True, slots=True)
class Weights:
    """What the weight files of a model folder hold, and how it is written again.

    Attributes:
        shapes: of every tensor that the model reads, by its name in the files.
        conversions: transformers' own renamings, those that this folder needed; saving reverses them.
    """

    shapes: Mapping[str, tuple[int, ...]]
    conversions: Sequence[Any]

    def save(self, model: nn.Module, folder: Path) -> None:
        """Write the weights and settings of `model`, under the names that they were loaded by; see `check`."""
        state = model.state_dict()
        # Of two tied tensors transformers writes one, not always that of the folder, and safetensors none twice.
        for pair in model.all_tied_weights_keys.items():
            held = [name for name in pair if _holders(name, self.shapes)]
            state = {name: value for name, value in state.items() if name not in pair or name in held}
            state |= {name: state[name].clone() for name in held[1:]}
        with self._as_held(model, state):
            model.save_pretrained(folder, state_dict=state)
        # Of the run's own dtype, but for what a model keeps in another.
        self.check(folder, {value.dtype for value in state.values()})

    @contextmanager
    def _as_held(self, model: nn.Module, state: dict[str, torch.Tensor]) -> Iterator[None]:
        """Inside, `state` has matrices as the folder holds them.

        Qwen3-VL-MoE's experts are published as [in, out]. transformers turns what has another shape than its own as it
        reads, and turns nothing as it writes, since then nothing has.
        """
        turned = [name for name, value in state.items() if _is_turned(tuple(value.shape), self.shapes.get(name, ()))]
        state |= {name: state[name].transpose(-1, -2).contiguous() for name in turned}
        conversions = model._weight_conversions
        if turned:
            model._weight_conversions = [each for each in conversions if not _turns_by_shape(each)]
        try:
            yield
        finally:
            model._weight_conversions = conversions

    @property
    def digest(self) -> str:
        """Stands for the names and shapes."""
        return digest_of(self.shapes)

    def check(self, folder: Path, dtypes: Collection[torch.dtype]) -> None:
        """Compare a written policy with the folder that was loaded.

        Raises:
            ModelError: a name or shape is another one, or a tensor is of none of the `dtypes`.
        """
        found = read_tensors(_files(str(folder)))
        shapes = {name: shape for name, (shape, _) in found.items()}
        if problem := "; ".join(_differences(self.shapes, shapes)):
            raise ModelError(f"{folder} is not what a reader of the loaded model expects: {problem}")
        others = [name for name, (_, its) in found.items() if its in _DTYPES and _DTYPES[its] not in dtypes]
        if others:
            raise ModelError(f"{folder} holds tensors of another dtype than the model: {_some(others)}")


def _is_turned(shape: tuple[int, ...], held: tuple[int, ...]) -> bool:
    """Matrices of this shape lie in the files with rows and columns exchanged."""
    return len(shape) > 2 and shape != held == (*shape[:-2], shape[-1], shape[-2])


def _turns_by_shape(conversion: Any) -> bool:
    """One of transformers' conversions exchanges rows and columns where the shape is not the model's."""
    return any(getattr(operation, "check_dims", False) for operation in getattr(conversion, "operations", ()))


@contextmanager
def whole_shapes() -> Iterator[None]:
    """Inside, transformers compares what it reads with the shapes of whole weights, also under ZeRO-3.

    There a weight by itself has the shape [0], so that every matrix would be turned.
    """
    from transformers.core_model_loading import Transpose

    usual = Transpose.convert

    def convert(self: Any, *args: Any, **options: Any) -> Any:
        if getattr(self, "check_dims", False):
            weight = options["model"].get_parameter(options["full_layer_name"])
            seen = SimpleNamespace(shape=torch.Size(getattr(weight, "ds_shape", weight.shape)))
            options["model"] = SimpleNamespace(get_parameter=lambda _: seen)
        return usual(self, *args, **options)

    Transpose.convert = convert
    try:
        yield
    finally:
        Transpose.convert = usual


def examine_weights(
    path: str, family: Family, config: Any, *, revision: str | None = None, offline: bool = False
) -> tuple[Weights, nn.Module]:
    """What the weight files at `path` hold, once it is sure that they are those of the model, and it without values.

    Args:
        path: folder or hub name.
        family: says what may lack and what may be more.
        config: of transformers.
        revision: of a hub name.
        offline: look on this machine alone.

    Raises:
        ModelError: no files, or tensors that are missing, not known or of another shape; with the likely cause.
    """
    from safetensors import SafetensorError

    try:
        # First the headers: what is cut or no safetensors ends here, in one way.
        files = _files(path, revision, offline)
        tensors = read_tensors(files)
        with _silent():
            model, info = family.auto_classes[0].from_pretrained(
                path,
                config=config,
                revision=revision,
                dtype=torch.float32,
                device_map="meta",
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=offline,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise ModelError(f"the weights at {path!r} cannot be loaded: {first_line(error)}") from error
    spare = re.compile("|".join(family.spare))
    shapes = {name: shape for name, (shape, _) in tensors.items() if not spare.search(name)}
    wrong = Wrong(
        sorted({*info["missing_keys"], *_untied(model, shapes, family)}),
        sorted(name for name in info["unexpected_keys"] if not spare.search(name)),
        [f"{name} {list(found)} for {list(due)}" for name, found, due in sorted(info["mismatched_keys"])],
    )
    if any((wrong.missing, wrong.unknown, wrong.misshapen)):
        raise ModelError(
            f"the weights at {path!r} are not those of the {config.model_type} model that config.json describes: "
            f"{wrong.told()}; {_cause(wrong, shapes, files)}"
        )
    _check_tied(path, model, files, shapes)
    _check_kept_names(path, model, shapes)
    return Weights(shapes, tuple(model._weight_conversions or ())), model


@dataclass(frozen=True, slots=True)
class Wrong:
    """Tensors that the model needs and no file gives, that it does not know, and that are of another shape."""

    missing: list[str]
    unknown: list[str]
    misshapen: list[str]

    def told(self) -> str:
        """The three kinds, with the first names of each."""
        kinds = {"missing": self.missing, "not known": self.unknown, "of another shape": self.misshapen}
        return "; ".join(f"{len(names)} {kind} ({_some(names)})" for kind, names in kinds.items() if names)


def _untied(model: nn.Module, held: Iterable[str], family: Family) -> list[str]:
    """Tensors that no file gives because they are tied to others, which the family does not do without."""
    names = [name for pair in model.all_tied_weights_keys.items() for name in pair]
    return [name for name in names if _tail(name) not in family.tied and not _holders(name, held)]


def _check_tied(path: str, model: nn.Module, files: Sequence[Path], held: Iterable[str]) -> None:
    """ModelError when a folder has different values for two tied tensors: one of them would be lost."""
    for pair in model.all_tied_weights_keys.items():
        both = [holder for name in pair for holder in _holders(name, held)]
        if len(both) == 2 and not torch.equal(*(_read(files, name) for name in both)):
            raise ModelError(
                f"the weights at {path!r} hold different {both[0]} and {both[1]}, which config.json ties together: set "
                "its tie_word_embeddings to false, or leave one of the two out"
            )


def _check_kept_names(path: str, model: nn.Module, names: Iterable[str]) -> None:
    """ModelError when transformers reads names that it would not write again."""
    from transformers.core_model_loading import revert_weight_conversion

    written = revert_weight_conversion(model, model.state_dict())
    if others := sorted(set(names) - set(written)):
        raise ModelError(
            f"the weights at {path!r} have names that a saved policy could not have ({_some(others)}): an inner model "
            "was saved alone; load it and save the whole with transformers"
        )


def _cause(wrong: Wrong, names: Iterable[str], files: Sequence[Path]) -> str:
    """The likely reason, and what to do."""
    shards = [match for file in files if (match := _SHARD.search(file.name))]
    layers = {
        match[0].strip(".") if match else None
        for name in wrong.missing + wrong.unknown
        for match in [_LAYER.search(name)]
    }
    if any(_ADAPTER.search(name) for name in names):
        return "an adapter's: merge it into its base model (peft: merge_and_unload) and give the merged folder"
    if wrong.missing and len(wrong.unknown) > 1 and (prefix := _foreign_prefix(wrong)):
        return f"another program has put the prefix {prefix!r} before them: take it away"
    if wrong.unknown and all(any(name.endswith(f".{known}") for name in wrong.missing) for known in wrong.unknown):
        return "the prefix of their names is gone: an inner model was saved alone; save the whole model"
    if wrong.missing and shards and len(shards) < int(shards[0][1]):
        return f"only {len(shards)} of {int(shards[0][1])} shards are listed in {INDEX_FILE}: fetch the folder again"
    if [_tail(name) for name in wrong.missing] == ["lm_head.weight"]:
        return "the head was saved elsewhere, or is the embedding: then set tie_word_embeddings to true in config.json"
    if any(" [0] for " in name for name in wrong.misshapen):
        return "they were saved under ZeRO-3 without being gathered: gather them from its checkpoint first"
    if wrong.misshapen:
        return "config.json is that of a model of other sizes: take the one that belongs to these weights"
    if None not in layers:
        return f"config.json counts other layers than the files ({_some(sorted(layers))}), or a shard is missing"
    if not wrong.missing:
        return "another program has added them, or config.json is another model's: take them out of the files"
    return "a part of the model was not saved, or config.json is another model's: fetch or save the whole folder again"


def _foreign_prefix(wrong: Wrong) -> str:
    """The components, such as "module.", that all names begin with which the model does not know; "" = none."""
    # As folders, so that whole components are compared.
    common = os.path.commonpath([name.rpartition(".")[0].replace(".", "/") for name in wrong.unknown])
    prefix = common.replace("/", ".") + "." if common else ""
    return "" if any(name.startswith(prefix) for name in wrong.missing) else prefix


def _files(path: str, revision: str | None = None, offline: bool = False) -> list[Path]:
    """The files that transformers would read at a folder or hub name; OSError when one of them is not there."""
    from transformers.utils import cached_file

    def find(name: str) -> Path | None:
        found = cached_file(
            path, name, revision=revision, local_files_only=offline, _raise_exceptions_for_missing_entries=False
        )
        return Path(found) if found else None

    if whole := find(ONE_FILE):
        return [whole]
    if not (index := find(INDEX_FILE)):
        raise OSError(f"there is neither {ONE_FILE} nor {INDEX_FILE}; weights in other formats are not read")
    shards = {name: find(name) for name in sorted(set(json.loads(index.read_text())["weight_map"].values()))}
    if lost := [name for name, file in shards.items() if file is None]:
        raise OSError(f"{INDEX_FILE} names {_some(lost)}, which is not there: fetch the folder again")
    return list(shards.values())


def folder_digest(folder: Path) -> str:
    """`Weights.digest` of the files of a model folder on this machine."""
    return digest_of({name: shape for name, (shape, _) in read_tensors(_files(str(folder))).items()})


def digest_of(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """16 hex digits of sha256 over names and shapes."""
    return hashlib.sha256(json.dumps(sorted(shapes.items())).encode()).hexdigest()[:16]


def read_tensors(files: Iterable[Path]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and safetensors' dtype of every tensor in these files, by name; reads their headers alone."""
    from safetensors import safe_open

    found = {}
    for file in files:
        with safe_open(file, "pt") as opened:
            for name in opened.keys():  # noqa: SIM118, since it is no mapping
                part = opened.get_slice(name)
                found[name] = tuple(part.get_shape()), part.get_dtype()
    return found


def _read(files: Iterable[Path], name: str) -> torch.Tensor:
    """One tensor."""
    from safetensors import safe_open

    for file in files:
        with safe_open(file, "pt") as opened:
            if name in opened.keys():  # noqa: SIM118
                return opened.get_tensor(name)
    raise KeyError(name)


@contextmanager
def _silent() -> Iterator[None]:
    """Inside, transformers says nothing: what it found is said once, by us."""
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)


def first_line(error: Exception) -> str:
    """The first line of an error's text; library errors go on for paragraphs."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _differences(due: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]]) -> Iterator[str]:
    """What a written policy lacks, has more, or has in another shape."""
    shapes = [name for name in due.keys() & found.keys() if due[name] != found[name]]
    kinds = {"missing": due.keys() - found.keys(), "not known": found.keys() - due.keys(), "of another shape": shapes}
    return (f"{len(names)} {kind} ({_some(sorted(names))})" for kind, names in kinds.items() if names)


def _tail(name: str) -> str:
    """A tensor's name inside its module's parent: all that renaming leaves as it is."""
    return ".".join(name.split(".")[-2:])


def _holders(name: str, held: Iterable[str]) -> list[str]:
    """Names in the files of a tied tensor of the model."""
    return [other for other in held if _tail(other) == _tail(name)]


def _some(names: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(names[:NUM_NAMED]) + (", ..." if len(names) > NUM_NAMED else "")
