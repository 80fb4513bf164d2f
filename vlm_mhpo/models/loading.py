"""Load a policy and its processor by path or hub name."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models import attention, recurrent
from vlm_mhpo.models.adapters import adapters_of, fit_adapters
from vlm_mhpo.models.families import FAMILIES, family_for
from vlm_mhpo.models.families.base import Family, banned_tokens, freeze
from vlm_mhpo.models.families.text import check_head, check_own_head
from vlm_mhpo.models.folder import ADAPTER_FILE, Base, base_of, read_config, read_processor
from vlm_mhpo.models.logit_rule import set_rule
from vlm_mhpo.models.policy import Policy
from vlm_mhpo.models.quantization import check_quantization, quantization_settings, settle_base
from vlm_mhpo.models.template import give_template, turn_end
from vlm_mhpo.models.weights import NUM_NAMED, Weights, examine_weights, first_line, whole_shapes
from vlm_mhpo.types import READ

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
NO_LIMIT = 2**31


@dataclass(frozen=True, slots=True)
class Codec:
    """The processor of a model with what prompts and sampling need of it.

    Attributes:
        processor: transformers processor (vision families) or tokenizer (text families).
        tokenizer: the tokenizer.
        end_ids: tokens that end a completion.
        turn_end: the one of them that the chat template puts behind a response, as far as it has one.
        pad_id: fills rows; always masked.
        max_context: positions that the model was built for.
    """

    processor: Any
    tokenizer: Any
    end_ids: tuple[int, ...]
    pad_id: int
    max_context: int
    turn_end: int | None = None

    def texts_of(self, token_ids: Sequence[Sequence[int]]) -> list[str]:
        """Decoded ids without special tokens; `types.READ` stay, whatever the tokenizer calls them."""
        added = self.tokenizer.added_tokens_decoder.items()
        read = {index for index, token in added if token.content in READ}
        hidden = {index for index, token in added if token.special}.union(self.tokenizer.all_special_ids) - read
        return self.tokenizer.batch_decode([[index for index in ids if index not in hidden] for ids in token_ids])


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
    lora: Mapping[str, Any] | None = None,
    quantization: str | None = None,
    gradient_checkpointing: bool = False,
    zero3_settings: dict[str, Any] | None = None,
    merges_adapter: bool = False,
) -> tuple[Policy, Codec]:
    """A policy on the CPU and its codec (processor and tokens); arguments as in `config.ModelConfig`.

    With `zero3_settings` (DeepSpeed's configuration) of stage 3 each rank holds only its share from the start.
    Weights are read from safetensors only and no code of the model's folder is run. Where `path` is an adapter, its
    base is loaded with it: beside the weights, to learn further, or with `merges_adapter` added to them.

    Raises:
        ModelError: nothing loadable at `path`, tensors that are not the model's (`weights.examine_weights`), a
            `revision` that is no commit hash, flash attention where there is none, or an architecture that
            `families.family_for` refuses.
    """
    import transformers

    transformers.utils.logging.disable_progress_bar()
    limits = {"min_pixels": min_pixels, "max_pixels": max_pixels}
    frozen = {"freeze_vision_tower": freeze_vision_tower, "freeze_projector": freeze_projector}
    family, weights, codec = examine_model(path, revision=revision, **limits, **frozen, lora=lora)
    base = base_of(path, revision)
    config = read_config(path, revision=revision)
    without_dropout(config)
    _check_attention(config, family, attn_implementation)
    options = {"config": config, "dtype": DTYPES[dtype], "attn_implementation": attn_implementation}
    if quantization:
        check_quantization(quantization, _stage_of(zero3_settings))
        options["quantization_config"] = quantization_settings(quantization, DTYPES[dtype], family, config)
    model = _read_weights(base, family, zero3_settings, **options)
    # Under ZeRO-3 transformers keeps every renaming that it knows for the model, and would reverse them all on saving.
    model._weight_conversions = list(weights.conversions)
    adapt(model, family, attn_implementation)
    # What learns is settled here, before the policy and the optimizer look.
    fit_adapters(model, family, base, lora, merges=merges_adapter)
    # Digest and messages are those of the adapter.
    model.name_or_path = path
    if not adapters_of(model):
        freeze(model, family, vision_tower_frozen=freeze_vision_tower, projector_frozen=freeze_projector)
    if gradient_checkpointing:
        _recompute_activations(model)
    vocabulary_size = model.config.get_text_config().vocab_size
    banned_V = banned_tokens(codec.tokenizer, vocabulary_size, model.config, codec.processor)
    policy = Policy(model, family, banned_V, weights, (base.path, base.revision))
    if quantization:
        settle_base(policy)
    return policy, codec


def _recompute_activations(model: nn.Module) -> None:
    """Keep no activations of layers; backward makes them again."""
    # The name that transformers 6 keeps, and the one that 5.20 knows.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def _read_weights(base: Base, family: Family, zero3_settings: dict[str, Any] | None, **options: Any) -> nn.Module:
    """The transformers model, under ZeRO-3 this rank's share of it; `options` of from_pretrained."""
    from safetensors import SafetensorError
    from transformers.integrations import HfDeepSpeedConfig

    attention.check_available(options["attn_implementation"])
    # transformers partitions while it loads for as long as this object lives.
    partition = HfDeepSpeedConfig(zero3_settings) if _stage_of(zero3_settings) == 3 else None
    try:
        with whole_shapes():
            return family.auto_classes[0].from_pretrained(
                base.path, revision=base.revision, use_safetensors=True, trust_remote_code=False, **options
            )
    except (OSError, ValueError, SafetensorError) as error:
        raise ModelError(f"the weights at {base.path!r} cannot be loaded: {first_line(error)}") from error
    finally:
        del partition


def examine_model(
    path: str,
    *,
    revision: str | None = None,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    freeze_vision_tower: bool = False,
    freeze_projector: bool = False,
    lora: Mapping[str, Any] | None = None,
    offline: bool = False,
) -> tuple[Family, Weights, Codec]:
    """Everything that a model can be refused for before its weights are read; arguments as `load_policy`.

    Args:
        offline: look on this machine alone.
    """
    _check_revision(revision)
    base = base_of(path, revision, offline=offline)
    config = read_config(path, revision=revision, offline=offline)
    family, place = family_for(config), {"revision": base.revision, "offline": offline}
    weights, empty = examine_weights(base.path, family, config, **place)
    freeze(empty, family, vision_tower_frozen=freeze_vision_tower, projector_frozen=freeze_projector)
    codec = load_codec(base.path, empty, family, min_pixels=min_pixels, max_pixels=max_pixels, **place)
    fit_adapters(empty, family, base, lora)
    return family.with_processor(codec.processor), weights, codec


def adapt(model: nn.Module, family: Family, attn_implementation: str) -> None:
    """Put our attention and the family's own changes into a loaded model."""
    if family.shares_prompt:
        attention.install(model, attn_implementation)
    recurrent.install(model, family.recurrent)
    if family.own_inputs:
        check_own_head(model, family.model_type)
    elif family.model_type not in FAMILIES:
        check_head(model, family.model_type)
    else:
        set_rule(model)
    if family.vision:
        family.vision.adapt(model)
    if family.leaf_modules:
        from deepspeed.utils import set_z3_leaf_modules

        set_z3_leaf_modules(model, list(family.leaf_modules))


def without_dropout(config: Any) -> None:
    """Set every kind of dropout in a configuration, and in those inside it, to 0.

    A ratio compares two forwards of the same tokens, and sampling, packed rows and recomputation would each drop
    otherwise: with dropout it would differ from 1 where no weight has moved.
    """
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            without_dropout(value)
        elif "drop" in name and isinstance(value, float):
            setattr(config, name, 0.0)


def _check_attention(config: Any, family: Family, attn_implementation: str) -> None:
    """ModelError when the attention would leave out what a model does to its scores, or cannot be told what it sees."""
    if attn_implementation == attention.FLASH and family.sight:
        raise ModelError(
            f"layers of this {config.model_type} model slide or see ahead, by masks that flash attention does not "
            "take: set model.attn_implementation to sdpa"
        )
    if attn_implementation != "eager" and getattr(config.get_text_config(), "attn_logit_softcapping", None):
        raise ModelError(
            f"a {config.model_type} model caps its attention scores, which {attn_implementation} leaves out: set "
            "model.attn_implementation to eager and model.dtype to float32"
        )


def _check_revision(revision: str | None) -> None:
    """ModelError unless a revision is a commit hash: a branch or tag is another model tomorrow."""
    if revision is not None and not re.fullmatch(r"[0-9a-f]{40}", revision):
        raise ModelError(
            f"model.revision={revision!r} is not a commit hash of 40 hex digits: take it from the model's list of "
            "commits, or leave it out"
        )


def loaded_commit(path: str, revision: str | None) -> str | None:
    """The commit of a hub model that was loaded just now, as the local cache tells; None for a folder."""
    folder = None if Path(path).exists() else model_folder(path, revision)
    return folder.name if folder else None


def model_folder(path: str, revision: str | None) -> Path | None:
    """Where a model lies that was loaded just now: its folder, or that of its commit in the hub's local cache."""
    from huggingface_hub import try_to_load_from_cache

    if Path(path).is_dir():
        return Path(path)
    found = [try_to_load_from_cache(path, name, revision=revision) for name in ("config.json", ADAPTER_FILE)]
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def _stage_of(settings: dict[str, Any] | None) -> int:
    """ZeRO stage of a DeepSpeed configuration; 0 without one."""
    return settings["zero_optimization"]["stage"] if settings else 0


def load_codec(
    path: str,
    model: nn.Module,
    family: Family,
    *,
    revision: str | None,
    min_pixels: int | None,
    max_pixels: int | None,
    offline: bool = False,
) -> Codec:
    """The processor with its pixel limits, and the token ids that sampling needs; of `model` the sizes are read.

    Raises:
        ModelError: no processor, no chat template, tokens without a row in the model, or no token that ends a response.
    """
    processor = read_processor(path, family, revision=revision, offline=offline)
    codec = counting_codec(processor, family, min_pixels, max_pixels, path=path)
    tokenizer, size = codec.tokenizer, model.get_input_embeddings().num_embeddings
    beyond = [token for token, index in tokenizer.get_vocab().items() if size <= index != tokenizer.pad_token_id]
    if beyond:
        raise ModelError(
            f"the tokenizer at {path!r} has tokens for which the model has no row, since it has {size} of them "
            f"({', '.join(sorted(beyond)[:NUM_NAMED])}): resize its embedding, or take the tokenizer that belongs to it"
        )
    configured = model.generation_config.eos_token_id
    ends = configured if isinstance(configured, list) else [configured]
    # A template may end turns with a token that no configuration names; a response must end there, too.
    end = turn_end(codec.processor, tokenizer)
    ends = {one for one in (*ends, tokenizer.eos_token_id, end) if one is not None and one < size}
    if not ends:
        raise ModelError(
            f"the model at {path!r} names no token that ends a response, neither in generation_config.json nor by its "
            "tokenizer or chat template: set eos_token_id in generation_config.json"
        )
    pad = tokenizer.pad_token_id
    return replace(
        codec,
        end_ids=tuple(sorted(ends)),
        turn_end=next(one for one in (end, tokenizer.eos_token_id, min(ends)) if one in ends),
        # Always masked, so any row of the matrix does.
        pad_id=pad if pad is not None and pad < size else min(ends),
        max_context=model.config.get_text_config().max_position_embeddings,
    )


def counting_codec(
    processor: Any, family: Family, min_pixels: int | None = None, max_pixels: int | None = None, *, path: str = ""
) -> Codec:
    """A codec for prompts alone, of which nothing is sampled: no end, no padding, no context.

    Args:
        processor: gets the tokenizer's chat template and a token to pad with, where it has none.
        family: of the model.
        min_pixels, max_pixels: as in `config.ModelConfig`.
        path: names the model in messages.

    Raises:
        ModelError: no chat template, or pixel limits that cross.
    """
    if family.vision and (min_pixels or max_pixels):
        family.vision.set_pixel_limits(processor, min_pixels, max_pixels)
    tokenizer = processor.tokenizer if family.vision else processor
    give_template(path, processor, tokenizer)
    if tokenizer.pad_token_id is None:
        # Processors pad texts of several rows; what is padded is cut off again.
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return Codec(processor, tokenizer, end_ids=(), pad_id=0, max_context=NO_LIMIT)
