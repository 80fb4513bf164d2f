"""Qwen3.5 and 3.6, dense: three of four layers are gated delta nets, each fourth is attention with an output gate.

They see as Qwen3-VL does, without deepstack, and the text models alone are the same layers without the tower. The heads
that predict several tokens, which published folders hold beside the weights (`mtp.`), are not read.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlm_mhpo.models.families.base import SPARE_TENSORS, Family
from vlm_mhpo.models.families.qwen_vl import ROPE, QwenVision, half_width, rope_index_positions, tiny_config
from vlm_mhpo.models.families.text import text_positions

_LAYER = "Qwen3_5GatedDeltaNet"
# One full layer as the real ones: the last of four.
_LAYERS = dict(num_hidden_layers=4, layer_types=["linear_attention"] * 3 + ["full_attention"])
_WIDTHS = dict(head_dim=32, linear_key_head_dim=16, linear_value_head_dim=16)
_HEADS = dict(linear_num_key_heads=2, linear_num_value_heads=4)
TINY_TEXT = (
    _LAYERS
    | _WIDTHS
    | _HEADS
    | dict(rope_parameters=ROPE | dict(mrope_section=[2, 1, 1], mrope_interleaved=True, partial_rotary_factor=0.25))
)
TINY_VISION = partial(half_width, patch_size=16, num_position_embeddings=256)


def _tiny_text(tokenizer: Any, text: dict[str, Any]) -> Any:
    from transformers import Qwen3_5TextConfig

    return Qwen3_5TextConfig(**text | TINY_TEXT, tie_word_embeddings=False)


_COMMON: dict[str, Any] = dict(
    recurrent=(_LAYER,),
    # It reads weights of its convolution without calling it, and runs for prompts and again for completions.
    leaf_modules=(_LAYER,),
    spare=(*SPARE_TENSORS, r"^mtp\."),
    answer_tokens=8192,
)
QWEN3_5_FAMILIES = (
    Family(
        "qwen3_5",
        rope_index_positions,
        QwenVision(("merger",), "Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16),
        tiny_config=partial(tiny_config, "Qwen3_5Config", TINY_VISION, **TINY_TEXT),
        **_COMMON,
    ),
    Family("qwen3_5_text", text_positions, tiny_config=_tiny_text, **_COMMON),
)
