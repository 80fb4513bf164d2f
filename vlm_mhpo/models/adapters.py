"""Low-rank adapters (LoRA) in a policy: what learns beside weights that stay as they are; layers and files are peft's.

An adapter of rank r adds (alpha / r) B A to a matrix W that is frozen, A [r, in] and B [out, r]; B begins at 0, so that
the policy begins as its base. The policy that a run began with is the reference of a KL term, and no second copy of
the weights exists for it: it is the base alone or, where the run goes on with an adapter, that with the adapter of the
beginning, which then stays beside the one that learns.

Layers go into the transformers model in place, so that everything else meets the same modules under the same names.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.folder import ADAPTER_FILE, ADAPTER_WEIGHTS, Adapter, Base
from vlm_mhpo.models.weights import NUM_NAMED, first_line, read_tensors

# peft's own name of an adapter that nobody has named, and what it writes before the names of a model's tensors.
NAME, PREFIX = "default", "base_model.model."
# The adapter that a run went on with, as it was then.
BEGINNING = "beginning"
LANGUAGE, ALL = "language_model", "all"
# Of a configuration's `model.lora`, by peft's names.
SETTINGS = {"r": "r", "alpha": "lora_alpha", "use_rslora": "use_rslora", "use_dora": "use_dora"}


def fit_adapters(
    model: nn.Module, family: Family, base: Base, lora: Mapping[str, Any] | None, *, merges: bool = False
) -> None:
    """Put the adapter of a folder, or new ones, or none, into a loaded model; with `merges` add the former to it."""
    if base.adapter:
        add_saved(model, base.adapter, lora)
    elif lora:
        add_adapters(model, family, lora)
    if base.adapter and merges:
        merge_adapters(model)
        model.requires_grad_(True)


def add_adapters(model: nn.Module, family: Family, lora: Mapping[str, Any]) -> None:
    """Put new adapters into a model, the same on every rank, and freeze all its own weights.

    Args:
        model: as `from_pretrained` makes it, under ZeRO-3 with partitioned weights.
        family: of the model.
        lora: as `config.LoraConfig`.

    Raises:
        ModelError: no layer is meant, one that is not linear, the head, or DoRA under ZeRO-3.
    """
    from peft import LoraConfig

    targets, exceptions = _targets(model, family, lora["target_modules"], lora["exclude_modules"])
    settings = LoraConfig(
        r=lora["r"],
        lora_alpha=lora["alpha"] or 2 * lora["r"],
        lora_dropout=lora["dropout"],
        target_modules=targets,
        exclude_modules=exceptions,
        init_lora_weights=lora["init"] == "default" or lora["init"],
        use_rslora=lora["use_rslora"],
        use_dora=lora["use_dora"],
    )
    _inject(model, settings)


def add_saved(model: nn.Module, adapter: Adapter, lora: Mapping[str, Any] | None = None) -> None:
    """Put the adapter of a folder into its base model; of a model without values, only see whether it fits.

    Args:
        model: the base.
        adapter: of `folder.find_adapter`.
        lora: of the run that goes on with it, whose settings must be those of the adapter.

    Raises:
        ModelError: other settings, or its tensors are not those of the model.
    """
    from peft import LoraConfig
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if lora and (differences := _differences(adapter.settings, lora)):
        raise ModelError(f"the adapter at {str(adapter.folder)!r} has {differences}: set model.lora alike, or null")
    file = adapter.folder / ADAPTER_WEIGHTS
    is_empty = next(model.parameters()).is_meta
    try:
        settings = LoraConfig.from_pretrained(str(adapter.folder))
        settings.lora_dropout = lora["dropout"] if lora else 0.0
        _inject(model, settings)
        _check_tensors(adapter, {name: tuple(tensor.shape) for name, tensor in _state(model).items()})
        for name in () if is_empty else (NAME, BEGINNING) if lora else (NAME,):
            if name == BEGINNING:
                _inject(model, settings, BEGINNING)
            _fill(_state(model, name), load_file(file))
    except (OSError, ValueError, RuntimeError, TypeError, SafetensorError) as error:
        raise ModelError(f"the adapter at {str(adapter.folder)!r} cannot be loaded: {first_line(error)}") from error


def _fill(state: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy values into a model's own tensors."""
    for name, value in state.items():
        value.copy_(tensors[name])


