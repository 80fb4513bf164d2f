"""Which policy is trained and how it is held in memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveInt, model_validator

from vlm_mhpo.config.base import Section


class ModelConfig(Section):
    """Which policy is trained and how it is held in memory."""

    path: str = Field(description="Local folder or hub name of a Qwen2-VL, Qwen2.5-VL, Qwen3-VL or text causal model.")
    revision: str | None = Field(None, description="Hub commit hash; pins what is downloaded.")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Type of the weights in forward passes.")
    attn_implementation: Literal["sdpa", "eager"] = Field("sdpa", description="transformers attention implementation.")
    freeze_vision_tower: bool = Field(False, description="Do not train the vision encoder.")
    freeze_projector: bool = Field(False, description="Do not train the vision-language merger.")
    gradient_checkpointing: bool = Field(False, description="Recompute activations in backward: less memory, slower.")
    min_pixels: PositiveInt | None = Field(None, description="Smallest image area in pixels; smaller is enlarged.")
    max_pixels: PositiveInt | None = Field(None, description="Largest image area in pixels; larger is shrunk.")

    @model_validator(mode="after")
    def _scores_are_not_rounded(self) -> ModelConfig:
        if self.attn_implementation == "eager" and self.dtype == "bfloat16":
            raise ValueError(
                "model.attn_implementation=eager rounds attention scores to bfloat16, so that the policy that is "
                "trained is not the one that samples: set it to sdpa, or model.dtype=float32"
            )
        return self

    @model_validator(mode="after")
    def _pixels_in_order(self) -> ModelConfig:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.min_pixels={self.min_pixels} is above model.max_pixels={self.max_pixels}: swap them"
            )
        return self
