"""The sizes of a model, from its config alone: built on the meta device, where weights take no memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from vlm_mhpo.config import ModelConfig
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.adapters import add_adapters
from vlm_mhpo.models.families import family_for
from vlm_mhpo.models.families.base import Family, freeze, tower_is_frozen
from vlm_mhpo.models.families.costs import Stack, TextLayers
from vlm_mhpo.models.folder import read_config
from vlm_mhpo.models.loading import DTYPES
from vlm_mhpo.models.quantization import quantised_weights
from vlm_mhpo.models.tiny import build_tokenizer, model_config, tiny_family
from vlm_mhpo.rollout.hf.budget import bytes_per_token

# Of the tiny models that `resolve_model` builds.
TINY_HIDDEN_SIZE = 128
TEXT_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads")


@dataclass(frozen=True, slots=True)
class Shapes:
    """What the memory of a model follows from.

    Attributes:
        model_type: architecture.
        num_parameters: weights, tied ones once.
        num_trained: those that the configuration does not freeze.
        num_quantised: those that model.quantization holds in fewer bits.
        largest_module: weights that one module holds by itself, at most; what ZeRO-3 gathers at once, at least.
        text, vision: layers; vision None without a vision tower.
        vision_trained: gradients pass through the tower.
        cache_bytes: that a token leaves in the sampler's cache of all layers.
        state_bytes: that a prompt or a completion leaves there in recurrent layers, at any length.
        sees_by_masks: layers slide or see ahead, by masks of whole rows.
        vocabulary: rows of the head.
        max_positions: tokens the model was built for.
    """

    model_type: str
    num_parameters: int
    num_trained: int
    largest_module: int
    text: Stack
    vision: Stack | None
    vision_trained: bool
    cache_bytes: int
    vocabulary: int
    max_positions: int
    num_quantised: int = 0
    state_bytes: int = 0
    sees_by_masks: bool = False


def transformers_config(model: ModelConfig) -> Any:
    """The transformers configuration of `model`, from a folder, the cache of the hub, or a tiny family; never online.

    Raises:
        ModelError: there is none on this machine, or a tiny family does not exist.
    """
    if family := tiny_family(model.path):
        return model_config(family, build_tokenizer(family), TINY_HIDDEN_SIZE)
    try:
        return read_config(model.path, revision=model.revision, offline=True)
    except ModelError as error:
        if Path(model.path).exists():
            raise
        raise ModelError(f"{model.path}: no config.json on this machine") from error


def shapes_of(model: ModelConfig) -> Shapes:
    """The sizes of the model that a configuration names, with what it freezes.

    Raises:
        ModelError: see `transformers_config`; or the architecture is not supported, or its sizes have other names.
    """
    config = transformers_config(model)
    family = family_for(config)
    with torch.device("meta"):
        module = family.auto_classes[0].from_config(config)
    freeze(module, family, vision_tower_frozen=model.freeze_vision_tower, projector_frozen=model.freeze_projector)
    num_quantised = quantised_weights(module, family) if model.quantization else 0
    if model.lora:
        add_adapters(module, family, model.lora.model_dump())
    weights = list(module.parameters())
    text = config.get_text_config()
    if unknown := [name for name in TEXT_SIZES if getattr(text, name, None) is None]:
        raise ModelError(f"the sizes of a {config.model_type} model are not known ({', '.join(unknown)})")
    layers, width = TextLayers.of(text), DTYPES[model.dtype].itemsize
    if not layers.inner:
        raise ModelError(f"the sizes of a {config.model_type} model are not known (intermediate_size)")
    return Shapes(
        model_type=config.model_type,
        num_parameters=sum(weight.numel() for weight in weights),
        num_trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        num_quantised=num_quantised,
        largest_module=max(sum(w.numel() for w in part.parameters(recurse=False)) for part in module.modules()),
        text=Stack(
            text.num_hidden_layers,
            text.hidden_size,
            layers.inner,
            max(layers.query_width, layers.channels if layers.num_recurrent else 0),
            text.num_attention_heads,
        ),
        vision=family.vision.stack(config) if family.vision else None,
        vision_trained=family.has_vision and not tower_is_frozen(module, family),
        cache_bytes=bytes_per_token(text, width, shares_prompt=family.shares_prompt),
        state_bytes=layers.state_bytes(width),
        sees_by_masks=family.sight is not None,
        vocabulary=text.vocab_size,
        max_positions=text.max_position_embeddings,
    )


def family_on_this_machine(model: ModelConfig) -> Family:
    """The family of a configuration's model, read offline; ModelError as `transformers_config`."""
    return family_for(transformers_config(model))