def _differences(settings: Mapping[str, Any], lora: Mapping[str, Any]) -> str:
    """Settings of an adapter that a run would have otherwise, in words; "" = none."""
    wanted = {**lora, "alpha": lora["alpha"] or 2 * lora["r"]}
    return ", ".join(
        f"{key} {settings.get(name)} and not {wanted[key]}"
        for key, name in SETTINGS.items()
        if settings.get(name, False) != wanted[key]
    )


def _check_tensors(adapter: Adapter, due: Mapping[str, tuple[int, ...]]) -> None:
    """ModelError unless an adapter's file holds the tensors that it must have in its base, and no others."""
    found = {name: shape for name, (shape, _) in read_tensors([adapter.folder / ADAPTER_WEIGHTS]).items()}
    wrong = [f"{name} is missing" for name in sorted(due.keys() - found.keys())]
    wrong += [f"{name} is not known" for name in sorted(found.keys() - due.keys())]
    both = sorted(due.keys() & found.keys())
    wrong += [f"{name} is {list(found[name])} for {list(due[name])}" for name in both if found[name] != due[name]]
    if wrong:
        raise ModelError(
            f"the adapter at {str(adapter.folder)!r} is not one of {adapter.base!r} with the settings in its "
            f"{ADAPTER_FILE}: {', '.join(wrong[:NUM_NAMED])}"
        )


def _inject(model: nn.Module, settings: Any, name: str = NAME) -> None:
    """Put peft's layers in, freeze all but what learns, and remember the settings at the model as peft does."""
    from peft import inject_adapter_in_model

    if settings.use_dora and any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ModelError("model.lora.use_dora reads whole matrices, which ZeRO-3 cuts: use deepspeed.zero_stage=2")
    head = model.get_output_embeddings()
    # peft warns of a model that it has met before.
    vars(model).pop("peft_config", None)
    with torch.random.fork_rng(devices=[]):
        # Every rank draws the same, and each run again.
        torch.manual_seed(0)
        inject_adapter_in_model(settings, model, name)
    model.peft_config = {NAME: settings, name: settings}
    layers = adapter_layers(model)
    _check_layers([layer.get_base_layer() for layer in layers], head)
    for layer in layers:
        layer._active_adapter = [NAME]
        # Beside quantised weights they would be float32 whatever the model is.
        for part in (layer.lora_A, layer.lora_B, layer.lora_magnitude_vector):
            part.to(head.weight.dtype)
    for parameter, weight in model.named_parameters():
        weight.requires_grad_(is_adapter(parameter) and f".{NAME}" in parameter)


def _check_layers(layers: Iterable[nn.Module], head: nn.Module) -> None:
    """ModelError for layers that can have no adapter here."""
    for layer in layers:
        if layer is head:
            raise ModelError("model.lora.target_modules names the head, which log-probs read directly: leave it out")
        if not isinstance(layer, nn.Linear):
            raise ModelError(
                f"model.lora.target_modules names a {type(layer).__name__}, and adapters go to linear layers: say it "
                "more closely, or add model.lora.exclude_modules"
            )


def _targets(
    model: nn.Module, family: Family, wanted: str | Sequence[str], exceptions: str | Sequence[str] | None
) -> tuple[str | list[str], str | list[str] | None]:
    """peft's target_modules and exclude_modules."""
    head = model.get_output_embeddings()
    modules = dict(model.named_modules())
    linear = [name for name, each in modules.items() if isinstance(each, nn.Linear) and each is not head]
    if wanted not in (LANGUAGE, ALL):
        meant = [name for name in modules if _is_meant(name, wanted) and not _is_meant(name, exceptions or ())]
        if not meant:
            raise ModelError(f"model.lora.target_modules={wanted}: no layer has such a name; layers: {_ends(linear)}")
        _check_layers([modules[name] for name in meant], head)
        return (wanted if isinstance(wanted, str) else list(wanted)), exceptions
    seeing = vision_names(model, family) if wanted == LANGUAGE else []
    is_seen = re.compile(rf"({'|'.join(map(re.escape, seeing))})(\..*)?" if seeing else r"(?!)")
    meant = {name for name in linear if not is_seen.fullmatch(name)}
    ends = _ends(meant)
    # Names end alike in the tower, and a convolution there is called as a matrix is.
    others = [name for name in modules if _is_meant(name, ends) and name not in meant]
    if not others:
        return ends, exceptions
    patterns = [is_seen.pattern, *(re.escape(name) for name in others if not is_seen.fullmatch(name))]
    if exceptions is not None:
        patterns.append(exceptions if isinstance(exceptions, str) else rf"(.*\.)?({'|'.join(exceptions)})")
    return ends, "|".join(f"({pattern})" for pattern in patterns if pattern != r"(?!)")


