"""InternVL3 and InternVL3.5 (-hf): an image as tiles of one size, each of as many tokens; positions count up.

Media hold the tiles of all images, one behind the other, the small copy of a whole image behind its own, and how many
each image has; there is no grid. A pixel shuffle behind the tower makes one vector of the patches of a token, and the
projector maps that. Not covered: videos, and language models of routed experts.
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
from vlm_mhpo.models.families.frozen_tower import FEATURES, PIXELS, KeptFeatures, encode_images
from vlm_mhpo.models.families.text import text_positions
from vlm_mhpo.types import Media

# [tiles, 3, height, width] float32; [images] int64; [I, 1, D] of a frozen tower in the place of pixels.
NUM_TILES = "num_tiles"
TILE_TOKENS = {
    "start_image_token": "<img>",
    "end_image_token": "</img>",
    "context_image_token": "<IMG_CONTEXT>",
    "video_token": "<video>",
}


@dataclass(frozen=True, slots=True)
class TileVision(KeptFeatures):
    """How models see that cut images into tiles; public methods as `base.Vision` describes them.

    The private ones say what differs between such models.
    """

    def _merged(self, config: Any) -> int:
        """How many patches a token sees, in each direction."""
        return round(1 / config.downsample_ratio)

    def _patch(self, config: Any) -> tuple[int, int]:
        """Height and width of a patch, in pixels."""
        return tuple(config.vision_config.patch_size)

    def _spare_vectors(self) -> int:
        """What the blocks see of a tile beside its patches: a vector that stands for the whole."""
        return 1

    def _encode(self, model: nn.Module, learning: Sequence[nn.Module], pixels: Tensor) -> Tensor:
        """Features of tiles, [tiles, ...], up to the pixel shuffle or the projector."""
        return encode_images(model.model.get_image_features, learning, pixels)

    def _modules(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        """The convolution that embeds patches, and the blocks."""
        tower = self.tower(model)
        return tower.embeddings.patch_embeddings.projection, tower.encoder.layer

    def _tokens_per_tile(self, config: Any, pixels: Tensor) -> int:
        """Tokens of a tile as large as these [tiles, 3, height, width]."""
        sides = zip(pixels.shape[-2:], self._patch(config), strict=True)
        height, width = (length // patch // self._merged(config) for length, patch in sides)
        return height * width

    def cut(self, processor: Any, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        # The processor counts tiles and throws the counts away; its placeholders still tell them.
        tiles = [
            _run_lengths(ids == processor.image_token_id, count) // processor.image_seq_length
            for ids, count in zip(inputs["input_ids"], num_images, strict=True)
        ]
        pixels = inputs[PIXELS].split([int(each.sum()) for each in tiles])
        return [Media({PIXELS: some.clone(), NUM_TILES: each}) for some, each in zip(pixels, tiles, strict=True)]

    def num_tokens(self, processor: Any, media: Media) -> int:
        num_tiles = media.tensors[NUM_TILES]
        # Releases of transformers differ in whether the marks around an image count as its tokens.
        marks = len(getattr(processor, "image_token_ids", [None])) - 1
        return int(num_tiles.sum()) * processor.image_seq_length + marks * len(num_tiles)

    def features_of(self, model: nn.Module, shown: Sequence[Media], learning: Sequence[nn.Module]) -> Sequence[Tensor]:
        pixels = self.join(shown).to(model.lm_head.weight.device).tensors[PIXELS]
        per_tile = self._tokens_per_tile(model.config, pixels)
        features = self._encode(model, learning, pixels).cpu()
        sizes = [int(part.tensors[NUM_TILES].sum()) * per_tile for part in shown]
        return features.reshape(sum(sizes), 1, -1).split(sizes)

    def blank(self, model: nn.Module, media: Media | None) -> tuple[Tensor, Media]:
        ids = torch.tensor([model.config.image_token_id])
        if media is not None and FEATURES in media.tensors:
            features_IKD = media.tensors[FEATURES]
            return ids, Media({FEATURES: features_IKD.new_zeros(1, *features_IKD.shape[1:])})
        # The tower takes tiles of every size: of one token, and not of the 256 of a real one.
        height, width = (self._merged(model.config) * side for side in self._patch(model.config))
        # Not 0, which some models take for padding.
        pixels = torch.ones(1, 3, height, width, dtype=next(model.parameters()).dtype)
        return ids, Media({PIXELS: pixels, NUM_TILES: torch.tensor([1])})

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        if FEATURES in media.tensors and not self.is_empty(media):
            features_ID = media.tensors[FEATURES][:, 0]
            for projector in learning:
                features_ID = projector(features_ID)
            return {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=features_ID)}}
        return {PIXELS: media.tensors[PIXELS]} if PIXELS in media.tensors else {}

    def tower(self, model: nn.Module) -> nn.Module:
        return model.model.vision_tower

    def projectors(self, model: nn.Module) -> list[nn.Module]:
        return [model.model.multi_modal_projector]

    def adapt(self, model: nn.Module) -> None:
        pass

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        # In tiles. An image of several has one more: the small copy of the whole.
        images, area = processor.image_processor, self._tile_area(processor)
        if max_pixels:
            if max_pixels < area:
                raise ModelError(f"model.max_pixels={max_pixels} is less than one tile of this model: {area} pixels")
            images.max_patches = max(1, max_pixels // area - 1)
        if min_pixels:
            images.min_patches = -(-min_pixels // area)
        if images.min_patches > images.max_patches:
            raise ModelError(
                f"an image would have {images.min_patches} to {images.max_patches} tiles of {area} pixels: "
                "set both model.min_pixels and model.max_pixels"
            )

    def pixels_per_token(self, processor: Any) -> int:
        return self._tile_area(processor) // processor.image_seq_length

    def _tile_area(self, processor: Any) -> int:
        return processor.image_processor.size["height"] * processor.image_processor.size["width"]

    def stack(self, config: Any) -> Stack:
        vision, per_token, (height, width) = config.vision_config, self._merged(config) ** 2, self._patch(config)
        pixels = per_token * height * width
        width, heads = vision.hidden_size, vision.num_attention_heads
        return Stack(vision.num_hidden_layers, width, vision.intermediate_size, width, heads, pixels, per_token)

    def work(self, model: nn.Module, media: Media) -> Work:
        return self.work_of_call(model, (), {PIXELS: media.tensors[PIXELS]})

    def work_of_call(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Work:
        pixels = kwargs.get(PIXELS, args[0] if args else None)
        merged = self._tokens_per_tile(model.config, pixels)
        patches = merged * self._merged(model.config) ** 2 + self._spare_vectors()
        tiles = len(pixels)
        return Work(patches=tiles * patches, image_pairs=tiles * patches**2, merged=tiles * merged)

    def parts(self, model: nn.Module) -> list[Part]:
        tower, projectors = self.tower(model), self.projectors(model)
        embedding, blocks = self._modules(model)
        embeds = embedding.weight.requires_grad
        trained = any(weight.requires_grad for weight in tower.parameters())
        passes = trained or any(weight.requires_grad for module in projectors for weight in module.parameters())
        vision, per_token = model.config.vision_config, self._merged(model.config) ** 2
        return [
            # Pixels need no gradient.
            Part("patch embedding", per_token * num_weights(embedding), "merged", float(embeds)),
            matrices("vision blocks", [blocks], "patches", passes=trained),
            Part("image attention", 2 * vision.hidden_size * len(blocks), "image_pairs", 2.0 if trained else 0.0),
            matrices("projector", projectors, "merged", passes=passes),
        ]

    def tiny_processor(self, tokenizer: Any) -> Any:
        import transformers

        side = _TINY_PATCHES * 14
        images = transformers.GotOcr2ImageProcessor(
            size={"height": side, "width": side}, crop_to_patches=True, min_patches=1, max_patches=12, **WHITE_IS_ZERO
        )
        return transformers.InternVLProcessor(
            image_processor=images,
            tokenizer=tokenizer,
            video_processor=transformers.InternVLVideoProcessor(size={"height": side, "width": side}),
            image_seq_length=(_TINY_PATCHES // 2) ** 2,
            chat_template=tokenizer.chat_template,
        )


def _run_lengths(is_image_S: Tensor, num_images: int) -> Tensor:
    """[images] int64: how many placeholders each image has; marks around an image keep it apart from the next."""
    edges = torch.diff(is_image_S.long(), prepend=torch.tensor([0]), append=torch.tensor([0]))
    lengths = (edges == -1).nonzero().flatten() - (edges == 1).nonzero().flatten()
    if len(lengths) != num_images:
        raise ValueError(f"{len(lengths)} runs of image tokens for {num_images} images")
    return lengths


_TINY_PATCHES = 4


def _tiny_internvl(tokenizer: Any, text: dict[str, Any]) -> Any:
    import transformers

    width, side = text["hidden_size"], _TINY_PATCHES * 14
    vision = dict(hidden_size=width // 2, intermediate_size=width, num_hidden_layers=2, num_attention_heads=width // 32)
    return transformers.InternVLConfig(
        text_config=text | {"model_type": "qwen2"},
        vision_config=vision | dict(image_size=[side, side], patch_size=[14, 14], attention_bias=True),
        image_token_id=tokenizer.convert_tokens_to_ids(TILE_TOKENS["context_image_token"]),
        image_seq_length=(_TINY_PATCHES // 2) ** 2,
        tie_word_embeddings=False,
    )


INTERNVL_FAMILIES = (
    Family(
        "internvl",
        text_positions,
        TileVision(),
        hub_name="internvl",
        tiny_words=TinyWords(tuple(TILE_TOKENS.values()), TILE_TOKENS["context_image_token"], TILE_TOKENS),
        tiny_config=_tiny_internvl,
    ),
)
