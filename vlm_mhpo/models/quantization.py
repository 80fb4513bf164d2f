"""A base model in 4 or 8 bits below adapters (QLoRA), by bitsandbytes: what learns are the adapters, in full width.

The matrices of the language model are quantised; head, embeddings, norms, tower and projector stay what they are.
"""

from __future__ import annotations

import importlib.util
import logging
import re
from typing import Any

import torch
from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.adapters import is_adapter, vision_names
from vlm_mhpo.models.families.base import Family

# Bytes of a quantised weight: nf4 has 4 bits, 8 for a scale of 64 of them, and 32 for a scale of 256 such scales.
BYTES = {"nf4": 0.5 + 1 / 64 + 4 / (64 * 256), "int8": 1.0}


def check_quantization(kind: str, zero_stage: int = 0) -> None:
    """ModelError where a model cannot be held so."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"model.quantization={kind} needs bitsandbytes: pip install 'vlm-mhpo[quantization]'")
    if zero_stage == 3:
        raise ModelError(f"model.quantization={kind} is held whole by every rank: set deepspeed.zero_stage=2 or lower")


def quantization_settings(kind: str, dtype: torch.dtype, family: Family, config: Any) -> Any:
    """transformers' settings, for products in `dtype`."""
    from transformers import BitsAndBytesConfig

    # It says with every product that int8 is made of half floats.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    with torch.device("meta"):
        empty = family.auto_classes[0].from_config(config)
    head = empty.get_output_embeddings()
    kept = [*vision_names(empty, family), *(name for name, each in empty.named_modules() if each is head)]
    if kind == "int8":
        # A threshold picks columns by all tokens of a forward, so that a token alone would be another policy's.
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_threshold=0.0, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def quantised_weights(model: nn.Module, family: Family) -> int:
    """How many weights of a model that is not quantised would be."""
    seeing = re.compile(rf"({'|'.join(map(re.escape, vision_names(model, family))) or '(?!)'})(\..*)?")
    head = model.get_output_embeddings()
    return sum(
        module.weight.numel()
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head and not seeing.fullmatch(name) and not is_adapter(name)
    )


def settle_base(policy: nn.Module) -> None:
    """One way to compute for sampler and trainer, and a state of adapters alone for checkpoints.

    On some CPUs bitsandbytes packs 4-bit weights anew where nothing learns, and rounds products to bfloat16; log-probs
    of the sampler were 0.02 off. Scales of quantised weights are no parameters, so DeepSpeed would keep them.
    """
    for module in policy.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False

    def drop(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        for name in [name for name in state if not is_adapter(name)]:
            del state[name]

    policy.register_state_dict_post_hook(drop)
