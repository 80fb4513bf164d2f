"""The module that DeepSpeed wraps: packed rows in, log-probs and entropies of the sampled tokens out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlm_mhpo.models.adapters import save_adapter
from vlm_mhpo.models.attention import SPLIT_WIDTH, no_mask, segments_of, takes_masks
from vlm_mhpo.models.families.base import Family, tower_is_frozen, vision_weights
from vlm_mhpo.models.families.own_path import row_states
from vlm_mhpo.models.logprobs import token_log_probs
from vlm_mhpo.models.packing import PackedRows
from vlm_mhpo.models.recurrent import forks_of
from vlm_mhpo.models.weights import Weights
from vlm_mhpo.types import Media, Prompt


class Policy(nn.Module):
    """A causal language model with or without vision, seen as a function of packed rows.

    Attributes:
        model: the transformers model; sampling and export use it directly.
        family: what is particular to its architecture.
        banned_V: [V] bool, tokens outside the policy's vocabulary.
        vision_frozen: image features can be computed once, since the vision tower does not learn.
        weights: what its folder held, and under which names it is saved; None if it came from no folder.
        base: folder or hub name of these weights, and its commit if one was named.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        banned_V: Tensor,
        weights: Weights | None = None,
        base: tuple[str, str | None] = ("", None),
    ) -> None:
        super().__init__()
        self.model = model
        self.family = family
        # Not a buffer: DeepSpeed would cast or shard it, and it is no weight.
        self.banned_V = banned_V
        self.weights = weights
        self.base = base
        # Fixed here: a reference policy is frozen as a whole later and must read what the trained one reads.
        self.vision_frozen = tower_is_frozen(model, family)
        self.trains_projectors = self.vision_frozen and any(w.requires_grad for w in vision_weights(model, family)[1])

    def forward(
        self,
        rows: PackedRows,
        *,
        temperature: float,
        chunk_size: int,
        with_entropy: bool = True,
        entropy_learns: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Log-probs and entropies, [N] float32 each, in the order of `rows.target_N`; see `token_log_probs`."""
        width = rows.input_ids_RS.shape[1]
        hidden_RSH = self.states(rows)
        hidden_NH = hidden_RSH[:, :width].flatten(0, 1)[rows.predictor_N]
        # A column that was added for a blank image must be part of the graph although nothing looks at it.
        hidden_NH = hidden_NH + 0.0 * hidden_RSH[:, width:].sum()
        return token_log_probs(
            hidden_NH,
            rows.target_N,
            self.model.lm_head,
            self.banned_V.to(hidden_NH.device),
            temperature=temperature,
            chunk_size=chunk_size,
            with_entropy=with_entropy,
            entropy_learns=entropy_learns,
        )

    def states(self, rows: PackedRows) -> Tensor:
        """[R, S, H] states that the head reads; behind those of the rows the columns of a blank image, if any."""
        if self.family.has_vision and self.lacks_image(rows.media):
            rows = self.with_blank_image(rows)
        if self.family.own_inputs:
            return row_states(self.model, rows)
        return self.model.model(**self.inputs(rows)).last_hidden_state

    def inputs(self, rows: PackedRows) -> dict[str, Any]:
        """Keyword arguments of the transformers model without its head."""
        positions = rows.positions_ARS if rows.positions_ARS.shape[0] > 1 else rows.positions_ARS[0]
        inputs = {"input_ids": rows.input_ids_RS, "position_ids": positions, "use_cache": False}
        return inputs | self.visibility(rows) | self.media_inputs(rows.media)

    def sight_masks(self, input_ids_RS: Tensor, segments_RS: Tensor, positions_RS: Tensor) -> dict[str, Any]:
        """Keyword arguments of the transformers model of a family whose layers differ in what they see."""
        masks = self.family.sight.masks(self.model.config, input_ids_RS, segments_RS, positions_RS)
        by_kind = isinstance(masks, dict)
        return {
            "attention_mask": {k: self._finished(m) for k, m in masks.items()} if by_kind else self._finished(masks)
        }

    @property
    def _is_eager(self) -> bool:
        return self.model.config.get_text_config()._attn_implementation.endswith("eager")

    def _finished(self, mask: Tensor) -> Tensor:
        """A mask as attention takes it: eager attention adds it, sdpa takes the booleans."""
        dtype = self.model.lm_head.weight.dtype
        if not self._is_eager:
            return mask
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)

    def visibility(self, rows: PackedRows) -> dict[str, Any]:
        """Keyword arguments of the transformers model that say which token sees which: segments, or a mask."""
        if not self.family.shares_prompt:
            # Rows of one completion, of which the model itself knows what sees what.
            return {"attention_mask": (rows.segments_RS >= 0).long()}
        if self.family.sight:
            return self.sight_masks(rows.input_ids_RS, rows.segments_RS, rows.positions_ARS[0])
        weight, width = self.model.lm_head.weight, rows.input_ids_RS.shape[1]
        forks = {"forks": forks_of(rows.lengths, width, rows.input_ids_RS.device)} if self.family.recurrent else {}
        if not takes_masks(self.model) or (not self._is_eager and width >= SPLIT_WIDTH):
            segments = segments_of(rows.lengths, like=weight, width=width)
            return {"attention_mask": no_mask(weight), "segments": segments} | forks
        return {"attention_mask": self._finished(rows.allowed_R1SS)} | forks

    def media_inputs(self, media: Media | None) -> dict[str, Any]:
        """Keyword arguments of the transformers model for images; none without any."""
        return self.family.vision.arguments(self.model, media, self.learning_projectors) if media else {}

    @property
    def has_adapters(self) -> bool:
        """Adapters learn, and its own weights do not (`model.lora`)."""
        return hasattr(self.model, "peft_config")

    def save(self, folder: Path) -> None:
        """Write the adapters, or the weights and settings without them, into a folder; they must be whole (ZeRO-3)."""
        if self.has_adapters:
            save_adapter(self.model, folder, *self.base)
        else:
            self.weights.save(self.model, folder)

    @property
    def recomputes_activations(self) -> bool:
        """Whether backward makes activations again in place of keeping them (`model.gradient_checkpointing`)."""
        # Transformers 6 will know the first name only.
        name = "is_activation_checkpointing"
        return getattr(self.model, name if hasattr(type(self.model), name) else "is_gradient_checkpointing")

    @property
    def learning_projectors(self) -> list[nn.Module]:
        """The projectors that features of a frozen tower still have to go through."""
        return self.family.vision.projectors(self.model) if self.trains_projectors else []

    @torch.no_grad()
    def with_image_features(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts with features of the frozen tower, on the CPU, in the place of pixels; unchanged if it learns.

        One forward of the tower for all prompts; the weights must be whole (ZeRO-3).
        """
        if not self.vision_frozen:
            return list(prompts)
        media = [prompt.media for prompt in prompts]
        features = self.family.vision.with_features(self.model, media, self.learning_projectors)
        return [replace(prompt, media=each) for prompt, each in zip(prompts, features, strict=True)]

    def lacks_image(self, media: Media | None) -> bool:
        """A forward would leave out vision modules that others run with gradient (or gather, under ZeRO-3)."""
        return media is None or (self.trains_projectors and self.family.vision.is_empty(media))

    def with_blank_image(self, rows: PackedRows) -> PackedRows:
        """Rows without an image plus columns that hold the tokens of a blank one, which no other token sees.

        A rank whose micro-batch has no image must run the same modules in the same order as the others: they wait for
        its vision gradients (ZeRO-2) and for its share of the vision weights (ZeRO-3, also without gradients).
        """
        ids_n, media = self.family.vision.blank(self.model, rows.media)
        more = (0, len(ids_n))
        input_ids_RS = nn.functional.pad(rows.input_ids_RS, more)
        input_ids_RS[0, -len(ids_n) :] = ids_n
        return replace(
            rows,
            input_ids_RS=input_ids_RS,
            positions_ARS=nn.functional.pad(rows.positions_ARS, more),
            segments_RS=nn.functional.pad(rows.segments_RS, more, value=-1),
            media=media.to(input_ids_RS.device),
        )
