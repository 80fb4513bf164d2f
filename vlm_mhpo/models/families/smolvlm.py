"""SmolVLM and Idefics3: tiles as InternVL has them, the names of row and column before the tokens of each.

The processor scales every image to the same longest side, in tiles, and pads the tiles of a batch; media hold those of
a row without the padding. Not covered: videos. SmolVLM's processor needs the package num2words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import isqrt
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family, TinyWords
from vlm_mhpo.models.families.frozen_tower import PIXELS, encode_images
from vlm_mhpo.models.families.internvl import NUM_TILES, TileVision
from vlm_mhpo.models.families.text import text_positions
from vlm_mhpo.types import Media

_TINY_SIDE, _TINY_TILES = 56, 2
_ENDS = ("<fake_token_around_image>", "<global-img>", "<image>", "<video>", "<end_of_utterance>")
_PLACES = tuple(f"<row_{row}_col_{column}>" for row in (1, 2) for column in (1, 2))


@dataclass(frozen=True, slots=True)
class SmolVision(TileVision):
    """How these families see.

    Attributes:
        name: how transformers begins the names of the tiny model's classes.
    """

    name: str

    def _merged(self, config: Any) -> int:
        return config.scale_factor

    def _patch(self, config: Any) -> tuple[int, int]:
        return config.vision_config.patch_size, config.vision_config.patch_size

    def _spare_vectors(self) -> int:
        return 0

    def _encode(self, model: nn.Module, learning: Sequence[nn.Module], pixels: Tensor) -> Tensor:
        def features_of(some: Tensor, **options: Any) -> SimpleNamespace:
            output = model.model.get_image_features(some[None], **options)
            return SimpleNamespace(pooler_output=torch.cat(list(output.pooler_output)))

        return encode_images(features_of, learning, pixels)

    def _modules(self, model: nn.Module) -> tuple[nn.Module, nn.Module]:
        tower = self.tower(model)
        return tower.embeddings.patch_embedding, tower.encoder.layers

    def cut(self, processor: Any, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        counts_B = (inputs["input_ids"] == processor.image_token_id).sum(dim=1) // processor.image_seq_len
        rows = zip(inputs[PIXELS], counts_B, strict=True)
        return [Media({PIXELS: tiles[:count].clone(), NUM_TILES: count[None].clone()}) for tiles, count in rows]

    def num_tokens(self, processor: Any, media: Media) -> int | None:
        # Not every processor marks the same tokens as an image's: some the names of its tiles, too.
        return None

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        given = TileVision.arguments(self, model, media, learning)
        if "mm_encoder_outputs" in given:
            image = given["mm_encoder_outputs"]["image"]
            return {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=[image.pooler_output])}}
        return {name: pixels[None] for name, pixels in given.items()}

    def tower(self, model: nn.Module) -> nn.Module:
        return model.model.vision_model

    def projectors(self, model: nn.Module) -> list[nn.Module]:
        return [model.model.connector.modality_projection]

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        # Every image is scaled to so many tiles on its longest side; a square one has the most, and the small copy.
        area, side = self._tile_area(processor), processor.image_processor.max_image_size["longest_edge"]
        if min_pixels:
            raise ModelError("images of this model are all scaled to one size: leave out model.min_pixels")
        if max_pixels < area:
            raise ModelError(f"model.max_pixels={max_pixels} is less than one tile of this model: {area} pixels")
        longest = max(1, isqrt(max_pixels // area - 1)) * side
        size = dict(processor.image_processor.size)
        processor.image_processor.size = type(processor.image_processor.size)(**size | {"longest_edge": longest})

    def pixels_per_token(self, processor: Any) -> int:
        return self._tile_area(processor) // processor.image_seq_len

    def _tile_area(self, processor: Any) -> int:
        return processor.image_processor.max_image_size["longest_edge"] ** 2

    def tiny_processor(self, tokenizer: Any) -> Any:
        import transformers

        sizes = {"size": {"longest_edge": _TINY_TILES * _TINY_SIDE}, "max_image_size": {"longest_edge": _TINY_SIDE}}
        parts = {"image_processor": getattr(transformers, f"{self.name}ImageProcessor")(**sizes)}
        if self.name == "SmolVLM":
            parts["video_processor"] = transformers.SmolVLMVideoProcessor(**sizes)
        seen = (_TINY_SIDE // 28) ** 2
        processor = getattr(transformers, f"{self.name}Processor")
        return processor(tokenizer=tokenizer, image_seq_len=seen, chat_template=tokenizer.chat_template, **parts)


def _tiny(name: str, tokenizer: Any, text: dict[str, Any]) -> Any:
    import transformers

    width = text["hidden_size"]
    vision = dict(hidden_size=width // 2, intermediate_size=width, num_hidden_layers=2, num_attention_heads=width // 32)
    return getattr(transformers, f"{name}Config")(
        text_config=text | {"model_type": "llama"},
        vision_config=vision | dict(image_size=_TINY_SIDE, patch_size=14),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=text["pad_token_id"],
        scale_factor=2,
        tie_word_embeddings=False,
    )


SMOLVLM_FAMILIES = tuple(
    Family(
        name.lower(),
        text_positions,
        SmolVision(name),
        # The first SmolVLM is an Idefics3 by its configuration.
        hub_name="idefics3|smolvlm_" if name == "Idefics3" else "smolvlm2",
        tiny_words=TinyWords((*_ENDS, *_PLACES), "<image>"),
        tiny_config=partial(_tiny, name),
    )
    for name in ("SmolVLM", "Idefics3")
)
