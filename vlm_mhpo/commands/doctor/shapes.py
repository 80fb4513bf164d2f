"""The sizes of a model, from its config alone: built on the meta device, where weights take no memory."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, get_args

import torch

from vlm_mhpo.config import ModelConfig
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family, family_of, freeze
from vlm_mhpo.models.families.frozen_tower import tower_is_frozen
from vlm_mhpo.models.loading import first_line
from vlm_mhpo.models.tiny import SCHEME, TinyFamily, build_tokenizer, model_config

# Of the tiny models that `resolve_model` builds.
TINY_HIDDEN_SIZE = 128


@dataclass(frozen=True, slots=True)
class LayerShapes:
    """A stack of transformer layers; widths in elements a token (or patch)."""

    num_layers: int
    hidden: int
    intermediate: int
    query: int
    num_heads: int


@dataclass(frozen=True, slots=True)
class Shapes:
    """What the memory of a model follows from.

    Attributes:
        model_type: architecture.
        num_parameters: weights, tied ones once.
        num_trained: those that the configuration does not freeze.
        largest_module: weights that one module holds by itself, at most; what ZeRO-3 gathers at once, at least.
        text, vision: layers; vision None without a vision tower.
        vision_trained: gradients pass through the tower.
        key_value: elements that a token leaves in the cache of one layer, keys and values.
        vocabulary: rows of the head.
        max_positions: tokens the model was built for.
        token_side: pixels on a side of one image token; 0 without vision.
        patches_per_token: patches merged into one image token.
    """

    model_type: str
    num_parameters: int
    num_trained: int
    largest_module: int
    text: LayerShapes
    vision: LayerShapes | None
    vision_trained: bool
    key_value: int
    vocabulary: int
    max_positions: int
    token_side: int
    patches_per_token: int


def transformers_config(model: ModelConfig) -> Any:
    """The transformers configuration of `model`, from a folder, the cache of the hub, or a tiny family; never online.

    Raises:
        ModelError: there is none on this machine, or a tiny family does not exist.
    """
    import transformers

    if model.path.startswith(SCHEME):
        family = model.path.removeprefix(SCHEME)
        if family not in get_args(TinyFamily):
            raise ModelError(f"model.path={model.path}: tiny models exist of {', '.join(get_args(TinyFamily))}")
        return model_config(family, build_tokenizer(), TINY_HIDDEN_SIZE)
    try:
        return transformers.AutoConfig.from_pretrained(
            model.path, revision=model.revision, trust_remote_code=False, local_files_only=True
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"{model.path}: no config.json on this machine ({first_line(error)})") from error


def shapes_of(model: ModelConfig) -> Shapes:
    """The sizes of the model that a configuration names, with what it freezes.

    Raises:
        ModelError: see `transformers_config`; or the architecture is not supported.
    """
    import transformers

    config = transformers_config(model)
    family = family_of(config.model_type)
    loader = transformers.AutoModelForImageTextToText if family.has_vision else transformers.AutoModelForCausalLM
    with torch.device("meta"):
        module = loader.from_config(config)
    freeze(module, family, vision_tower_frozen=model.freeze_vision_tower, projector_frozen=model.freeze_projector)
    weights = list(module.parameters())
    text = config.get_text_config()
    head_width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    vision = config.vision_config if family.has_vision else None
    return Shapes(
        model_type=config.model_type,
        num_parameters=sum(weight.numel() for weight in weights),
        num_trained=sum(weight.numel() for weight in weights if weight.requires_grad),
        largest_module=max(sum(w.numel() for w in part.parameters(recurse=False)) for part in module.modules()),
        text=LayerShapes(
            text.num_hidden_layers,
            text.hidden_size,
            text.intermediate_size,
            text.num_attention_heads * head_width,
            text.num_attention_heads,
        ),
        vision=vision_layers(vision) if vision else None,
        vision_trained=family.has_vision and not tower_is_frozen(module, family),
        key_value=2 * text.num_key_value_heads * head_width,
        vocabulary=text.vocab_size,
        max_positions=text.max_position_embeddings,
        token_side=vision.patch_size * vision.spatial_merge_size if vision else 0,
        patches_per_token=vision.spatial_merge_size**2 if vision else 0,
    )


def vision_layers(config: Any) -> LayerShapes:
    """The layers of a vision tower; Qwen2-VL names its widths otherwise."""
    width = getattr(config, "embed_dim", None) or config.hidden_size
    inner = getattr(config, "intermediate_size", None) or int(width * config.mlp_ratio)
    return LayerShapes(config.depth, width, inner, width, config.num_heads)


def family_on_this_machine(model: ModelConfig) -> Family:
    """The family of a configuration's model, read offline; ModelError as `transformers_config`."""
    return family_of(transformers_config(model).model_type)
