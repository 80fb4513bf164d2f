"""What differs between model families: positions, vision modules, tokens that must never be sampled.

Shape suffixes: A position axes, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.types import Prompt

# A sampled placeholder makes the next forward look for an image that is not there.
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table of supported architectures.

    Attributes:
        model_type: transformers' name of the configuration.
        has_vision: images are accepted.
        positions: (model, prompt) -> [A, S] int64 positions of the prompt's tokens.
        projectors: names, inside the vision tower, of the modules that map vision to text width.
        shares_prompt: completions may share a row and a cache with their prompt; else each has a copy of it.
    """

    model_type: str
    has_vision: bool
    positions: Callable[[nn.Module, Prompt], Tensor]
    projectors: tuple[str, ...] = ()
    shares_prompt: bool = True


def rope_index_positions(model: nn.Module, prompt: Prompt) -> Tensor:
    """[3, S]: time, height and width positions, as the model's own get_rope_index defines them."""
    if prompt.image_grid_thw is None:
        return torch.arange(prompt.num_tokens).expand(3, -1)
    positions, _ = model.model.get_rope_index(
        prompt.input_ids_S[None], mm_token_type_ids=prompt.token_types_S[None], image_grid_thw=prompt.image_grid_thw
    )
    return positions[:, 0].to("cpu", torch.int64)


def text_positions(model: nn.Module, prompt: Prompt) -> Tensor:
    """[1, S]: 0, 1, 2, ..."""
    return torch.arange(prompt.num_tokens)[None]


FAMILIES = {
    family.model_type: family
    for family in (
        Family("qwen2_vl", True, rope_index_positions, ("merger",)),
        Family("qwen2_5_vl", True, rope_index_positions, ("merger",)),
        Family("qwen3_vl", True, rope_index_positions, ("merger", "deepstack_merger_list")),
        # Text families whose logits are lm_head(last hidden state) and nothing more; others would be silently wrong.
        Family("qwen2", False, text_positions),
        Family("qwen3", False, text_positions),
        Family("llama", False, text_positions),
    )
}


def family_for(config: Any) -> Family:
    """The family of a transformers configuration.

    A text model of another type is taken as it is, every completion with its own copy of the prompt; so is one of the
    table whose layers look back only so far (sliding windows), since restarted positions would not.

    Raises:
        ModelError: another architecture with vision, or no causal language model.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    text = config.get_text_config()
    if config.model_type not in FAMILIES and text is config and config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES:
        return Family(config.model_type, False, text_positions, shares_prompt=False)
    family = family_of(config.model_type)
    slides = any(kind != "full_attention" for kind in getattr(text, "layer_types", None) or ())
    return replace(family, shares_prompt=False) if slides else family


def family_of(model_type: str) -> Family:
    """The family of a configuration's model_type; ModelError names the supported ones."""
    if model_type not in FAMILIES:
        raise ModelError(f"models of type {model_type!r} are not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]


def banned_tokens(tokenizer, vocabulary_size: int) -> Tensor:
    """[V] bool, True for vision placeholders and for ids that the tokenizer does not know (padding of the matrix)."""
    banned_V = torch.zeros(vocabulary_size, dtype=torch.bool)
    banned_V[len(tokenizer) :] = True
    known = tokenizer.get_added_vocab()
    banned_V[[known[token] for token in VISION_TOKENS if token in known]] = True
    return banned_V


def vision_tower(model: nn.Module, family: Family) -> nn.Module | None:
    """The vision encoder, projector included, or None."""
    return model.model.visual if family.has_vision else None


def freeze(model: nn.Module, family: Family, *, vision_tower_frozen: bool, projector_frozen: bool) -> None:
    """Set requires_grad of the vision encoder's and the projector's weights."""
    tower = vision_tower(model, family)
    if tower is None:
        if vision_tower_frozen or projector_frozen:
            raise ModelError(f"a {family.model_type} model has no vision tower: set model.freeze_* to false")
        return
    for name, parameter in tower.named_parameters():
        is_projector = name.split(".", 1)[0] in family.projectors
        parameter.requires_grad_(not (projector_frozen if is_projector else vision_tower_frozen))


def parameter_table(model: nn.Module, family: Family) -> list[tuple[str, int, int]]:
    """(part, weights, trainable weights) of the vision tower, the projector and the language model."""
    counts = {"vision tower": [0, 0], "projector": [0, 0], "language model": [0, 0]}
    for name, parameter in model.named_parameters():
        inside = name.removeprefix("model.visual.") if name.startswith("model.visual.") else None
        part = (
            "language model"
            if inside is None
            else ("projector" if inside.split(".", 1)[0] in family.projectors else "vision tower")
        )
        # ZeRO-3 leaves empty tensors behind; ds_numel keeps the true size.
        size = getattr(parameter, "ds_numel", parameter.numel())
        counts[part][0] += size
        counts[part][1] += size if parameter.requires_grad else 0
    return [(part, total, trainable) for part, (total, trainable) in counts.items() if total]
