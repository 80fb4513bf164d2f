"""Low-rank adapters (LoRA) in a policy: what learns beside weights that stay as they are; layers and files are peft's.

An adapter of rank r adds (alpha / r) B A to a matrix W that is frozen, A [r, in] and B [out, r]; B begins at 0, so that
the policy begins as its base. The base alone is the reference of a KL term: no second copy of it exists.

Layers go into the transformers model in place, so that everything else meets the same modules under the same names.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.folder import ADAPTER_FILE
from vlm_mhpo.models.weights import NUM_NAMED, first_line

WEIGHTS_FILE = "adapter_model.safetensors"
# peft's own name of an adapter that nobody has named, and what it writes before the names of a model's tensors.
NAME, PREFIX = "default", "base_model.model."
LANGUAGE, ALL = "language_model", "all"
# Of a configuration's `model.lora`, by peft's names.
SETTINGS = {"r": "r", "alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}


@dataclass(frozen=True, slots=True)
class Adapter:
    """A folder with an adapter.

    Attributes:
        folder: where it lies.
        base: folder or hub name of the model that it belongs to.
        revision: commit of a hub name, if it names one.
        settings: its adapter_config.json.
    """

    folder: Path
    base: str
    revision: str | None
    settings: Mapping[str, Any]


def find_adapter(path: str, *, revision: str | None = None, offline: bool = False) -> Adapter | None:
    """The adapter at a folder or hub name; None where there is a model or nothing.

    Raises:
        ModelError: an adapter of another kind than LoRA, without its base, or beside weights of a model.
    """
    from transformers.utils import cached_file

    lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        place = {"revision": revision, "local_files_only": offline, **lenient}
        found = cached_file(path, ADAPTER_FILE, **place)
        if not found:
            return None
        beside = cached_file(path, "config.json", **place)
        weights = cached_file(path, WEIGHTS_FILE, **place)
        settings = json.loads(Path(found).read_text())
    except (OSError, ValueError) as error:
        if Path(path, ADAPTER_FILE).exists():
            raise ModelError(f"the adapter at {path!r} cannot be read: {first_line(error)}") from error
        return None
    if beside:
        raise ModelError(
            f"the model at {path!r} has an adapter beside its weights ({ADAPTER_FILE}), so it is not said which of the "
            "two is meant: put the adapter into a folder of its own"
        )
    kind, base = settings.get("peft_type"), settings.get("base_model_name_or_path")
    if kind != "LORA":
        raise ModelError(f"the adapter at {path!r} is of kind {kind}: LoRA alone is read; merge it with peft first")
    if not weights:
        raise ModelError(f"the adapter at {path!r} has no {WEIGHTS_FILE}: fetch the folder again")
    if not base:
        raise ModelError(
            f"the adapter at {path!r} does not say whose it is: set base_model_name_or_path in its {ADAPTER_FILE}"
        )
    return Adapter(Path(found).parent, base, settings.get("revision"), settings)


def add_adapters(model: nn.Module, family: Family, lora: Mapping[str, Any]) -> None:
    """Put new adapters into a model, the same on every rank, and freeze all its own weights.

    Args:
        model: as `from_pretrained` makes it, under ZeRO-3 with partitioned weights.
        family: of the model.
        lora: as `config.LoraConfig`.

    Raises:
        ModelError: no layer is meant, the head is, or a setting that reads weights that ZeRO-3 has partitioned.
    """
    from peft import LoraConfig

    targets, exceptions = _targets(model, family, lora["target_modules"], lora["exclude_modules"])
    if lora["use_dora"] and any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ModelError("model.lora.use_dora reads whole matrices, which ZeRO-3 cuts: use deepspeed.zero_stage=2")
    _inject(
        model,
        LoraConfig(
            r=lora["r"],
            lora_alpha=lora["alpha"] or 2 * lora["r"],
            lora_dropout=lora["dropout"],
            target_modules=targets,
            exclude_modules=exceptions,
            init_lora_weights=lora["init"] == "default" or lora["init"],
            use_rslora=lora["use_rslora"],
            use_dora=lora["use_dora"],
        ),
    )


def add_saved(model: nn.Module, adapter: Adapter, lora: Mapping[str, Any] | None = None) -> None:
    """Put the adapter of a folder into its base model.

    Args:
        model: the base.
        adapter: of `find_adapter`.
        lora: of the run that goes on with it, whose settings must be those of the adapter.

    Raises:
        ModelError: other settings, or its tensors are not those of the model.
    """
    from peft import LoraConfig, set_peft_model_state_dict
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if lora and (differences := _differences(adapter.settings, lora)):
        raise ModelError(f"the adapter at {str(adapter.folder)!r} has {differences}: set model.lora alike, or null")
    try:
        settings = LoraConfig.from_pretrained(str(adapter.folder))
        tensors = load_file(adapter.folder / WEIGHTS_FILE)
        _inject(model, settings)
        result = set_peft_model_state_dict(model, tensors, NAME)
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"the adapter at {str(adapter.folder)!r} cannot be loaded: {first_line(error)}") from error
    wrong = [f"{name} is not known" for name in sorted(result.unexpected_keys)]
    wrong += [f"{name} is missing" for name in sorted(result.missing_keys) if ".lora_" in name]
    if wrong:
        raise ModelError(
            f"the adapter at {str(adapter.folder)!r} is not one of {adapter.base!r}: {', '.join(wrong[:NUM_NAMED])}"
        )


def _differences(settings: Mapping[str, Any], lora: Mapping[str, Any]) -> str:
    """Settings of an adapter that a run would have otherwise, in words; "" = none."""
    wanted = {**lora, "alpha": lora["alpha"] or 2 * lora["r"]}
    return ", ".join(
        f"{key} {settings.get(name)} and not {wanted[key]}"
        for key, name in SETTINGS.items()
        if settings.get(name, False) != wanted[key]
    )


def _inject(model: nn.Module, settings: Any) -> None:
    """Put peft's layers in, freeze everything else, and remember the settings at the model as peft does."""
    from peft import inject_adapter_in_model

    with torch.random.fork_rng(devices=[]):
        # Every rank draws the same, and each run again.
        torch.manual_seed(0)
        model.requires_grad_(False)
        inject_adapter_in_model(settings, model, NAME)
    model.peft_config = {NAME: settings}


