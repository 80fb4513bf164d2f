"""All that differs between model architectures, one file each; the table of those that are supported."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.families.gemma import GEMMA_FAMILIES
from vlm_mhpo.models.families.gemma4 import GEMMA4_FAMILIES
from vlm_mhpo.models.families.glm_vl import GLM_VL_FAMILIES
from vlm_mhpo.models.families.internvl import INTERNVL_FAMILIES
from vlm_mhpo.models.families.own_path import OwnVision
from vlm_mhpo.models.families.qwen3_5 import QWEN3_5_FAMILIES
from vlm_mhpo.models.families.qwen_moe import QWEN_MOE_FAMILIES
from vlm_mhpo.models.families.qwen_vl import QWEN_VL_FAMILIES
from vlm_mhpo.models.families.sight import FULL, RECURRENT, SLIDING, shares, slides
from vlm_mhpo.models.families.smolvlm import SMOLVLM_FAMILIES
from vlm_mhpo.models.families.text import TEXT_FAMILIES, text_positions

_QWEN = (*QWEN_VL_FAMILIES, *QWEN3_5_FAMILIES, *QWEN_MOE_FAMILIES)
_OTHERS = (*GLM_VL_FAMILIES, *INTERNVL_FAMILIES, *SMOLVLM_FAMILIES, *GEMMA_FAMILIES, *GEMMA4_FAMILIES)
FAMILIES = {family.model_type: family for family in (*_QWEN, *_OTHERS, *TEXT_FAMILIES)}


def family_for(config: Any) -> Family:
    """The family of a transformers configuration.

    A text model of another type is taken as it is, every completion with its own copy of the prompt; so is one of the
    table whose layers, or positions, are not those that rows can share (`sight.shares`). A model of another type that
    sees images prepares its inputs itself (`own_path`), which a run proves before its first step.

    Raises:
        ModelError: neither a causal language model nor one that makes text of images and text.
    """
    from transformers.models.auto import modeling_auto

    text = config.get_text_config()
    causal, seeing = (
        modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        modeling_auto.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    if config.model_type not in FAMILIES and config.model_type in seeing:
        vision = OwnVision(config.model_type)
        return Family(config.model_type, text_positions, vision, shares_prompt=False, own_inputs=True)
    if config.model_type not in FAMILIES and text is config and config.model_type in causal:
        return Family(config.model_type, text_positions, shares_prompt=False)
    family = family_of(config.model_type)
    known = {FULL, *([SLIDING] if family.sight else []), *([RECURRENT] if family.recurrent else [])}
    if not shares(text, known):
        return replace(family, shares_prompt=False, sight=None)
    if slides(text):
        # What decodes plain layers knows no window.
        return replace(family, plain_layers=False)
    # What sees no more than a causal layer needs no masks of its own.
    return replace(family, sight=None) if family.sight and not family.sight.image_ahead else family


def family_of(model_type: str) -> Family:
    """The family of a configuration's model_type; ModelError names the supported ones."""
    if model_type not in FAMILIES:
        raise ModelError(f"models of type {model_type!r} are not supported; supported: {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
