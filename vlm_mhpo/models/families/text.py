"""Text families: positions that count up, logits by a `LogitRule`.

Those of the table share prompts: their attention goes through transformers' interface, and rows and sampler were
compared with the stock model's (`tests/vlm_mhpo/test_other_families.py`). Any other text model has separate rows.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.families.sight import Sight
from vlm_mhpo.models.logit_rule import find_rule
from vlm_mhpo.types import Prompt


def text_positions(model: nn.Module, prompt: Prompt) -> Tensor:
    """[1, S]: 0, 1, 2, ..."""
    return torch.arange(prompt.num_tokens)[None]


def _tiny_qwen2(tokenizer: Any, text: dict[str, Any]) -> Any:
    from transformers import Qwen2Config

    return Qwen2Config(**text, tie_word_embeddings=False)


# Every layer sees everything.
_FULL = (
    *("llama", "gemma", "phi", "granite", "cohere", "olmo", "olmo2", "glm", "glm4", "smollm3", "helium", "seed_oss"),
    *("arcee", "hunyuan_v1_dense", "ernie4_5", "nanochat"),
)
# Layers may slide: some of them, by kind; or all of them.
_SOME_SLIDE = ("qwen3", "gemma3_text", "cohere2", "olmo3", "exaone4")
_ALL_SLIDE = ("mistral", "phi3", "starcoder2")
TEXT_FAMILIES = (
    Family("qwen2", text_positions, sight=Sight(), plain_layers=True, tiny_config=_tiny_qwen2),
    *(Family(name, text_positions, plain_layers=name == "llama") for name in _FULL),
    *(Family(name, text_positions, sight=Sight(), plain_layers=name == "qwen3") for name in _SOME_SLIDE),
    *(Family(name, text_positions, sight=Sight(by_kind=False)) for name in _ALL_SLIDE),
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
