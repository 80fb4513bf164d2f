"""What a model folder or hub name is, before any weight is read: its configuration, and whether we can train it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import family_for
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.weights import Weights, examine_weights, first_line

ADAPTER_FILE, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TOKENIZER_FILE = "tokenizer.json"
# What an adapter may bring along beside its low-rank matrices, which is not read here.
FOREIGN = ("modules_to_save", "trainable_token_indices", "layer_replication", "target_parameters", "megatron_config")


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
        weights = cached_file(path, ADAPTER_WEIGHTS, **place)
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
    if more := [name for name in FOREIGN if settings.get(name)] + ["bias"] * (settings.get("bias", "none") != "none"):
        raise ModelError(f"the adapter at {path!r} has {', '.join(more)}, which is not read: merge it with peft first")
    if not weights:
        raise ModelError(
            f"the adapter at {path!r} has no {ADAPTER_WEIGHTS}, and pickles are not read: save it with safetensors"
        )
    if not base:
        raise ModelError(
            f"the adapter at {path!r} does not say whose it is: set base_model_name_or_path in its {ADAPTER_FILE}"
        )
    return Adapter(Path(found).parent, base, settings.get("revision"), settings)


@dataclass(frozen=True, slots=True)
class Base:
    """The model that a path leads to: itself, or the one that the adapter there belongs to."""

    path: str
    revision: str | None
    adapter: Adapter | None = None


def base_of(path: str, revision: str | None = None, *, offline: bool = False) -> Base:
    """See `Base`; raises as `find_adapter`."""
    adapter = find_adapter(path, revision=revision, offline=offline)
    return Base(adapter.base, adapter.revision, adapter) if adapter else Base(path, revision)


def read_config(path: str, *, revision: str | None = None, offline: bool = False) -> Any:
    """The transformers configuration at `path`, of an adapter that of its base; no code of the folder is run.

    Args:
        path: folder or hub name.
        revision: commit of a hub name.
        offline: look on this machine alone.

    Raises:
        ModelError: there is none, it needs code of the folder, or the weights are quantised or an adapter's adapter.
    """
    import transformers
    from transformers.utils import cached_file

    base = base_of(path, revision, offline=offline)
    of_adapter = f"the base of the adapter at {path!r}: " if base.adapter else ""
    path, place = base.path, {"revision": base.revision, "local_files_only": offline}
    lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        if cached_file(path, ADAPTER_FILE, **place, **lenient):
            raise ModelError(
                f"the model at {path!r} is an adapter ({ADAPTER_FILE}), and one whose base is an adapter is not read: "
                "merge it into its base model (vlm-mhpo export --merge) and give the merged folder"
            )
        values, _ = transformers.PreTrainedConfig.get_config_dict(path, **place)
        if isinstance(values, dict):
            _refuse(path, values)
        return transformers.AutoConfig.from_pretrained(path, trust_remote_code=False, **place)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{of_adapter}no model at {path!r}: neither a folder with config.json nor a hub name that can be reached "
            f"({first_line(error)})"
        ) from error


def _refuse(path: str, values: dict[str, Any]) -> None:
    """ModelError for a configuration whose weights or code are not what is trained here."""
    from transformers import CONFIG_MAPPING, __version__

    if quantised := values.get("quantization_config") or values.get("compression_config"):
        method = quantised.get("quant_method") or "an unknown method"
        raise ModelError(
            f"the model at {path!r} is quantised ({method}), so its weights cannot learn: give the model that it was "
            "made from"
        )
    kind = values.get("model_type")
    if kind and kind not in CONFIG_MAPPING:
        own_code = " and needs code of its own (auto_map)" if values.get("auto_map") else ""
        raise ModelError(
            f"no model at {path!r} to train: its type {kind!r} is not in transformers {__version__}{own_code}; "
            "code of a model's folder is never run here: give a model of a type that transformers has"
        )


def examine_folder(path: str, *, revision: str | None = None, offline: bool = False) -> tuple[Weights, nn.Module]:
    """Tensors of the model at `path`, or of an adapter's base, and it without values; refused as loading refuses it."""
    base = base_of(path, revision, offline=offline)
    config = read_config(path, revision=revision, offline=offline)
    return examine_weights(base.path, family_for(config), config, revision=base.revision, offline=offline)


def read_processor(path: str, family: Family, *, revision: str | None = None, offline: bool = False) -> Any:
    """The processor of a vision family, the tokenizer of a text family.

    Raises:
        ModelError: its files are not there, or its tokenizer knows tokens for which the model has no row.
    """
    from transformers.utils import cached_file

    place = {"revision": revision, "local_files_only": offline}
    try:
        processor = family.auto_classes[1].from_pretrained(path, trust_remote_code=False, **place)
        tokenizer = processor.tokenizer if family.vision else processor
        # Without its files transformers makes an empty one, which reads every text as nothing.
        files = {TOKENIZER_FILE, *tokenizer.vocab_files_names.values()}
        lenient = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
        if not any(cached_file(path, name, **place, **lenient) for name in sorted(files)):
            raise OSError(f"there is no {TOKENIZER_FILE}")
    except ImportError as error:
        raise ModelError(f"the processor at {path!r} needs a package that is missing: {first_line(error)}") from error
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the processor at {path!r} cannot be loaded: {first_line(error)}; take the tokenizer's and processor's "
            "files from the model that it was trained from"
        ) from error
    return processor
