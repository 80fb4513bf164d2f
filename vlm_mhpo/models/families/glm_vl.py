"""GLM-4.1V and GLM-4.6V (Flash): grids and three position axes as Qwen-VL has them, with a tower that merges by itself.

A convolution inside the tower makes one vector of the patches of a token, and the projector maps that; so what is kept
of a frozen tower has one row per token. Answers stand between marks of their own (`types.BOX`). Not covered: videos.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from vlm_mhpo.models.families.base import Family, TinyWords
from vlm_mhpo.models.families.costs import Part, Stack, num_weights
from vlm_mhpo.models.families.frozen_tower import encoder_output
from vlm_mhpo.models.families.qwen_vl import FEATURES, QwenVision, rope_index_positions
from vlm_mhpo.types import READ, Media

GLM_TOKENS = (
    *("<|begin_of_image|>", "<|image|>", "<|end_of_image|>"),
    *("<|begin_of_video|>", "<|video|>", "<|end_of_video|>"),
)


@dataclass(frozen=True, slots=True)
class GlmVision(QwenVision):
    """How these families see; methods as `base.Vision` describes them."""

    @property
    def sees_videos(self) -> bool:
        return False

    def fit(self, processor: Any, image: Any) -> Any:
        # The rule of its processor is not that of qwen-vl-utils.
        return image

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        if FEATURES in media.tensors and not self.is_empty(media):
            return encoder_output(media.tensors[FEATURES], learning, 1)
        return QwenVision.arguments(self, model, media, learning)

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        # Its processor counts an image as so many frames of a video.
        frames = processor.image_processor.temporal_patch_size
        limits = (pixels and pixels * frames for pixels in (min_pixels, max_pixels))
        QwenVision.set_pixel_limits(self, processor, *limits)

    def stack(self, config: Any) -> Stack:
        # `intermediate_size` is the projector's; the blocks are as wide inside as the text.
        return replace(QwenVision.stack(self, config), intermediate=config.vision_config.out_hidden_size)

    def parts(self, model: nn.Module) -> list[Part]:
        merging = self.tower(model).downsample
        *tower, projector = QwenVision.parts(self, model)
        blocks = next(part for part in tower if part.name == "vision blocks")
        backward = (1.0 if blocks.backward else 0.0) + float(merging.weight.requires_grad)
        return [*tower, Part("merging of patches", num_weights(merging), "merged", backward), projector]


def _tiny_glm(config_class: str, tokenizer: Any, text: dict[str, Any], **more: Any) -> Any:
    """A tiny configuration; `more` of the text."""
    import transformers

    width = text["hidden_size"]
    names = ("image_start", "image", "image_end", "video_start", "video", "video_end")
    ids = {
        f"{name}_token_id": tokenizer.convert_tokens_to_ids(token)
        for name, token in zip(names, GLM_TOKENS, strict=True)
    }
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], "partial_rotary_factor": 0.5}
    vision = dict(depth=2, hidden_size=width // 2, num_heads=width // 32, out_hidden_size=width)
    vision |= dict(intermediate_size=2 * width, image_size=112, model_type="glm4v_vision")
    text = text | dict(rope_parameters=rope, model_type="glm4v_text") | more
    return getattr(transformers, config_class)(text_config=text, vision_config=vision, tie_word_embeddings=False, **ids)


def _family(model_type: str, name: str, hub_name: str) -> Family:
    """A row of the table; transformers' names of its classes begin with `name`."""
    parts = (f"{name}Processor", f"{name}VideoProcessor", 14, f"{name}ImageProcessor")
    return Family(
        model_type,
        rope_index_positions,
        GlmVision(("merger",), *parts),
        hub_name=hub_name,
        answer_tokens=8192,
        tiny_words=TinyWords(GLM_TOKENS, "".join(GLM_TOKENS[:3]), tags=READ),
        tiny_config=lambda tokenizer, text: _tiny_glm(f"{name}Config", tokenizer, text),
    )


GLM_VL_FAMILIES = (_family("glm4v", "Glm4v", "glm_4_1v"), _family("glm46v", "Glm46V", "glm_4_6v"))
