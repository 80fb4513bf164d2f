"""Rows and the prompt that is built from each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vlm_mhpo.config.base import FREE, PLACE, Section


class VideoConfig(Section):
    """Which frames of a video are shown and how large, by the rules of qwen-vl-utils."""

    fps: PositiveFloat = Field(2.0, description="Frames shown for each second of a video file.")
    min_frames: int = Field(4, ge=2, description="Frames shown at least; a shorter video shows all that it has.")
    max_frames: int = Field(768, ge=2, description="Frames shown at most.")
    frames_fps: PositiveFloat = Field(
        2.0, description="Frames per second that a list of frames was taken at; all of them are shown."
    )
    min_pixels: PositiveInt | None = Field(None, description="Smallest area of a frame; null = 128 tokens.")
    max_pixels: PositiveInt | None = Field(None, description="Largest area of a frame; null = 768 tokens.")
    total_pixels: PositiveInt | None = Field(
        None,
        description="Pixels that two frames in turn (the patches of one moment) of a video may have, all moments "
        "together; null = 115,200 tokens.",
    )
    timeout: PositiveFloat = Field(
        60.0, description="Seconds that a process may take to decode one video.", json_schema_extra=PLACE
    )

    @model_validator(mode="after")
    def _in_order(self) -> VideoConfig:
        if self.min_frames > self.max_frames:
            raise ValueError(
                f"data.video.min_frames={self.min_frames} is above max_frames={self.max_frames}: swap them"
            )
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"data.video.min_pixels={self.min_pixels} is above max_pixels={self.max_pixels}: swap them"
            )
        return self


class DataConfig(Section):
    """Rows and the prompt that is built from each."""

    train: str | list[str] = Field(
        description="Row source(s): file, folder, glob, name@split, name:configuration, synthetic:FAMILY?seed=0; in a "
        "list where every source ends in :WEIGHT they are mixed in these shares.",
        json_schema_extra=PLACE,
    )
    eval: str | list[str] | None = Field(
        None, description="Held-out row source(s); null = no evaluation.", json_schema_extra=FREE
    )
    format: str = Field(
        "auto",
        description="Reader of both sources (auto, geometry3k, formalgeo7k, jsonl, ...).",
        json_schema_extra=PLACE,
    )
    columns: dict[str, str] = Field(
        default_factory=dict,
        description="Columns of both tables by our names, such as {problem: query, answer: final, images: pics}; only "
        "those that are not recognised.",
        json_schema_extra=PLACE,
    )
    answer_lists: Literal["any", "all"] | None = Field(
        None,
        description="What a list in the place of an answer means: any of its answers is right, or a response must give "
        "all; null = any where they are the same value, else such a row is refused.",
        json_schema_extra=PLACE,
    )
    ignore_columns: list[str] = Field(
        default_factory=list,
        description="Columns of both tables that are left out, such as one of images that no question shows.",
        json_schema_extra=PLACE,
    )
    on_bad_row: Literal["error", "skip"] = Field(
        "error",
        description="A training row that cannot be read stops the program, or is left out, counted and named.",
        json_schema_extra=PLACE,
    )
    max_bad_share: float = Field(
        0.01,
        ge=0,
        le=1,
        description="Share of training rows left out by on_bad_row=skip above which the run stops.",
        json_schema_extra=PLACE,
    )
    train_split: str | None = Field(
        None, description="Split of `train`, when the source has several.", json_schema_extra=PLACE
    )
    eval_split: str | None = Field(
        None, description="Split of `eval`, when the source has several.", json_schema_extra=FREE
    )
    image_root: str | None = Field(
        None,
        description="Folder that relative paths of images and videos start from (default: the file's).",
        json_schema_extra=PLACE,
    )
    max_rows: PositiveInt | None = Field(
        None, description="Use only the first rows of `train`.", json_schema_extra=PLACE
    )
    max_eval_rows: PositiveInt | None = Field(
        None, description="Use only the first rows of `eval`.", json_schema_extra=FREE
    )
    template: Literal["think_answer", "think_boxed", "boxed"] = Field(
        "think_answer", description="Response format that is asked for, rewarded (format) and read (accuracy)."
    )
    system_prompt: str | None = Field(
        None,
        description="System message where a row has none of its own; null = none (the chat template may add one).",
    )
    instruction: str = Field("", description="Text after each problem, for example how to answer.")
    video: VideoConfig = Field(default_factory=VideoConfig, description="Frames of the rows' videos.")
    max_prompt_length: PositiveInt = Field(
        4096, description="Tokens of a prompt, image tokens included.", json_schema_extra=PLACE
    )
    overlong_prompts: Literal["error", "filter"] = Field(
        "filter",
        description="A longer prompt stops the program, or is left out and counted. Never truncated.",
        json_schema_extra=PLACE,
    )
    prefetch: bool = Field(
        True,
        description="Prepare the next step's prompts (images too) in a thread while this one computes.",
        json_schema_extra=FREE,
    )
