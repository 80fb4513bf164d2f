"""The module that DeepSpeed wraps: packed rows in, log-probs and entropies of the sampled tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.models.attention import SPLIT_WIDTH, no_mask, segments_of
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.families.frozen_tower import encode_images, encoder_output, projectors_of, tower_is_frozen
from vlm_mhpo.models.logprobs import token_log_probs
from vlm_mhpo.models.packing import PackedRows
from vlm_mhpo.types import Prompt


class Policy(nn.Module):
    """A causal language model with or without vision, seen as a function of packed rows.

    Attributes:
        model: the transformers model; sampling and export use it directly.
        family: what is particular to its architecture.
        banned_V: [V] bool, tokens outside the policy's vocabulary.
        vision_frozen: image features can be computed once, since the vision tower does not learn.
    """

    def __init__(self, model: nn.Module, family: Family, banned_V: Tensor) -> None:
        super().__init__()
        self.model = model
        self.family = family
        # Not a buffer: DeepSpeed would cast or shard it, and it is no weight.
        self.banned_V = banned_V
        # Fixed here: a reference policy is frozen as a whole later and must read what the trained one reads.
        self.vision_frozen = tower_is_frozen(model, family)
        self.trains_projectors = self.vision_frozen and any(
            weight.requires_grad for module in projectors_of(model, family) for weight in module.parameters()
        )

    def forward(self, rows: PackedRows, *, temperature: float, chunk_size: int) -> tuple[Tensor, Tensor]:
        """Log-probs and entropies, [N] float32 each, in the order of `rows.target_N`; see `token_log_probs`."""
        width = rows.input_ids_RS.shape[1]
        hidden_RSH = self.model.model(**self.inputs(rows)).last_hidden_state
        hidden_NH = hidden_RSH[:, :width].flatten(0, 1)[rows.predictor_N]
        # A column that was added for a blank image must be part of the graph although nothing looks at it.
        hidden_NH = hidden_NH + 0.0 * hidden_RSH[:, width:].sum()
        log_probs_N, entropy_N = token_log_probs(
            hidden_NH,
            rows.target_N,
            self.model.lm_head,
            self.banned_V.to(hidden_NH.device),
            temperature=temperature,
            chunk_size=chunk_size,
        )
        return log_probs_N, entropy_N

    def inputs(self, rows: PackedRows) -> dict[str, Any]:
        """Keyword arguments of the transformers model without its head."""
        if self.family.has_vision and self.lacks_image(rows):
            rows = self.with_blank_image(rows)
        positions = rows.positions_ARS if rows.positions_ARS.shape[0] > 1 else rows.positions_ARS[0]
        inputs = {"input_ids": rows.input_ids_RS, "position_ids": positions, "use_cache": False}
        return (
            inputs
            | self.visibility(rows)
            | self.image_inputs(rows.pixel_values, rows.image_grid_thw, rows.image_features_IKD)
        )

    def visibility(self, rows: PackedRows) -> dict[str, Any]:
        """Keyword arguments of the transformers model that say which token sees which: segments, or a mask."""
        if not self.family.shares_prompt:
            # Rows of one completion, of which the model itself knows what sees what.
            return {"attention_mask": (rows.segments_RS >= 0).long()}
        weight = self.model.lm_head.weight
        eager = self.model.config.get_text_config()._attn_implementation.endswith("eager")
        if not eager and rows.input_ids_RS.shape[1] >= SPLIT_WIDTH:
            return {"attention_mask": no_mask(weight), "segments": segments_of(rows.lengths, like=weight)}
        mask = rows.allowed_R1SS
        if eager:
            # Eager attention adds its mask; sdpa takes the booleans.
            dtype = weight.dtype
            mask = torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)
        return {"attention_mask": mask}

    def image_inputs(
        self, pixel_values: Tensor | None, grid: Tensor | None, features_IKD: Tensor | None
    ) -> dict[str, Any]:
        """Keyword arguments of the transformers model for images: features if there are any, else pixels, or none."""
        if features_IKD is not None and len(features_IKD):
            return encoder_output(features_IKD, self.learning_projectors, self.patches_per_token)
        if pixel_values is not None:
            return {"pixel_values": pixel_values, "image_grid_thw": grid}
        return {}

    @property
    def learning_projectors(self) -> list[nn.Module]:
        """The projectors that cached features still have to go through."""
        return projectors_of(self.model, self.family) if self.trains_projectors else []

    @property
    def patches_per_token(self) -> int:
        """Patches that are merged into one image token."""
        return self.model.config.vision_config.spatial_merge_size**2

    @torch.no_grad()
    def with_image_features(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts with features of the frozen tower, on the CPU, in the place of pixels; unchanged if it learns.

        One forward of the tower for all prompts; the weights must be whole (ZeRO-3).
        """
        if not self.vision_frozen or all(prompt.image_features_IKD is not None for prompt in prompts):
            return list(prompts)
        seen = [prompt for prompt in prompts if prompt.pixel_values is not None]
        pixels, grids = [prompt.pixel_values for prompt in seen], [prompt.image_grid_thw for prompt in seen]
        if not seen:
            # Prompts without images get [0, K, D] tensors, so that every rank packs the same kind of rows.
            blank, grid = self.blank_image()
            pixels, grids = [blank], [grid]
        device = self.model.lm_head.weight.device
        pixel_values, grid = torch.cat(pixels).to(device), torch.cat(grids).to(device)
        features_IKD = encode_images(self.model, self.learning_projectors, pixel_values, grid).cpu()
        sizes = [int(grid.prod(dim=1).sum()) // self.patches_per_token for grid in grids]
        parts = iter(features_IKD.split(sizes))
        return [
            replace(
                prompt,
                pixel_values=None,
                image_features_IKD=next(parts) if prompt.pixel_values is not None else features_IKD[:0],
            )
            for prompt in prompts
        ]

    def lacks_image(self, rows: PackedRows) -> bool:
        """The rows would leave out vision modules that other rows run with gradient (or gather, under ZeRO-3)."""
        if rows.image_features_IKD is None:
            return rows.pixel_values is None
        return self.trains_projectors and not len(rows.image_features_IKD)

    def with_blank_image(self, rows: PackedRows) -> PackedRows:
        """Rows without an image plus a column that holds one blank image token, which no other token sees.

        A rank whose micro-batch has no image must run the same modules in the same order as the others: they wait for
        its vision gradients (ZeRO-2) and for its share of the vision weights (ZeRO-3, also without gradients).
        """
        input_ids_RS = nn.functional.pad(rows.input_ids_RS, (0, 1))
        input_ids_RS[0, -1] = self.model.config.image_token_id
        rows = replace(
            rows,
            input_ids_RS=input_ids_RS,
            positions_ARS=nn.functional.pad(rows.positions_ARS, (0, 1)),
            segments_RS=nn.functional.pad(rows.segments_RS, (0, 1), value=-1),
        )
        if (features_IKD := rows.image_features_IKD) is not None:
            return replace(rows, image_features_IKD=features_IKD.new_zeros(1, *features_IKD.shape[1:]))
        pixel_values, grid = (tensor.to(input_ids_RS.device) for tensor in self.blank_image())
        return replace(rows, pixel_values=pixel_values, image_grid_thw=grid)

    def blank_image(self) -> tuple[Tensor, Tensor]:
        """Pixels and grid of an image of one token, all zeros."""
        vision = self.model.config.vision_config
        merge = vision.spatial_merge_size
        patch_dim = vision.in_channels * vision.temporal_patch_size * vision.patch_size**2
        pixels = torch.zeros(merge * merge, patch_dim, dtype=next(self.parameters()).dtype)
        return pixels, torch.tensor([[1, merge, merge]])
