"""Any other image-text model of transformers: a row for each completion, and whatever inputs the model prepares itself.

Nothing here knows how such a model sees or what its layers do. A prompt keeps all tensors that its processor gave it
(`Media`, of a batch of one, unopened); the model's own `prepare_inputs_for_generation` makes arguments of them, as in
transformers' `generate`, and its own `_update_model_kwargs_for_generation` says what a token of a completion adds to
those that have an entry per token (token types, cross-attention masks). States are taken where the model hands them to
its head. So a forward has one row of one completion, and completions are sampled a prompt at a time: right before fast.

    media of a prompt     pixel_values [1, ...]   token_type_ids [1, S]     as the processor returned them
    a row                 the same                token_type_ids [1, S + T] the last T as generate would add them
    a row without image   those of a blank image, whose tokens stand behind the row with an attention mask of 0

Shape suffixes: S prompt tokens, T completion tokens, B completions of one prompt, H hidden.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.attention import cache_name
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.families.costs import Part, Stack, Work, matrices
from vlm_mhpo.models.packing import PackedRows
from vlm_mhpo.types import Media, Prompt

# What a processor returns beside media; labels would be of the prompt.
TEXT_INPUTS = ("input_ids", "attention_mask", "labels")
BLANK_SIDE = 56
PROJECTORS = ("project", "connector", "merger", "adapter", "aligner", "embed_vision", "resampler")


def states_of(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Tensor, Any]:
    """[R, S, H] states that a transformers model hands to its head, and its outputs (whose logits are no logits)."""
    seen: list[Tensor] = []

    def forward(hidden: Tensor) -> Tensor:
        seen.append(hidden)
        return hidden[..., :1]

    model.lm_head.forward = forward
    try:
        outputs = model(**inputs)
    finally:
        del model.lm_head.forward
    return seen[-1], outputs


def row_states(model: nn.Module, rows: PackedRows) -> Tensor:
    """[1, S + T, H] states of the one row of `rows`, columns of a blank image included."""
    inputs = model.prepare_inputs_for_generation(**row_inputs(model, rows), is_first_iteration=True, use_cache=False)
    return states_of(model, inputs)[0]


def row_inputs(model: nn.Module, rows: PackedRows) -> dict[str, Tensor]:
    """What generate would know once it had drawn the completion of the one row: ids, mask and media of the whole."""
    (length, added), ids_1S = rows.lengths[0], rows.input_ids_RS
    media = _cast(rows.media, model).tensors if rows.media else {}
    mask_1S = (rows.segments_RS >= 0).long()
    if blank := ids_1S.shape[1] - length - added:
        # The row has no image of its own: all media are those of the blank one behind it.
        behind = {name: _behind(value, length + added) for name, value in media.items() if _is_long(name, value, blank)}
        return {"input_ids": ids_1S, "attention_mask": mask_1S, **media, **behind}
    return {"input_ids": ids_1S, "attention_mask": mask_1S, **media, **_grown(model, media, length, added)}


def _grown(model: nn.Module, media: Mapping[str, Tensor], length: int, added: int) -> dict[str, Tensor]:
    """The media that have an entry for each of the `length` prompt tokens, with those of `added` tokens more."""
    from transformers.utils import ModelOutput

    per_token = {name: value for name, value in media.items() if _is_long(name, value, length)}
    if not per_token:
        return {}
    after = model._update_model_kwargs_for_generation(ModelOutput(), dict(per_token), is_encoder_decoder=False)
    grown = {}
    for name, value in per_token.items():
        fresh = after[name][:, length:]
        fresh = fresh if fresh.shape[1] == 1 else torch.zeros_like(value[:, :1])
        grown[name] = torch.cat([value, fresh.expand(-1, added, *value.shape[2:])], dim=1)
    return grown


def _is_long(name: str, value: Tensor, length: int) -> bool:
    """Whether an input has an entry for each of `length` tokens."""
    return value.dim() >= 2 and value.shape[:2] == (1, length) and not name.startswith("pixel")


def _behind(value: Tensor, length: int) -> Tensor:
    """An input of the blank image's tokens behind `length` tokens of text, which have zeros."""
    return pad(value, (0, 0) * (value.dim() - 2) + (length, 0))


def _cast(media: Media, model: nn.Module) -> Media:
    dtype = model.lm_head.weight.dtype
    return Media(
        {name: value.to(dtype) if value.is_floating_point() else value for name, value in media.tensors.items()}
    )


class Generation:
    """Completions of one prompt as transformers' generate makes them, a token at a time, all equally far.

    Args:
        model: of transformers.
        prompt: with its media.
        device: where the model is.
    """

    def __init__(self, model: nn.Module, prompt: Prompt, device: torch.device) -> None:
        self._model = model
        self._length = prompt.num_tokens
        self._ids = prompt.input_ids_S[None].to(device)
        media = _cast(prompt.media.to(device), model).tensors if prompt.media else {}
        self._known: dict[str, Any] = {"attention_mask": torch.ones_like(self._ids), **media}
        if "position_ids" in inspect.signature(model.forward).parameters:
            self._known["position_ids"] = model._prepare_position_ids_for_generation(self._ids, self._known)

    def prefill(self) -> Tensor:
        """[1, H] state behind the prompt."""
        return self._forward(is_first_iteration=True)

    def copy(self, num_rows: int) -> None:
        """Go on with so many completions; what only the prompt's forward reads is let go."""
        index = torch.zeros(num_rows, dtype=torch.int64, device=self._ids.device)
        grown = self._ids.shape[1] + 1
        self._known = {
            name: value
            for name, value in self._known.items()
            if not isinstance(value, Tensor)
            or name in ("attention_mask", "position_ids")
            or _is_long(name, value, grown)
            or _is_long(name, value, self._ids.shape[1])
        }
        self.keep(index)

    def keep(self, rows_B: Tensor) -> None:
        """Go on with these rows."""
        self._ids = self._ids[rows_B]
        for name, value in self._known.items():
            if isinstance(value, Tensor):
                # Positions of several axes have the axis first.
                self._known[name] = value[:, rows_B] if name == "position_ids" and value.dim() == 3 else value[rows_B]
        # As beam search does: recurrent layers know this way of taking rows alone.
        self._known[cache_name()].reorder_cache(rows_B)

    def step(self, token_B: Tensor) -> Tensor:
        """[B, H] states behind one token more of each completion."""
        self._ids = torch.cat([self._ids, token_B[:, None]], dim=1)
        return self._forward(next_sequence_length=1)

    def _forward(self, **step: Any) -> Tensor:
        inputs = self._model.prepare_inputs_for_generation(self._ids, use_cache=True, **self._known, **step)
        states, outputs = states_of(self._model, inputs)
        self._known = self._model._update_model_kwargs_for_generation(outputs, self._known, is_encoder_decoder=False)
        return states[:, -1]


