"""All that differs between model architectures, one file each; the table of those that are supported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.families.glm_vl import GLM_VL_FAMILIES
from vlm_mhpo.models.families.internvl import INTERNVL_FAMILIES
from vlm_mhpo.models.families.qwen3_5 import QWEN3_5_FAMILIES
from vlm_mhpo.models.families.qwen_moe import QWEN_MOE_FAMILIES
from vlm_mhpo.models.families.qwen_vl import QWEN_VL_FAMILIES
from vlm_mhpo.models.families.smolvlm import SMOLVLM_FAMILIES
from vlm_mhpo.models.families.text import TEXT_FAMILIES, text_positions

_QWEN = (*QWEN_VL_FAMILIES, *QWEN3_5_FAMILIES, *QWEN_MOE_FAMILIES)
_OTHERS = (*GLM_VL_FAMILIES, *INTERNVL_FAMILIES, *SMOLVLM_FAMILIES)
FAMILIES = {family.model_type: family for family in (*_QWEN, *_OTHERS, *TEXT_FAMILIES)}


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
        return Family(config.model_type, text_positions, shares_prompt=False)
    family = family_of(config.model_type)
    exact = {"full_attention", *(["linear_attention"] if family.recurrent else [])}
    slides = any(kind not in exact for kind in getattr(text, "layer_types", None) or ())
    return replace(family, shares_prompt=False) if slides else family


def family_of(model_type: str) -> Family:
    """The family of a configuration's model_type; ModelError names the supported ones."""
    if model_type not in FAMILIES:
        raise ModelError(f"models of type {model_type!r} are not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
