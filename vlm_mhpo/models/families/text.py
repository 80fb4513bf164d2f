"""Text families: positions that count up, and a head that must be a plain matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.logit_rule import find_rule
from vlm_mhpo.types import Prompt


def text_positions(model: nn.Module, prompt: Prompt) -> Tensor:
    """[1, S]: 0, 1, 2, ..."""
    return torch.arange(prompt.num_tokens)[None]


def _tiny_qwen2(tokenizer: Any, text: dict[str, Any]) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**text, tie_word_embeddings=False)


TEXT_FAMILIES = (
    Family("qwen2", text_positions, tiny_config=_tiny_qwen2),
    Family("qwen3", text_positions),
    Family("llama", text_positions),
)


def check_parts(model: nn.Module, model_type: str) -> None:
    """ModelError unless a model has a body `model` and a head `lm_head`, as policies are taken to have."""
    if not all(isinstance(getattr(model, name, None), nn.Module) for name in ("model", "lm_head")):
        raise ModelError(f"a {model_type} model is built in another way than those that can be trained here")


def check_own_head(model: nn.Module, model_type: str) -> None:
    """The same for a model that prepares its inputs itself; under ZeRO-3 it is looked at before the first step."""
    check_parts(model, model_type)
    is_whole = not any(hasattr(weight, "ds_id") for weight in model.parameters())
    if is_whole and not find_rule(model, of_body=False):
        raise ModelError(f"a {model_type} model changes its logits in a way that is not known here")


def check_head(model: nn.Module, model_type: str) -> None:
    """ModelError unless the logits are those that head and a `LogitRule` make of the last hidden state."""
    check_parts(model, model_type)
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ModelError(f"a {model_type} model has no adapter and cannot be checked under ZeRO-3: use a lower stage")
    if not find_rule(model, of_body=True):
        raise ModelError(f"a {model_type} model changes its logits in a way that is not known here")