def _targets(
    model: nn.Module, family: Family, wanted: str | Sequence[str], exceptions: str | Sequence[str] | None
) -> tuple[str | list[str], str | list[str] | None]:
    """peft's target_modules and exclude_modules."""
    head = model.get_output_embeddings()
    linear = {name: each for name, each in model.named_modules() if isinstance(each, nn.Linear) and each is not head}
    eyes = _vision_names(model, family)
    is_seen = re.compile(rf"({'|'.join(map(re.escape, eyes))})(\..*)?" if eyes else r"(?!)")
    if wanted == ALL:
        return _endings(linear), exceptions
    if wanted == LANGUAGE:
        endings = _endings(name for name in linear if not is_seen.fullmatch(name))
        if exceptions is None and any(
            name.rpartition(".")[2] in endings and is_seen.fullmatch(name) for name in linear
        ):
            exceptions = is_seen.pattern
        elif exceptions is not None and eyes:
            raise ModelError(
                "model.lora.exclude_modules goes with named model.lora.target_modules, or with `all`: `language_model` "
                "leaves out the vision tower in this place"
            )
        return endings, exceptions
    names = [name for name in dict(model.named_modules()) if _is_meant(name, wanted)]
    if any(model.get_submodule(name) is head for name in names):
        raise ModelError("model.lora.target_modules names the head, which log-probs read directly: leave it out")
    if not names:
        raise ModelError(f"model.lora.target_modules={wanted}: no layer has such a name; layers: {_endings(linear)}")
    return (wanted if isinstance(wanted, str) else list(wanted)), exceptions


def _is_meant(name: str, wanted: str | Sequence[str]) -> bool:
    """By peft's rule: a regular expression of the whole name, or names that it ends with."""
    if isinstance(wanted, str):
        return bool(re.fullmatch(wanted, name))
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def _endings(names: Any) -> list[str]:
    """The last parts of names of modules."""
    return sorted({name.rpartition(".")[2] for name in names})


def _vision_names(model: nn.Module, family: Family) -> list[str]:
    """Names of the tower and of projectors, those inside others left out."""
    if not family.vision:
        return []
    seeing = [family.vision.tower(model), *family.vision.projectors(model)]
    names = [name for name, module in model.named_modules() if any(module is each for each in seeing)]
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def adapter_layers(model: nn.Module) -> list[Any]:
    """The layers with adapters; none of a model whose weights learn themselves."""
    if not hasattr(model, "peft_config"):
        return []
    from peft.tuners.tuners_utils import BaseTunerLayer

    return [module for module in model.modules() if isinstance(module, BaseTunerLayer)]


@contextmanager
def base_alone(model: nn.Module) -> Iterator[None]:
    """Inside, the adapters add nothing."""
    layers = adapter_layers(model)
    for layer in layers:
        # Not `enable_adapters`: it would also switch off their gradients, which DeepSpeed has hooks on.
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer in layers:
            layer._disable_adapters = False


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights, each sum rounded once, and take them out of the model."""
    layers = set(adapter_layers(model))
    for name, module in list(model.named_modules()):
        if module in layers:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _merged(module))
    del model.peft_config


def _merged(layer: Any) -> nn.Module:
    """The layer below an adapter, with it."""
    base, dtype = layer.get_base_layer(), layer.get_base_layer().weight.dtype
    layer.float()
    layer.merge()
    return base.to(dtype)


def save_adapter(model: nn.Module, folder: Path, base: str, revision: str | None) -> None:
    """Write the adapters as peft reads them: `PeftModel.from_pretrained(base model, folder)`.

    Args:
        model: with adapters, whose own weights are whole.
        folder: must exist.
        base, revision: of the model that they belong to.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    settings = model.peft_config[NAME]
    settings.base_model_name_or_path, settings.revision, settings.inference_mode = base, revision, True
    settings.save_pretrained(str(folder))
    # peft keeps sets, whose order is another one in every process.
    file = folder / ADAPTER_FILE
    values = {
        name: sorted(each) if isinstance(each, list) else each for name, each in json.loads(file.read_text()).items()
    }
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    state = get_peft_model_state_dict(model, adapter_name=NAME, save_embedding_layers=False)
    tensors = {f"{PREFIX}{name}": value.detach().cpu().contiguous() for name, value in state.items()}
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
