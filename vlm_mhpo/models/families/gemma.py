"""Gemma 3: images of one size with as many tokens each, layers that look back only so far, image tokens that see ahead.

Most layers slide: a token sees those less than a window of positions before it. In rows that share a prompt, and in the
sampler, that distance is one of positions and not of places in the row. The tokens of one image see each other both
ways in every layer (`families.sight`). Positions count up. Not covered: limits of pixels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import WHITE_IS_ZERO, Family, TinyWords
from vlm_mhpo.models.families.costs import Part, Stack, Work, matrices, num_weights
from vlm_mhpo.models.families.frozen_tower import FEATURES, PIXELS, KeptFeatures
from vlm_mhpo.models.families.sight import Sight
from vlm_mhpo.models.families.text import text_positions
from vlm_mhpo.types import Media

# Pixels are [views, 3, height, width] float32; features of a frozen tower [views, patches or tokens, D].
TOKENS = {"boi_token": "<start_of_image>", "eoi_token": "<end_of_image>", "image_token": "<image_soft_token>"}


@dataclass(frozen=True, slots=True)
class ViewVision(KeptFeatures):
    """How this family sees; methods as `base.Vision` describes them. A view is an image, or a crop of one."""

    def cut(self, processor: Any, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        is_image_BS = inputs["input_ids"] == processor.tokenizer.image_token_id
        views = (is_image_BS.sum(dim=1) // processor.image_seq_length).tolist()
        return [Media({PIXELS: pixels.clone()}) for pixels in inputs[PIXELS].split(views)]

    def num_tokens(self, processor: Any, media: Media) -> int:
        return len(media.tensors[PIXELS]) * processor.image_seq_length

    def features_of(self, model: nn.Module, shown: Sequence[Media], learning: Sequence[nn.Module]) -> Sequence[Tensor]:
        pixels = self.join(shown).to(model.lm_head.weight.device).tensors[PIXELS]
        with torch.no_grad():
            features = self.tower(model)(pixel_values=pixels.type(model.lm_head.weight.dtype)).last_hidden_state
            if not learning:
                features = model.model.multi_modal_projector(features)
        return features.cpu().split([len(part.tensors[PIXELS]) for part in shown])

    def blank(self, model: nn.Module, media: Media | None) -> tuple[Tensor, Media]:
        ids = torch.full((model.config.mm_tokens_per_image,), model.config.image_token_id)
        if media is not None and FEATURES in media.tensors:
            features = media.tensors[FEATURES]
            return ids, Media({FEATURES: features.new_zeros(1, *features.shape[1:])})
        vision = model.config.vision_config
        shape = (1, vision.num_channels, vision.image_size, vision.image_size)
        return ids, Media({PIXELS: torch.zeros(shape, dtype=next(model.parameters()).dtype)})

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        if FEATURES in media.tensors and not self.is_empty(media):
            features = media.tensors[FEATURES]
            for projector in learning:
                features = projector(features)
            return {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=features)}}
        return {PIXELS: media.tensors[PIXELS].type(model.lm_head.weight.dtype)} if PIXELS in media.tensors else {}

    def tower(self, model: nn.Module) -> nn.Module:
        return model.model.vision_tower

    def projectors(self, model: nn.Module) -> list[nn.Module]:
        return [model.model.multi_modal_projector]

    def adapt(self, model: nn.Module) -> None:
        pass

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        size = processor.image_processor.size
        raise ModelError(
            f"every image of a gemma3 model becomes {size['height']} x {size['width']} pixels: leave out "
            "model.min_pixels and model.max_pixels"
        )

    def pixels_per_token(self, processor: Any) -> int:
        size = processor.image_processor.size
        return size["height"] * size["width"] // processor.image_seq_length

    def stack(self, config: Any) -> Stack:
        vision = config.vision_config
        pixels, patches = vision.image_size**2, (vision.image_size // vision.patch_size) ** 2
        width, heads, merged = vision.hidden_size, vision.num_attention_heads, config.mm_tokens_per_image
        layers = vision.num_hidden_layers
        return Stack(layers, width, vision.intermediate_size, width, heads, pixels // merged, patches // merged)

    def work(self, model: nn.Module, media: Media) -> Work:
        return self.work_of_call(model, (), {PIXELS: media.tensors[PIXELS]})

    def work_of_call(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Work:
        views, vision = len(kwargs.get(PIXELS, args[0] if args else None)), model.config.vision_config
        patches = (vision.image_size // vision.patch_size) ** 2
        merged = views * model.config.mm_tokens_per_image
        return Work(patches=views * patches, image_pairs=views * patches**2, merged=merged)

    def parts(self, model: nn.Module) -> list[Part]:
        tower, projector = self.tower(model), model.model.multi_modal_projector
        embedding, blocks = tower.embeddings.patch_embedding, tower.encoder.layers
        trained = any(weight.requires_grad for weight in tower.parameters())
        learns = projector.mm_input_projection_weight.requires_grad
        passes = 1.0 + learns if trained or learns else 0.0
        matrix = projector.mm_input_projection_weight
        return [
            # Pixels need no gradient.
            Part("patch embedding", num_weights(embedding), "patches", float(embedding.weight.requires_grad)),
            matrices("vision blocks", [blocks], "patches", passes=trained),
            Part("image attention", 2 * embedding.out_channels * len(blocks), "image_pairs", 2.0 if trained else 0.0),
            Part("projector", getattr(matrix, "ds_numel", matrix.numel()), "merged", passes),
        ]

    def tiny_processor(self, tokenizer: Any) -> Any:
        import transformers

        side = _TINY_PATCHES * 14
        return transformers.Gemma3Processor(
            image_processor=transformers.Gemma3ImageProcessor(size={"height": side, "width": side}, **WHITE_IS_ZERO),
            tokenizer=tokenizer,
            image_seq_length=_TINY_TOKENS,
            chat_template=tokenizer.chat_template,
        )


_TINY_PATCHES, _TINY_TOKENS, _TINY_WINDOW = 4, 4, 12


def _sliding(text: dict[str, Any]) -> dict[str, Any]:
    """Sizes of a tiny text part of which every layer but the last slides."""
    kinds = ["sliding_attention"] * (text["num_hidden_layers"] - 1) + ["full_attention"]
    return text | dict(layer_types=kinds, sliding_window=_TINY_WINDOW, head_dim=32, query_pre_attn_scalar=32)


def _tiny_gemma3(tokenizer: Any, text: dict[str, Any]) -> Any:
    import transformers

    ids, width = tokenizer.convert_tokens_to_ids, text["hidden_size"]
    vision = dict(hidden_size=width // 2, intermediate_size=width, num_hidden_layers=2, num_attention_heads=width // 32)
    return transformers.Gemma3Config(
        text_config=_sliding(text),
        vision_config=vision
        | dict(image_size=_TINY_PATCHES * 14, patch_size=14, vision_use_head=False, model_type="siglip_vision_model"),
        mm_tokens_per_image=_TINY_TOKENS,
        boi_token_index=ids(TOKENS["boi_token"]),
        eoi_token_index=ids(TOKENS["eoi_token"]),
        image_token_index=ids(TOKENS["image_token"]),
        tie_word_embeddings=False,
    )


GEMMA_FAMILIES = (
    Family(
        "gemma3",
        text_positions,
        ViewVision(),
        sight=Sight(image_ahead="all"),
        has_pixel_limits=False,
        tiny_words=TinyWords(tuple(TOKENS.values()), TOKENS["boi_token"], TOKENS),
        tiny_config=_tiny_gemma3,
    ),
)