@dataclass(frozen=True)
class OwnVision:
    """How such a model sees, as far as its processor and transformers tell; methods as `base.Vision` describes them.

    Attributes:
        model_type: names the model in messages.
        processor: makes the blank image; None until the model's files are read (`Family.with_processor`).
    """

    model_type: str
    processor: Any = None

    def known_by(self, family: Family, processor: Any) -> Family:
        """The family with the processor that a model's folder holds."""
        return replace(family, vision=replace(self, processor=processor))

    def cut(self, processor: Any, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        tensors = {name: value for name, value in inputs.items() if isinstance(value, Tensor)}
        return [Media({name: value for name, value in tensors.items() if name not in TEXT_INPUTS})]

    def num_tokens(self, processor: Any, media: Media) -> None:
        # Its own forward counts them.
        return None

    def join(self, parts: Sequence[Media]) -> Media:
        (only,) = parts
        return only

    def is_empty(self, media: Media) -> bool:
        return False

    def with_features(
        self, model: nn.Module, parts: Sequence[Media | None], learning: Sequence[nn.Module]
    ) -> list[Media | None]:
        return list(parts)

    def blank(self, model: nn.Module, media: Media | None) -> tuple[Tensor, Media]:
        return self._blank

    @cached_property
    def _blank(self) -> tuple[Tensor, Media]:
        """A prompt that is a white image and nothing else, by the processor."""
        from PIL import Image

        from vlm_mhpo.models.template import render

        text = render(self.processor, [{"role": "user", "content": [{"type": "image"}]}], prompts=False)
        image = Image.new("RGB", (BLANK_SIDE, BLANK_SIDE), "white")
        inputs = own_call(self.processor, text, [image])
        return inputs["input_ids"][0], self.cut(self.processor, inputs, [1])[0]

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        return dict(media.tensors)

    def knows_tower(self, model: nn.Module) -> bool:
        found = model.get_encoder("image")
        return found is not model and found is not getattr(model, "model", None)

    def tower(self, model: nn.Module) -> nn.Module:
        found = model.get_encoder("image")
        if not self.knows_tower(model):
            raise ModelError(
                f"it is not known which modules of a {self.model_type} model are its vision tower: set "
                "model.freeze_vision_tower and model.freeze_projector to false"
            )
        return found

    def projectors(self, model: nn.Module) -> list[nn.Module]:
        tower = self.tower(model)
        beside = next(module for module in model.modules() if any(child is tower for child in module.children()))
        return [child for name, child in beside.named_children() if any(word in name for word in PROJECTORS)]

    def adapt(self, model: nn.Module) -> None:
        return None

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        raise ModelError(
            f"model.min_pixels and model.max_pixels mean nothing to the processor of a {self.model_type} model: leave "
            "both out, and set the sizes in its preprocessor_config.json"
        )

    def pixels_per_token(self, processor: Any) -> int:
        # Unknown, so that nothing is recommended from it.
        return 1

    def stack(self, config: Any) -> Stack | None:
        vision = getattr(config, "vision_config", None)
        sizes = [getattr(vision, name, None) for name in ("num_hidden_layers", "hidden_size", "intermediate_size")]
        heads, patch = getattr(vision, "num_attention_heads", None), getattr(vision, "patch_size", None)
        if not all(isinstance(each, int) for each in (*sizes, heads, patch)):
            return None
        layers, width, inner = sizes
        # Patches of a token are not known: one.
        return Stack(layers, width, inner, width, heads, patch**2, 1)

    def work(self, model: nn.Module, media: Media) -> Work:
        return Work()

    def work_of_call(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Work:
        return Work()

    def parts(self, model: nn.Module) -> list[Part]:
        return [matrices("vision tower", [self.tower(model)] if self.knows_tower(model) else [], "patches")]

    def tiny_processor(self, tokenizer: Any) -> Any:
        raise ModelError(f"there is no tiny {self.model_type} model")


def own_call(processor: Any, text: str, images: Sequence[Any]) -> Mapping[str, Any]:
    """What a processor makes of one prompt with images, by its own defaults."""
    return processor(text=[text], images=[list(images)], return_tensors="pt", add_special_tokens=False)


def image_tokens(processor: Any, input_ids: Tensor) -> Tensor:
    """1 where ids are an image's, else 0; for processors that give no mm_token_type_ids."""
    ids = getattr(processor, "image_token_ids", None) or [getattr(processor, "image_token_id", None)]
    return torch.isin(input_ids, torch.tensor([index for index in ids if index is not None])).long()
