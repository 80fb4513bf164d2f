"""From a row to a prompt: chat messages, images, token ids; text can never forge structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from data_prep import DataError, Row, open_image
from vlm_mhpo.errors import PromptError
from vlm_mhpo.models.families.base import Family
from vlm_mhpo.models.families.own_path import image_tokens, own_call
from vlm_mhpo.models.loading import Codec
from vlm_mhpo.models.template import opened_response, render
from vlm_mhpo.types import Prompt

if TYPE_CHECKING:
    from PIL.Image import Image


from vlm_mhpo.config import DataConfig
from vlm_mhpo.prompts.messages import build_messages, special_tokens

# Rows that go through the processor together: enough to pay for the call, few enough that copies stay small.
BATCH = 16


class PromptBuilder:
    """Makes prompts of rows for one model; holds its processor.

    Args:
        codec, family: of the model.
        system_prompt, instruction: what the row's own words are put between.
        max_prompt_length: tokens of a prompt.
        limit: what sets that number and how to change it, for a message; {} stands for the number.
    """

    def __init__(
        self,
        codec: Codec,
        family: Family,
        *,
        system_prompt: str | None = None,
        instruction: str = "",
        max_prompt_length: int = 4096,
        limit: str = "data.max_prompt_length is {}: raise it",
    ) -> None:
        self.codec = codec
        self.family = family
        self.system_prompt = system_prompt
        self.instruction = instruction
        self.max_prompt_length, self._limit = max_prompt_length, limit
        # Not every tokenizer calls what its processor expands special.
        expanded = [getattr(codec.processor, name, None) for name in ("image_token", "video_token")]
        known = [token for token in expanded if token in codec.tokenizer.get_added_vocab()]
        self.special_tokens = tuple(dict.fromkeys([*special_tokens(codec), *known]))
        self.opens = opened_response(codec.processor)

    @property
    def shows_images(self) -> bool:
        """Whether its model sees images."""
        return self.family.has_vision

    @property
    def settings(self) -> tuple[Any, ...]:
        """What decides its prompts beside the codec, as plain values."""
        family = self.family.model_type, self.family.has_vision
        return (*family, self.system_prompt, self.instruction, self.max_prompt_length, self.special_tokens)

    def __call__(self, row: Row) -> Prompt:
        """The prompt of `row`.

        Raises:
            PromptError: the row is too long, has an image that cannot be read or that the model cannot take, or its
                image tokens do not match its images; names the row.
        """
        return self.build([row])[0]

    def build(self, rows: Sequence[Row]) -> list[Prompt]:
        """The prompts of several rows, as `__call__` makes them; the processor is fastest with many at once."""
        prompts: list[Prompt] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            seen = iter(self._with_images([row for row in batch if row.images]))
            prompts += [next(seen) if row.images else self._text_only(row) for row in batch]
        for prompt in prompts:
            if prompt.num_tokens > self.max_prompt_length:
                raise OverlongPrompt(
                    f"row {prompt.id}: the prompt has {prompt.num_tokens} tokens, "
                    f"{self._limit.format(self.max_prompt_length)} or lower model.max_pixels"
                )
        return prompts

    def _messages(self, row: Row) -> list[dict]:
        return build_messages(
            row,
            system_prompt=self.system_prompt,
            instruction=self.instruction,
            special_tokens=self.special_tokens,
        )

    def _text_only(self, row: Row) -> Prompt:
        messages = self._messages(row)
        plain = [{**message, "content": "".join(part["text"] for part in message["content"])} for message in messages]
        text = render(self.codec.processor, plain)
        ids = self.codec.tokenizer(text, add_special_tokens=False)["input_ids"]
        input_ids_S = torch.tensor(ids, dtype=torch.int64)
        return Prompt(row, text, input_ids_S, torch.zeros_like(input_ids_S), opens=self.opens)

    def _with_images(self, rows: Sequence[Row]) -> list[Prompt]:
        if not rows:
            return []
        images = [self._open(row) for row in rows]
        if self.family.own_inputs and len(rows) > 1:
            return [prompt for row in rows for prompt in self._with_images([row])]
        texts = [render(self.codec.processor, self._messages(row)) for row in rows]
        for row, text in zip(rows, texts, strict=True):
            # Before the processor sees them: not every one refuses.
            if not self.family.own_inputs and text.count(self.codec.processor.image_token) != len(row.images):
                raise PromptError(f"row {row.id}: the chat template does not place one image token per image")
        try:
            inputs = self._processed(texts, images)
        except ValueError as error:
            if len(rows) > 1:
                # Which one it was shows when each goes alone.
                return [prompt for row in rows for prompt in self._with_images([row])]
            raise PromptError(f"row {rows[0].id}: {self._refusal(texts[0], error)}") from error
        return self._cut(rows, texts, inputs)

    def _processed(self, texts: list[str], images: list[list[Image]]) -> Mapping[str, torch.Tensor]:
        """What the processor returns."""
        if self.family.own_inputs:
            return own_call(self.codec.processor, texts[0], images[0])
        return self.codec.processor(
            text=texts,
            images=images,
            padding=True,
            padding_side="right",
            return_tensors="pt",
            return_mm_token_type_ids=True,
            add_special_tokens=False,
        )

    def _refusal(self, text: str, error: ValueError) -> str:
        """Why the processor refused a row: its text, or an image."""
        try:
            self.codec.tokenizer([text], padding=True, add_special_tokens=False)
        except ValueError as problem:
            return f"the tokenizer refused the text: {problem}"
        # Image processors refuse aspect ratios above 200 and similar shapes.
        return f"the image processor refused an image: {error}"

    def _open(self, row: Row) -> list[Image]:
        if not self.family.has_vision:
            raise PromptError(
                f"row {row.id}: it has {len(row.images)} images and a {self.family.model_type} model sees none"
            )
        try:
            return [open_image(image) for image in row.images]
        except DataError as error:
            raise PromptError(f"row {row.id}: {error}") from error

    def _cut(self, rows: Sequence[Row], texts: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> list[Prompt]:
        """The prompts of a batch of processor outputs; copies, because a view would keep (and send) the whole batch."""
        media = self.family.vision.cut(self.codec.processor, inputs, [len(row.images) for row in rows])
        types_BS = inputs.get("mm_token_type_ids")
        if types_BS is None:
            types_BS = image_tokens(self.codec.processor, inputs["input_ids"])
        prompts = []
        for index, (row, text) in enumerate(zip(rows, texts, strict=True)):
            length = int(inputs["attention_mask"][index].sum())
            prompt = Prompt(
                row=row,
                text=text,
                input_ids_S=inputs["input_ids"][index, :length].clone(),
                token_types_S=types_BS[index, :length].to(torch.int64, copy=True),
                media=media[index],
                opens=self.opens,
            )
            expected = self.family.vision.num_tokens(self.codec.processor, prompt.media)
            if expected is not None and prompt.num_image_tokens != expected:
                raise PromptError(
                    f"row {row.id}: {prompt.num_image_tokens} image tokens for images of {expected} tokens; the chat "
                    "template does not place one image token per image"
                )
            prompts.append(prompt)
        return prompts


class OverlongPrompt(PromptError):
    """The prompt does not fit its limit; callers may filter it."""


def prompt_builder(config: DataConfig, codec: Codec, family: Family) -> PromptBuilder:
    """The prompt of a configuration, the same for warm start, training and evaluation."""
    return PromptBuilder(
        codec,
        family,
        system_prompt=config.system_prompt,
        instruction=config.instruction,
        max_prompt_length=config.max_prompt_length,
    )
