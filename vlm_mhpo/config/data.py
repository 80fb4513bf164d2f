"""Rows and the prompt that is built from each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from vlm_mhpo.config.base import FREE, PLACE, Section


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
        None, description="Folder that relative image paths start from (default: the file's).", json_schema_extra=PLACE
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
