"""Load a policy and its processor by path or hub name."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models import attention
from vlm_mhpo.models.families.base import FAMILIES, Family, banned_tokens, family_for, freeze, vision_tower
from vlm_mhpo.models.families.patch_embedding import embed_patches_by_product
from vlm_mhpo.models.policy import Policy

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True)
class Codec:
    """The processor of a model with what prompts and sampling need of it.

    Attributes:
        processor: transformers processor (vision families) or tokenizer (text families).
        tokenizer: the tokenizer.
        end_ids: tokens that end a completion.
        pad_id: fills rows; always masked.
        max_context: positions that the model was built for.
    """

    processor: Any
    tokenizer: Any
    end_ids: tuple[int, ...]
    pad_id: int
    max_context: int


def load_policy(
    path: str,
    *,
    revision: str | None = None,
    dtype: str = "float32",
    attn_implementation: str = "sdpa",
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    freeze_vision_tower: bool = False,
    freeze_projector: bool = False,
    gradient_checkpointing: bool = False,
    zero3_settings: dict[str, Any] | None = None,
) -> tuple[Policy, Codec]:
    """A policy on the CPU and its codec (processor and tokens); arguments as in `config.ModelConfig`.

    With `zero3_settings` (DeepSpeed's configuration) of stage 3 each rank holds only its share from the start.
    Weights are read from safetensors only and no code of the model's folder is run.

    Raises:
        ModelError: nothing loadable at `path`, a `revision` that is no commit hash, or an architecture that is not in
            `families.FAMILIES`.
    """
    import transformers
    from safetensors import SafetensorError
    from transformers.integrations import HfDeepSpeedConfig

    check_revision(revision)
    transformers.utils.logging.disable_progress_bar()
    try:
        config = transformers.AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"no model at {path!r}: neither a folder with config.json nor a hub name that can be reached "
            f"({first_line(error)})"
        ) from error
    family = family_for(config)
    loader = transformers.AutoModelForImageTextToText if family.has_vision else transformers.AutoModelForCausalLM
    # transformers partitions while it loads for as long as this object lives.
    partition = HfDeepSpeedConfig(zero3_settings) if stage_of(zero3_settings) == 3 else None
    try:
        model = loader.from_pretrained(
            path,
            revision=revision,
            dtype=DTYPES[dtype],
            attn_implementation=attn_implementation,
            use_safetensors=True,
            trust_remote_code=False,
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the weights at {path!r} cannot be loaded: {first_line(error)}") from error
    del partition
    freeze(model, family, vision_tower_frozen=freeze_vision_tower, projector_frozen=freeze_projector)
    adapt(model, family, attn_implementation)
    if gradient_checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    codec = load_codec(path, model, family, revision=revision, min_pixels=min_pixels, max_pixels=max_pixels)
    vocabulary_size = model.config.get_text_config().vocab_size
    return Policy(model, family, banned_tokens(codec.tokenizer, vocabulary_size)), codec


def adapt(model: nn.Module, family: Family, attn_implementation: str) -> None:
    """Put our attention and patch embedding into a loaded model, as far as its family allows."""
    if family.shares_prompt:
        attention.install(model, attn_implementation)
    if family.model_type not in FAMILIES:
        check_plain_head(model, family.model_type)
    if tower := vision_tower(model, family):
        embed_patches_by_product(tower)


@torch.no_grad()
def check_plain_head(model: nn.Module, model_type: str) -> None:
    """ModelError unless the logits are lm_head(last hidden state) and nothing more, as the policy takes them to be."""
    if not all(isinstance(getattr(model, name, None), nn.Module) for name in ("model", "lm_head")):
        raise ModelError(f"a {model_type} model is built in another way than those that can be trained here")
    if any(hasattr(weight, "ds_id") for weight in model.parameters()):
        raise ModelError(f"a {model_type} model has no adapter and cannot be checked under ZeRO-3: use a lower stage")
    ids_BS = torch.arange(1, 5)[None] % model.config.vocab_size
    logits = model.eval()(input_ids=ids_BS, use_cache=False).logits
    plain = model.lm_head(model.model(input_ids=ids_BS, use_cache=False).last_hidden_state)
    if not torch.allclose(logits.float(), plain.float(), rtol=1e-3, atol=1e-3):
        raise ModelError(f"a {model_type} model scales or caps its logits, which is not supported")


def check_revision(revision: str | None) -> None:
    """ModelError unless a revision is a commit hash: a branch or tag is another model tomorrow."""
    if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ModelError(
            f"model.revision={revision!r} is not a commit hash of 40 hex digits: take it from the model's list of "
            "commits, or leave it out"
        )


def loaded_commit(path: str, revision: str | None) -> str | None:
    """The commit of a hub model that was loaded just now, as the local cache tells; None for a folder."""
    from huggingface_hub import try_to_load_from_cache

    if Path(path).exists():
        return None
    file = try_to_load_from_cache(path, "config.json", revision=revision)
    return Path(file).parent.name if isinstance(file, str) else None


def stage_of(settings: dict[str, Any] | None) -> int:
    """ZeRO stage of a DeepSpeed configuration; 0 without one."""
    return settings["zero_optimization"]["stage"] if settings else 0


def load_codec(
    path: str, model: nn.Module, family: Family, *, revision: str | None, min_pixels: int | None, max_pixels: int | None
) -> Codec:
    """The processor with its pixel limits, and the token ids that sampling needs."""
    import transformers

    loader = transformers.AutoProcessor if family.has_vision else transformers.AutoTokenizer
    try:
        processor = loader.from_pretrained(path, revision=revision, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ModelError(f"the processor at {path!r} cannot be loaded: {first_line(error)}") from error
    if family.has_vision and (min_pixels or max_pixels):
        set_pixel_limits(processor.image_processor, min_pixels, max_pixels)
    tokenizer = processor.tokenizer if family.has_vision else processor
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    end_ids = {end for end in [*ends, tokenizer.eos_token_id] if end is not None}
    text_config = model.config.get_text_config()
    return Codec(
        processor=processor,
        tokenizer=tokenizer,
        end_ids=tuple(sorted(end_ids)),
        pad_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        max_context=text_config.max_position_embeddings,
    )


def set_pixel_limits(image_processor, min_pixels: int | None, max_pixels: int | None) -> None:
    """Change the area limits that Qwen's image processor keeps under `size`."""
    size = dict(image_processor.size)
    if min_pixels:
        size["shortest_edge"] = min_pixels
    if max_pixels:
        size["longest_edge"] = max_pixels
    if size["shortest_edge"] > size["longest_edge"]:
        raise ModelError(
            f"the processor's pixel limits would be {size['shortest_edge']} to {size['longest_edge']}: "
            "set both model.min_pixels and model.max_pixels"
        )
    image_processor.size = type(image_processor.size)(**size) if not isinstance(image_processor.size, dict) else size


def first_line(error: Exception) -> str:
    """The first line of an error's text; library errors go on for paragraphs."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
