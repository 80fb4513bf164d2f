"""Qwen2-VL, Qwen2.5-VL and Qwen3-VL: images as one list of patches with a grid, positions on three axes.

Media hold the patches of all images, one behind the other, and how they lie: [images, 3] patches in time, height and
width. Tokens merge squares of patches.

To the model a video is an image with several grid rows in time: its tokens stand as image tokens, its patches among
those of the images, and one forward of the tower sees both. Only positions tell them apart, by the seconds that a grid
row stands for. So whatever holds for images (blank ones, cached features, costs) holds for videos.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.base import VISION_TOKENS, WHITE_IS_ZERO, Family
from vlm_mhpo.models.families.costs import Part, Stack, Work, matrices, num_weights
from vlm_mhpo.models.families.frozen_tower import (
    FEATURES,
    PIXELS,
    KeptFeatures,
    distinct,
    encode_images,
    encoder_output,
)
from vlm_mhpo.models.families.patch_embedding import embed_patches_by_product
from vlm_mhpo.models.families.tower_attention import attend_by_length
from vlm_mhpo.types import Media, Prompt

# [patches, patch_dim] float32; [images, 3] int64; [I, K, D] of a frozen tower in the place of pixels.
GRID = "image_grid_thw"
# [images] float32, seconds of a grid row; 0 for an image. Not there where there is no video.
SECONDS = "seconds_per_grid"


def rope_index_positions(model: nn.Module, prompt: Prompt) -> Tensor:
    """[3, S]: time, height and width positions, as the model's own `get_rope_index` defines them."""
    if prompt.media is None or GRID not in prompt.media.tensors:
        return torch.arange(prompt.num_tokens).expand(3, -1)
    grid = prompt.media.tensors[GRID]
    seconds = prompt.media.tensors.get(SECONDS, torch.zeros(len(grid)))
    in_time = seconds > 0
    videos = {"video_grid_thw": grid[in_time], "second_per_grid_ts": seconds[in_time]} if in_time.any() else {}
    positions, _ = model.model.get_rope_index(
        prompt.input_ids_S[None],
        mm_token_type_ids=prompt.token_types_S[None],
        image_grid_thw=grid[~in_time],
        **videos,
    )
    return positions[:, 0].to("cpu", torch.int64)


