"""From a row to a prompt: chat messages, images, token ids; text can never forge structure."""

from __future__ import annotations

import re
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
from vlm_mhpo.config.data import VideoConfig
from vlm_mhpo.prompts.messages import build_messages, special_tokens
from vlm_mhpo.prompts.videos import Clip, open_clip

# Rows that go through the processor together: enough to pay for the call, few enough that copies stay small.
BATCH = 16


class PromptBuilder:
    """Makes prompts of rows for one model; holds its processor.

    Args:
        codec, family: of the model.
        system_prompt, instruction: what the row's own words are put between.
        max_prompt_length: tokens of a prompt.
        limit: what sets that number and how to change it, for a message; {} stands for the number.
        video: which frames of videos are shown.
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
        video: VideoConfig | None = None,
    ) -> None:
        self.codec = codec
        self.family = family
        self.system_prompt = system_prompt
        self.instruction = instruction
        self.max_prompt_length, self._limit = max_prompt_length, limit
        self.video = video or VideoConfig()
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
        video = self.video.model_dump_json(exclude={"timeout"})
        return (*family, self.system_prompt, self.instruction, self.max_prompt_length, self.special_tokens, video)

    def __call__(self, row: Row) -> Prompt:
        """The prompt of `row`.

        Raises:
            PromptError: the row is too long, has an image or video that cannot be read or that the model cannot take,
                or its image tokens do not match its images; names the row.
        """
        return self.build([row])[0]

    def build(self, rows: Sequence[Row]) -> list[Prompt]:
        """The prompts of several rows, as `__call__` makes them; the processor is fastest with many at once."""
        prompts: list[Prompt] = []
        for start in range(0, len(rows), BATCH):
            batch = rows[start : start + BATCH]
            seen = iter(self._with_images([row for row in batch if row.images and not row.videos]))
            # Each video alone: its frames take more memory than the images of many rows.
            prompts += [
                self._with_videos(row) if row.videos else next(seen) if row.images else self._text_only(row)
                for row in batch
            ]
        for prompt in prompts:
            if prompt.num_tokens > self.max_prompt_length:
                raise OverlongPrompt(
                    f"row {prompt.id}: the prompt has {prompt.num_tokens} tokens, "
                    f"{self._limit.format(self.max_prompt_length)}{self._other_cure(prompt)}"
                )
        return prompts

    def _other_cure(self, prompt: Prompt) -> str:
        """What makes a prompt shorter, where a key does."""
        if prompt.row.videos:
            return " or lower data.video.fps (or max_frames), or max_pixels and min_pixels of data.video"
        has_limits = self.family.has_pixel_limits and not self.family.own_inputs
        return " or lower model.max_pixels" if prompt.row.images and has_limits else ""

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
            inputs = self._processed(texts, images=images)
        except ValueError as error:
            if len(rows) > 1:
                # Which one it was shows when each goes alone.
                return [prompt for row in rows for prompt in self._with_images([row])]
            raise PromptError(f"row {rows[0].id}: {self._refusal(texts[0], error)}") from error
        try:
            return self._cut(rows, texts, inputs)
        except ValueError as error:
            if len(rows) > 1:
                return [prompt for row in rows for prompt in self._with_images([row])]
            raise PromptError(f"row {rows[0].id}: {error}") from error

    def _with_videos(self, row: Row) -> Prompt:
        processor = self.codec.processor
        images, clips = self._open(row), self._open_clips(row)
        text = render(processor, self._messages(row))
        kinds = ["image" if token == processor.image_token else "video" for token in self._media_tokens(text)]
        if kinds.count("video") != len(clips) or kinds.count("image") != len(images):
            raise PromptError(f"row {row.id}: the chat template does not place one token per image and per video")
        # The frames are chosen and of their size already.
        options = {"do_sample_frames": False, "do_resize": False, "video_metadata": [clip.metadata for clip in clips]}
        if hasattr(processor.video_processor, "cap_pixels_per_frame"):
            options["cap_pixels_per_frame"] = True
        frames = [clip.frames_TCHW for clip in clips]
        media = {"images": images or None, "videos": frames, "videos_kwargs": options}
        try:
            inputs = self._processed([self._unwrapped(text)], **media)
            media = self.family.vision.cut_clips(inputs, kinds)
        except ValueError as error:
            raise PromptError(f"row {row.id}: the processor refused it: {error}") from error
        input_ids_S, types_S = inputs["input_ids"][0], inputs["mm_token_type_ids"][0].to(torch.int64)
        input_ids_S[types_S == 2] = processor.image_token_id
        prompt = Prompt(row, text, input_ids_S, types_S, media, self.opens)
        self._check_tokens(prompt)
        return prompt

    def _unwrapped(self, text: str) -> str:
        """Text for the processor: Qwen3-VL's puts marks around each moment, in the place of the template's pair.

        So its authors' own did, and so the model was trained; that of transformers 5.24 leaves the pair around them.
        """
        processor = self.codec.processor
        if not hasattr(processor, "vision_start_token"):
            return text
        pair = f"{processor.vision_start_token}{processor.video_token}{processor.vision_end_token}"
        return text.replace(pair, processor.video_token)

    def _media_tokens(self, text: str) -> list[str]:
        processor = self.codec.processor
        return re.findall(f"{re.escape(processor.image_token)}|{re.escape(processor.video_token)}", text)

    def _processed(self, texts: Sequence[str], **media: Any) -> Mapping[str, torch.Tensor]:
        """What the processor returns."""
        if self.family.own_inputs:
            return own_call(self.codec.processor, texts[0], media["images"][0])
        return self.codec.processor(
            text=texts,
            padding=True,
            padding_side="right",
            return_tensors="pt",
            return_mm_token_type_ids=True,
            add_special_tokens=False,
            **media,
        )

    def _open_clips(self, row: Row) -> list[Clip]:
        if not self.family.sees_videos:
            raise PromptError(
                f"row {row.id}: it has {len(row.videos)} videos and a {self.family.model_type} model sees none"
            )
        patch_size = self.codec.processor.video_processor.patch_size
        try:
            return [open_clip(video, self.video, patch_size) for video in row.videos]
        except (DataError, ValueError) as error:
            raise PromptError(f"row {row.id}: {error}") from error

    def _refusal(self, text: str, error: ValueError) -> str:
        """Why the processor refused a row: its text, or an image."""
        try:
            self.codec.tokenizer([text], padding=True, add_special_tokens=False)
        except ValueError as problem:
            return f"the tokenizer refused the text: {problem}"
        # Image processors refuse aspect ratios above 200 and similar shapes.
        return f"the image processor refused an image: {error}"

    def _open(self, row: Row) -> list[Image]:
        if row.images and not self.family.has_vision:
            raise PromptError(
                f"row {row.id}: it has {len(row.images)} images and a {self.family.model_type} model sees none"
            )
        try:
            return [self.family.fit(self.codec.processor, open_image(image)) for image in row.images]
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
            self._check_tokens(prompt)
            prompts.append(prompt)
        return prompts

    def _check_tokens(self, prompt: Prompt) -> None:
        expected = self.family.vision.num_tokens(self.codec.processor, prompt.media)
        if expected is not None and prompt.num_image_tokens != expected:
            raise PromptError(
                f"row {prompt.id}: {prompt.num_image_tokens} image tokens for images of {expected} tokens; the chat "
                "template does not place one image token per image"
            )


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
        video=config.video,
    )
