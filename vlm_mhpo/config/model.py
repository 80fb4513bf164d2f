"""Which policy is trained and how it is held in memory."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from vlm_mhpo.config.base import FIXED, FREE, PLACE, Section


class LoraConfig(Section):
    """Low-rank adapters (peft): the model's own weights stay as they are, and `r` columns beside a matrix learn."""

    r: PositiveInt = Field(16, description="Rank of the adapters.")
    alpha: PositiveFloat | None = Field(
        None,
        description="What an adapter adds is scaled by alpha / r (by alpha / sqrt(r) with use_rslora); null = 2 r.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="Share of an adapter's inputs that a forward of training drops; above 0 the ratio of a token is "
        "not 1 although no weight has moved.",
    )
    target_modules: str | list[str] = Field(
        "language_model",
        description="Linear layers with adapters: `language_model`, `all` (vision tower and projector, too), names "
        "such as [q_proj, v_proj], or a regular expression of whole names.",
    )
    exclude_modules: str | list[str] | None = Field(None, description="Names, or a regular expression, of exceptions.")
    init: Literal["default", "gaussian"] = Field(
        "default", description="How the first matrix of an adapter is drawn; the second begins at 0."
    )
    use_rslora: bool = Field(False, description="Scale by alpha / sqrt(r).")
    use_dora: bool = Field(False, description="Learn the length of a matrix's columns apart from their direction.")


class ModelConfig(Section):
    """Which policy is trained and how it is held in memory."""

    path: str = Field(
        description="Local folder or hub name of a vision-language model (docs/families.md) or text causal model, or "
        "of a peft adapter of one: with model.lora it learns on, without it is merged first.",
        json_schema_extra=PLACE,
    )
    revision: str | None = Field(None, description="Hub commit hash; pins what is downloaded.", json_schema_extra=PLACE)
    dtype: Literal["float32", "bfloat16"] = Field(
        "bfloat16", description="Type of the weights in forward passes.", json_schema_extra=FIXED
    )
    attn_implementation: Literal["sdpa", "eager"] = Field("sdpa", description="transformers attention implementation.")
    freeze_vision_tower: bool = Field(False, description="Do not train the vision encoder.", json_schema_extra=FIXED)
    freeze_projector: bool = Field(
        False, description="Do not train the vision-language merger.", json_schema_extra=FIXED
    )
    lora: LoraConfig | None = Field(
        None,
        description="Train low-rank adapters in place of the weights; null = train the weights.",
        json_schema_extra=FIXED,
    )
    quantization: Literal["nf4", "int8"] | None = Field(
        None,
        description="Hold the matrices of the language model in 4 or 8 bits below model.lora (bitsandbytes); null = in "
        "model.dtype.",
        json_schema_extra=FIXED,
    )
    gradient_checkpointing: bool = Field(
        False, description="Recompute activations in backward: less memory, slower.", json_schema_extra=FREE
    )
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
    def _quantised_weights_do_not_learn(self) -> ModelConfig:
        if self.quantization and not self.lora:
            raise ValueError(
                f"model.quantization={self.quantization} holds weights that cannot learn: set model.lora, or "
                "model.quantization=null"
            )
        return self

    @model_validator(mode="after")
    def _pixels_in_order(self) -> ModelConfig:
        if self.min_pixels and self.max_pixels and self.min_pixels > self.max_pixels:
            raise ValueError(
                f"model.min_pixels={self.min_pixels} is above model.max_pixels={self.max_pixels}: swap them"
            )
        return self