@dataclass(frozen=True, slots=True)
class QwenVision(KeptFeatures):
    """How these families see; methods as `base.Vision` describes them.

    Attributes:
        projector_names: of the projectors inside the tower.
        processor_class, video_class, patch_size, image_class: of the tiny processor.
    """

    projector_names: tuple[str, ...]
    processor_class: str
    video_class: str = "Qwen2VLVideoProcessor"
    patch_size: int = 14
    image_class: str = "Qwen2VLImageProcessor"

    def cut(self, processor: Any, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        grids = inputs[GRID].split(list(num_images))
        pixels = inputs[PIXELS].split([_num_patches(grid) for grid in grids])
        return [Media({PIXELS: some.clone(), GRID: grid.clone()}) for some, grid in zip(pixels, grids, strict=True)]

    @property
    def sees_videos(self) -> bool:
        return True

    def cut_clips(self, inputs: Mapping[str, Tensor], kinds: Sequence[str]) -> Media:
        parts: dict[str, Any] = {}
        for kind, pixels, grids in (
            ("image", inputs.get(PIXELS), inputs.get(GRID)),
            ("video", inputs.get("pixel_values_videos"), inputs.get("video_grid_thw")),
        ):
            grids = [] if grids is None else grids.split(1)
            pieces = pixels.split([_num_patches(grid) for grid in grids]) if grids else []
            seconds = torch.as_tensor(inputs.get("second_per_grid_ts", [1.0] * len(grids)), dtype=torch.float32)
            seconds = seconds if kind == "video" else torch.zeros(len(grids))
            parts[kind] = zip(pieces, grids, seconds.split(1), strict=True)
        pixels, grids, seconds = zip(*(next(parts[kind]) for kind in kinds), strict=True)
        return Media({PIXELS: torch.cat(pixels), GRID: torch.cat(grids), SECONDS: torch.cat(seconds)})

    def fit(self, processor: Any, image: Any) -> Any:
        from qwen_vl_utils import vision_process as rules

        images = processor.image_processor
        limits = {"min_pixels": images.size["shortest_edge"], "max_pixels": images.size["longest_edge"]}
        if images.merge_size != rules.SPATIAL_MERGE_SIZE:
            return image
        try:
            return rules.fetch_image({"image": image, **limits}, image_patch_size=images.patch_size)
        except ValueError:
            return image  # too thin for that rule: the processor's own takes it, or says why not

    def num_tokens(self, processor: Any, media: Media) -> int:
        return _num_patches(media.tensors[GRID]) // processor.image_processor.merge_size**2

    def features_of(self, model: nn.Module, shown: Sequence[Media], learning: Sequence[nn.Module]) -> Sequence[Tensor]:
        features = iter(self._features_of_images(model, self.join(shown).tensors, learning))
        return [torch.cat([next(features) for _ in part.tensors[GRID]]) for part in shown]

    def _features_of_images(
        self, model: nn.Module, joined: Mapping[str, Tensor], learning: Sequence[nn.Module]
    ) -> list[Tensor]:
        """[I, K, D] of each image on the CPU; one that repeats passes through the tower once."""
        tower, device, grid = self.tower(model), model.lm_head.weight.device, joined[GRID]
        images = joined[PIXELS].split(grid.prod(dim=1).tolist())
        firsts, which = distinct(images, grid.tolist())
        pixels = torch.cat([images[place] for place in firsts]).to(device, tower.dtype)
        features_IKD = encode_images(tower, learning, pixels, grid_thw=grid[firsts].to(device)).cpu()
        pieces = features_IKD.split((grid[firsts].prod(dim=1) // _patches_per_token(model.config)).tolist())
        return [pieces[index] for index in which]

    def blank(self, model: nn.Module, media: Media | None) -> tuple[Tensor, Media]:
        ids = torch.tensor([model.config.image_token_id])
        if media is not None and FEATURES in media.tensors:
            features_IKD = media.tensors[FEATURES]
            return ids, Media({FEATURES: features_IKD.new_zeros(1, *features_IKD.shape[1:])})
        vision = model.config.vision_config
        merge = vision.spatial_merge_size
        patch_dim = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(merge * merge, patch_dim, dtype=next(model.parameters()).dtype)
        return ids, Media({PIXELS: pixels, GRID: torch.tensor([[1, merge, merge]])})

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        if FEATURES in media.tensors and not self.is_empty(media):
            return encoder_output(media.tensors[FEATURES], learning, _patches_per_token(model.config))
        return {name: media.tensors[name] for name in (PIXELS, GRID)} if PIXELS in media.tensors else {}

    def tower(self, model: nn.Module) -> nn.Module:
        return model.model.visual

    def projectors(self, model: nn.Module) -> list[nn.Module]:
        parts = [getattr(model.model.visual, name) for name in self.projector_names]
        return [module for part in parts for module in (part if isinstance(part, nn.ModuleList) else [part])]

    def adapt(self, model: nn.Module) -> None:
        embed_patches_by_product(self.tower(model))
        attend_by_length(self.tower(model))

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        # Under `size`, in words that mean areas here.
        images = processor.image_processor
        size = dict(images.size)
        if min_pixels:
            size["shortest_edge"] = min_pixels
        if max_pixels:
            size["longest_edge"] = max_pixels
        if size["shortest_edge"] > size["longest_edge"]:
            raise ModelError(
                f"the processor's pixel limits would be {size['shortest_edge']} to {size['longest_edge']}: "
                "set both model.min_pixels and model.max_pixels"
            )
        images.size = type(images.size)(**size) if not isinstance(images.size, dict) else size

    def pixels_per_token(self, processor: Any) -> int:
        return (processor.image_processor.patch_size * processor.image_processor.merge_size) ** 2

    def stack(self, config: Any) -> Stack:
        vision = config.vision_config
        # Qwen2-VL names its widths otherwise.
        width = getattr(vision, "embed_dim", None) or vision.hidden_size
        inner = getattr(vision, "intermediate_size", None) or int(width * vision.mlp_ratio)
        per_token = _patches_per_token(config)
        return Stack(vision.depth, width, inner, width, vision.num_heads, per_token * vision.patch_size**2, per_token)

    def work(self, model: nn.Module, media: Media) -> Work:
        return self.work_of_call(model, (), {"grid_thw": media.tensors[GRID]})

    def work_of_call(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Work:
        vision = model.config.vision_config
        merge = vision.spatial_merge_size
        window = getattr(vision, "window_size", 0) // (merge * vision.patch_size)
        total = Work()
        for frames, height, width in kwargs.get("grid_thw", args[-1] if args else None).tolist():
            patches = height * width
            # A window holds the patches of a block of merged tokens; blocks at the right and lower edge are smaller.
            in_window = merge**4 * _sum_of_squares(height // merge, window) * _sum_of_squares(width // merge, window)
            total += Work(
                patches=frames * patches,
                image_pairs=frames * patches**2,
                window_pairs=frames * in_window,
                merged=frames * patches // merge**2,
            )
        return total

    def parts(self, model: nn.Module) -> list[Part]:
        tower, projectors, config = self.tower(model), self.projectors(model), model.config.vision_config
        in_projectors = {id(parameter) for module in projectors for parameter in module.parameters()}
        trained = {id(parameter) for parameter in tower.parameters() if parameter.requires_grad}
        tower_trained = bool(trained - in_projectors)
        embedding = tower.patch_embed.proj
        whole = set(getattr(config, "fullatt_block_indexes", range(len(tower.blocks))))
        widths = [2 * block.attn.proj.in_features for block in tower.blocks]
        attention = 2.0 if tower_trained else 0.0
        return [
            # Pixels need no gradient.
            Part("patch embedding", num_weights(embedding), "patches", float(embedding.weight.requires_grad)),
            matrices("vision blocks", [tower.blocks], "patches", passes=tower_trained),
            Part("image attention", sum(w for i, w in enumerate(widths) if i in whole), "image_pairs", attention),
            Part("window attention", sum(w for i, w in enumerate(widths) if i not in whole), "window_pairs", attention),
            matrices("projector", projectors, "merged", passes=bool(trained)),
        ]

    def tiny_processor(self, tokenizer: Any) -> Any:
        import transformers

        side = 2 * self.patch_size
        limits = {"shortest_edge": side * side, "longest_edge": side * side * 256}
        image_processor = getattr(transformers, self.image_class)(
            patch_size=self.patch_size, merge_size=2, size=limits, **WHITE_IS_ZERO
        )
        return getattr(transformers, self.processor_class)(
            image_processor=image_processor,
            tokenizer=tokenizer,
            video_processor=getattr(transformers, self.video_class)(patch_size=self.patch_size, merge_size=2),
            chat_template=tokenizer.chat_template,
        )


def _num_patches(grid: Tensor) -> int:
    return int(grid.prod(dim=1).sum())


def _patches_per_token(config: Any) -> int:
    return config.vision_config.spatial_merge_size**2


def _sum_of_squares(length: int, piece: int) -> int:
    """Squares of the lengths when `length` is cut into pieces of `piece`, added up; 0 without pieces."""
    return (length // piece) * piece**2 + (length % piece) ** 2 if piece else 0


def qwen_config(config_class: str, tokenizer: Any, text: dict[str, Any], vision: dict[str, Any], **rest: Any) -> Any:
    """A configuration with these sizes of text and vision and the ids of `tokenizer`; 2 x 2 x 2 patches per token."""
    import transformers

    names = {"image_token_id": 3, "video_token_id": 4, "vision_start_token_id": 0, "vision_end_token_id": 1}
    ids = tokenizer.convert_tokens_to_ids(list(VISION_TOKENS))
    return getattr(transformers, config_class)(
        text_config=text,
        vision_config=dict(patch_size=14, spatial_merge_size=2, temporal_patch_size=2) | vision,
        **{name: ids[index] for name, index in names.items()},
        **rest,
    )


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]}


def tiny_config(
    config_class: str, vision_of: Callable[[int], dict[str, Any]], tokenizer: Any, text: dict[str, Any], **more: Any
) -> Any:
    """A tiny configuration: `vision_of` the text's width, and `more` of the text."""
    width = text["hidden_size"]
    vision = dict(depth=2, num_heads=width // 32) | vision_of(width)
    return qwen_config(
        config_class, tokenizer, text | dict(rope_parameters=ROPE) | more, vision, tie_word_embeddings=False
    )


def half_width(width: int, **more: Any) -> dict[str, Any]:
    """A vision tower of half the text's width."""
    return dict(hidden_size=width // 2, intermediate_size=width, out_hidden_size=width, **more)


_TINY_QWEN2 = partial(tiny_config, "Qwen2VLConfig", lambda w: dict(embed_dim=w // 2, hidden_size=w, mlp_ratio=2))
_TINY_QWEN2_5 = partial(
    tiny_config, "Qwen2_5_VLConfig", partial(half_width, window_size=112, fullatt_block_indexes=[1])
)
_TINY_QWEN3 = partial(
    tiny_config,
    "Qwen3VLConfig",
    partial(half_width, patch_size=16, num_position_embeddings=256, deepstack_visual_indexes=[0]),
    head_dim=32,
    rope_parameters=ROPE | {"mrope_interleaved": True},
)
_MERGER = ("merger",)
QWEN3_VISION = QwenVision((*_MERGER, "deepstack_merger_list"), "Qwen3VLProcessor", "Qwen3VLVideoProcessor", 16)
QWEN_VL_FAMILIES = (
    Family(
        "qwen2_vl",
        rope_index_positions,
        QwenVision(_MERGER, "Qwen2VLProcessor"),
        plain_layers=True,
        tiny_config=_TINY_QWEN2,
    ),
    Family(
        "qwen2_5_vl",
        rope_index_positions,
        QwenVision(_MERGER, "Qwen2_5_VLProcessor"),
        plain_layers=True,
        tiny_config=_TINY_QWEN2_5,
    ),
    Family(
        "qwen3_vl",
        rope_index_positions,
        QWEN3_VISION,
        plain_layers=True,
        # On average 1.4 to 4.3 thousand on visual mathematics, with a long tail.
        answer_tokens=8192,
        tiny_config=_TINY_QWEN3,
    ),
)
