"""Rows and the prompt that is built from each."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt

from vlm_mhpo.config.base import Section


class DataConfig(Section):
    """Rows and the prompt that is built from each."""

    train: str | list[str] = Field(
        description="Row source(s): file, folder, glob, name@split, name:configuration, synthetic:FAMILY?seed=0; in a "
        "list where every source ends in :WEIGHT they are mixed in these shares."
    )
    eval: str | list[str] | None = Field(None, description="Held-out row source(s); null = no evaluation.")
    format: str = Field("auto", description="Reader of both sources (auto, geometry3k, formalgeo7k, jsonl, ...).")
    train_split: str | None = Field(None, description="Split of `train`, when the source has several.")
    eval_split: str | None = Field(None, description="Split of `eval`, when the source has several.")
    image_root: str | None = Field(
        None, description="Folder that relative image paths start from (default: the file's)."
    )
    max_rows: PositiveInt | None = Field(None, description="Use only the first rows of `train`.")
    max_eval_rows: PositiveInt | None = Field(None, description="Use only the first rows of `eval`.")
    template: Literal["think_answer", "think_boxed", "boxed"] = Field(
        "think_answer", description="Response format that is asked for, rewarded (format) and read (accuracy)."
    )
    system_prompt: str | None = Field(None, description="System message; null = none (the chat template may add one).")
    instruction: str = Field("", description="Text after each problem, for example how to answer.")
    max_prompt_length: PositiveInt = Field(4096, description="Tokens of a prompt, image tokens included.")
    overlong_prompts: Literal["error", "filter"] = Field(
        "filter", description="A longer prompt stops the program, or is left out and counted. Never truncated."
    )
    prefetch: bool = Field(
        True, description="Prepare the next step's prompts (images too) in a thread while this one computes."
    )
