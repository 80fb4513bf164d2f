"""Text families: positions that count up, and a head that must be a plain matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.types import Prompt


def text_positions(model: nn.Module, prompt: Prompt) -> Tensor:
    """[1, S]: 0, 1, 2, ..."""
    return torch.arange(prompt.num_tokens)[None]


def _tiny_qwen2(tokenizer: Any, text: dict[str, Any]) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**text, tie_word_embeddings=False)


TEXT_FAMILIES = (
    Family("qwen2", text_positions, plain_layers=True, tiny_config=_tiny_qwen2),
    Family("qwen3", text_positions, plain_layers=True),
    Family("llama", text_positions, plain_layers=True),
)


@torch.no_grad()
def check_plain_head(model: nn.Module, model_type: str) -> None:
    """ModelError unless the logits are lm_head(last hidden state) and nothing more, as the policy takes them to be."""
    if not all(isinstance(getattr(model, name, None), nn.Module) for name in ("model", "lm_head")):
        raise ModelError(f"a {model_type} model is built in another way than those that can be trained here")
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ModelError(f"a {model_type} model has no adapter and cannot be checked under ZeRO-3: use a lower stage")
    ids_BS = torch.arange(1, 5)[None] % model.config.vocab_size
    logits = model.eval()(input_ids=ids_BS, use_cache=False).logits
    plain = model.lm_head(model.model(input_ids=ids_BS, use_cache=False).last_hidden_state)
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-3, atol=1e-3):
        raise ModelError(f"a {model_type} model scales or caps its logits, which is not supported")
