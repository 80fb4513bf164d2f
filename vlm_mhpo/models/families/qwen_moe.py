"""Qwen3-VL-MoE and Qwen3.5-MoE: the layers of Qwen3-VL and of Qwen3.5 with routed experts.

A router sends every token to the few experts that it scores highest, so a token's output hangs on no other token, and
packed rows are exact. Only where two scores agree to within rounding may a row of another shape choose the other
expert; that token then has another log-prob, in the sampler or in the trainer, either rightful. No routes are replayed.

transformers adds its loss for balanced routers to a loss that it computes itself, with labels; nothing here does, so
there is none, as with `output_router_logits=false`. The experts of a layer are one tensor, and so have no adapters.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from vlm_mhpo.models.families.base import SPARE_TENSORS, Family
from vlm_mhpo.models.families.qwen3_5 import TINY_TEXT, TINY_VISION
from vlm_mhpo.models.families.qwen_vl import (
    QWEN3_VISION,
    ROPE,
    QwenVision,
    half_width,
    rope_index_positions,
    tiny_config,
)
from vlm_mhpo.models.families.text import text_positions

# Two of eight experts, and a layer without: widths that no transposed tensor shares.
_EXPERTS = dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=40)
_LAYER, _BLOCK = "Qwen3_5MoeGatedDeltaNet", "Qwen3_5MoeSparseMoeBlock"
_TINY_3_5 = TINY_TEXT | _EXPERTS | dict(shared_expert_intermediate_size=48)


def _tiny_text(tokenizer: Any, text: dict[str, Any]) -> Any:
    from transformers import Qwen3_5MoeTextConfig

    return Qwen3_5MoeTextConfig(**text | _TINY_3_5, tie_word_embeddings=False)


_COMMON: dict[str, Any] = dict(
    recurrent=(_LAYER,), leaf_modules=(_LAYER, _BLOCK), spare=(*SPARE_TENSORS, r"^mtp\."), answer_tokens=8192
)
QWEN_MOE_FAMILIES = (
    Family(
        "qwen3_vl_moe",
        rope_index_positions,
        QWEN3_VISION,
        leaf_modules=("Qwen3VLMoeTextSparseMoeBlock",),
        answer_tokens=8192,
        tiny_config=partial(
            tiny_config,
            "Qwen3VLMoeConfig",
            partial(half_width, patch_size=16, num_position_embeddings=256, deepstack_visual_indexes=[0]),
            head_dim=32,
            mlp_only_layers=[1],
            rope_parameters=ROPE | {"mrope_interleaved": True},
            **_EXPERTS,
        ),
    ),
    Family(
        "qwen3_5_moe",
        rope_index_positions,
        QwenVision(("merger",), "Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16),
        tiny_config=partial(tiny_config, "Qwen3_5MoeConfig", TINY_VISION, **_TINY_3_5),
        **_COMMON,
    ),
    Family("qwen3_5_moe_text", text_positions, tiny_config=_tiny_text, **_COMMON),
)