def _is_meant(name: str, wanted: str | Sequence[str]) -> bool:
    """By peft's rule: a regular expression of the whole name, or names that it ends with."""
    if isinstance(wanted, str):
        return bool(re.fullmatch(wanted, name))
    return any(name == each or name.endswith(f".{each}") for each in wanted)


def _ends(names: Iterable[str]) -> list[str]:
    """The last parts of names of modules."""
    return sorted({name.rpartition(".")[2] for name in names})


def vision_names(model: nn.Module, family: Family) -> list[str]:
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


def adapters_of(model: nn.Module) -> list[nn.Parameter]:
    """The weights of the adapters that learn; none of a model whose weights learn themselves."""
    return [weight for name, weight in model.named_parameters() if is_adapter(name) and weight.requires_grad]


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name belongs to an adapter, one that learns or that of the beginning."""
    return ".lora_" in parameter


@contextlib.contextmanager
def as_it_began(model: nn.Module) -> Iterator[None]:
    """Inside, a model with adapters is the one that its run began with."""
    layers = adapter_layers(model)
    for layer in layers:
        # Not `enable_adapters` and `set_adapter`: they would switch gradients, which DeepSpeed has hooks on.
        layer._active_adapter = [BEGINNING]
        layer._disable_adapters = BEGINNING not in layer.lora_A
    try:
        yield
    finally:
        for layer in layers:
            layer._active_adapter, layer._disable_adapters = [NAME], False


def merge_adapters(model: nn.Module) -> None:
    """Add the adapters to the weights, each sum rounded once, and take them out of the model."""
    layers = set(adapter_layers(model))
    for name, module in list(model.named_modules()):
        if module in layers:
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, _merged(module))
    del model.peft_config


@torch.no_grad()
def _merged(layer: Any) -> nn.Module:
    """The layer below an adapter, with it; under ZeRO-3 the matrix is put together for it and cut again."""
    base = layer.get_base_layer()
    with _whole(base.weight):
        base.weight.copy_(merged_weight(layer))
    return base


@torch.no_grad()
def merged_weight(layer: Any) -> Tensor:
    """[out, in] float32: the matrix below an adapter, with it; its weights must be whole (ZeRO-3)."""
    down, up = (part[NAME].weight.float() for part in (layer.lora_A, layer.lora_B))
    weight = layer.get_base_layer().weight.float() + (up @ down) * layer.scaling[NAME]
    if NAME in layer.lora_magnitude_vector:
        length = torch.linalg.norm(weight, dim=1, keepdim=True)
        weight *= layer.lora_magnitude_vector[NAME].weight.float()[:, None] / length
    return weight


def _whole(weight: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Inside, a weight is whole, whatever the ZeRO stage; changes on rank 0 stay."""
    if not hasattr(weight, "ds_id"):
        return contextlib.nullcontext()
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([weight], modifier_rank=0)


def _state(model: nn.Module, adapter: str = NAME) -> dict[str, Tensor]:
    """The tensors of the adapters, those that learn or those of the beginning, by the names of peft's files."""
    from peft import get_peft_model_state_dict

    state = get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)
    return {f"{PREFIX}{name}": value.detach() for name, value in state.items()}


def save_adapter(model: nn.Module, folder: Path, base: str, revision: str | None) -> None:
    """Write the adapters as peft reads them: `PeftModel.from_pretrained(base model, folder)`.

    Args:
        model: with adapters, which are whole.
        folder: must exist.
        base, revision: of the model that they belong to.
    """
    from safetensors.torch import save_file

    settings = model.peft_config[NAME]
    # From elsewhere a path that begins here would lead nowhere.
    settings.base_model_name_or_path = str(Path(base).resolve()) if Path(base).is_dir() else base
    settings.revision, settings.inference_mode = revision, True
    settings.save_pretrained(str(folder))
    # peft keeps sets, whose order is another one in every process.
    file = folder / ADAPTER_FILE
    values = {
        name: sorted(each) if isinstance(each, list) else each for name, each in json.loads(file.read_text()).items()
    }
    file.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n")
    tensors = {name: value.cpu().contiguous() for name, value in _state(model).items()}
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
