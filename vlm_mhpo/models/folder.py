"""What a model folder or hub name is, before any weight is read: its configuration, and whether we can train it."""

from __future__ import annotations

from typing import Any

from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import family_for
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.weights import Weights, examine_weights, first_line

ADAPTER_FILE, TOKENIZER_FILE = "adapter_config.json", "tokenizer.json"


def read_config(path: str, *, revision: str | None = None, offline: bool = False) -> Any:
    """The transformers configuration at `path`; no code of the folder is run.

    Args:
        path: folder or hub name.
        revision: commit of a hub name.
        offline: look on this machine alone.

    Raises:
        ModelError: there is none, it needs code of the folder, or the weights are an adapter's or quantised.
    """
    import transformers
    from transformers.utils import cached_file

    place = {"revision": revision, "local_files_only": offline}
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
            f"no model at {path!r}: neither a folder with config.json nor a hub name that can be reached "
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
    """Configuration and tensors at `path` as loading examines them, and the model without values; raises as it does."""
    config = read_config(path, revision=revision, offline=offline)
    return examine_weights(path, family_for(config), config, revision=revision, offline=offline)


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
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the processor at {path!r} cannot be loaded: {first_line(error)}; take the tokenizer's and processor's "
            "files from the model that it was trained from"
        ) from error
    return processor
