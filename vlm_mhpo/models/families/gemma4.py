"""Gemma 4: images as padded lists of patches with places, keys that layers share, and what is said of `gemma`.

Layers of the second half may read keys and values of an earlier layer of their kind, full layers have wider heads, and
every layer gets embeddings of its own of the token ids (all of which the model does by itself). In the larger models
the tokens of an image see each other both ways where layers slide. Logits have a soft cap. Not covered: videos, sound,
routed experts (26B-A4B), and the variant without an encoder (`gemma4_unified`), which the generic family takes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import Family, TinyWords
from vlm_mhpo.models.families.costs import Part, Stack, Work, matrices, num_weights
from vlm_mhpo.models.families.frozen_tower import FEATURES, PIXELS, KeptFeatures
from vlm_mhpo.models.families.sight import Sight
from vlm_mhpo.models.families.text import text_positions
from vlm_mhpo.types import Media

# [images, patches, D] float32; [images, patches, 2] int64 places, -1 on padding; [tokens, 1, D] of a frozen tower.
PLACES = "image_position_ids"
TOKENS = {
    "boi_token": "<|image>",
    "eoi_token": "<image|>",
    "image_token": "<|image|>",
    "audio_token": "<|audio|>",
    "boa_token": "<|audio>",
    "eoa_token": "<audio|>",
}


@dataclass(frozen=True, slots=True)
class PlacedVision(KeptFeatures):
    """How this family sees; methods as `base.Vision` describes them."""

    seen_once: ClassVar[tuple[str, ...]] = (PIXELS, PLACES)

    def cut(self, processor: Any, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        pieces = (inputs[name].split(list(num_images)) for name in (PIXELS, PLACES))
        return [Media({PIXELS: some.clone(), PLACES: places.clone()}) for some, places in zip(*pieces, strict=True)]

    def num_tokens(self, processor: Any, media: Media) -> int:
        return _num_patches(media) // processor.image_processor.pooling_kernel_size**2

    def features_of(self, model: nn.Module, shown: Sequence[Media], learning: Sequence[nn.Module]) -> Sequence[Tensor]:
        joined = self.join(shown).to(model.lm_head.weight.device).tensors
        with torch.no_grad():
            features_ID = self.tower(model)(joined[PIXELS], pixel_position_ids=joined[PLACES]).last_hidden_state
            if not learning:
                features_ID = model.model.embed_vision(inputs_embeds=features_ID)
        per_token = model.config.vision_config.pooling_kernel_size**2
        return features_ID[:, None].cpu().split([_num_patches(part) // per_token for part in shown])

    def blank(self, model: nn.Module, media: Media | None) -> tuple[Tensor, Media]:
        ids = torch.tensor([model.config.image_token_id])
        if media is not None and FEATURES in media.tensors:
            features_IKD = media.tensors[FEATURES]
            return ids, Media({FEATURES: features_IKD.new_zeros(1, *features_IKD.shape[1:])})
        # As many patches as are pooled into one token.
        vision = model.config.vision_config
        side = torch.arange(vision.pooling_kernel_size)
        pixels = torch.zeros(1, len(side) ** 2, 3 * vision.patch_size**2, dtype=next(model.parameters()).dtype)
        return ids, Media({PIXELS: pixels, PLACES: torch.cartesian_prod(side, side)[None]})

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        if FEATURES in media.tensors and not self.is_empty(media):
            features_ID = media.tensors[FEATURES][:, 0]
            for projector in learning:
                features_ID = projector(inputs_embeds=features_ID)
            return {"mm_encoder_outputs": {"image": SimpleNamespace(pooler_output=(features_ID,))}}
        return {name: media.tensors[name] for name in (PIXELS, PLACES)} if PIXELS in media.tensors else {}

    def tower(self, model: nn.Module) -> nn.Module:
        return model.model.vision_tower

    def projectors(self, model: nn.Module) -> list[nn.Module]:
        return [model.model.embed_vision]

    def adapt(self, model: nn.Module) -> None:
        pass

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        raise ModelError(
            "an image of a gemma4 model is fitted to max_soft_tokens of its preprocessor_config.json (70, 140, 280, "
            "560 or 1120): set that, and leave out model.min_pixels and model.max_pixels"
        )

    def pixels_per_token(self, processor: Any) -> int:
        return (processor.image_processor.patch_size * processor.image_processor.pooling_kernel_size) ** 2

    def stack(self, config: Any) -> Stack:
        vision, per_token = config.vision_config, config.vision_config.pooling_kernel_size**2
        width, heads, pixels = vision.hidden_size, vision.num_attention_heads, per_token * vision.patch_size**2
        return Stack(vision.num_hidden_layers, width, vision.intermediate_size, width, heads, pixels, per_token)

    def work(self, model: nn.Module, media: Media) -> Work:
        return self.work_of_call(model, (), {PIXELS: media.tensors[PIXELS]})

    def work_of_call(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Work:
        # Padding is computed, too.
        images, patches = kwargs.get(PIXELS, args[0] if args else None).shape[:2]
        merged = images * patches // model.config.vision_config.pooling_kernel_size**2
        return Work(patches=images * patches, image_pairs=images * patches**2, merged=merged)

    def parts(self, model: nn.Module) -> list[Part]:
        tower, projectors = self.tower(model), self.projectors(model)
        embedding, layers = tower.patch_embedder.input_proj, tower.encoder.layers
        trained = any(weight.requires_grad for weight in tower.parameters())
        passes = trained or any(weight.requires_grad for module in projectors for weight in module.parameters())
        vision = model.config.vision_config
        attention = 2 * vision.num_attention_heads * vision.head_dim * len(layers)
        return [
            # Pixels need no gradient.
            Part("patch embedding", num_weights(embedding), "patches", float(embedding.weight.requires_grad)),
            matrices("vision blocks", [layers], "patches", passes=trained),
            Part("image attention", attention, "image_pairs", 2.0 if trained else 0.0),
            matrices("projector", projectors, "merged", passes=passes),
        ]

    def tiny_processor(self, tokenizer: Any) -> Any:
        import transformers

        return transformers.Gemma4Processor(
            feature_extractor=transformers.Gemma4AudioFeatureExtractor(),
            image_processor=transformers.Gemma4ImageProcessor(patch_size=_PATCH, max_soft_tokens=70),
            tokenizer=tokenizer,
            video_processor=transformers.Gemma4VideoProcessor(),
            chat_template=tokenizer.chat_template,
        )


def _num_patches(media: Media) -> int:
    return int((media.tensors[PLACES] >= 0).all(dim=-1).sum())


# The smallest image has 70 tokens of 3 x 3 patches.
_PATCH = 8


def _tiny_gemma4(tokenizer: Any, text: dict[str, Any]) -> Any:
    import transformers

    ids, width = tokenizer.convert_tokens_to_ids, text["hidden_size"]
    heads = width // 32
    vision = dict(hidden_size=width // 2, intermediate_size=width, num_hidden_layers=1, num_attention_heads=heads)
    own = dict(
        num_hidden_layers=4,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=2,
        sliding_window=24,
        head_dim=32,
        global_head_dim=64,
        hidden_size_per_layer_input=8,
        vocab_size_per_layer_input=len(tokenizer),
        final_logit_softcapping=4.0,
    )
    more = dict(num_key_value_heads=heads, head_dim=16, patch_size=_PATCH, position_embedding_size=128)
    return transformers.Gemma4Config(
        text_config=text | own,
        vision_config=vision | more,
        audio_config=None,
        image_token_id=ids(TOKENS["image_token"]),
        video_token_id=ids("<|video|>"),
        audio_token_id=ids(TOKENS["audio_token"]),
        boi_token_id=ids(TOKENS["boi_token"]),
        eoi_token_id=ids(TOKENS["eoi_token"]),
        boa_token_id=ids(TOKENS["boa_token"]),
        eoa_token_index=ids(TOKENS["eoa_token"]),
        tie_word_embeddings=False,
    )


GEMMA4_FAMILIES = (
    Family(
        "gemma4",
        text_positions,
        PlacedVision(),
        sight=Sight(image_ahead="sliding"),
        has_pixel_limits=False,
        tiny_words=TinyWords((*TOKENS.values(), "<|video|>"), TOKENS["image_token"], TOKENS),
        tiny_config=_tiny_gemma4,
    ),
)
