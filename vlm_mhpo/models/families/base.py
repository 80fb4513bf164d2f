"""One door to what differs between model families: a row of the table, and behind it how the family sees.

A new family is one file beside this one and its row in `families.FAMILIES`. Nothing outside this folder knows what its
images look like as tensors: `Media` goes from the processor to the model unopened.

Shape suffixes: A position axes, S prompt tokens, V vocabulary.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families.costs import Part, Stack, Work
from vlm_mhpo.models.families.sight import Sight
from vlm_mhpo.types import TAGS, Media, Prompt

# What Qwen's tokenizers hold for images and videos, the text models', too.
VISION_TOKENS = ("<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>")
# What stands for an image in a chat template; the processor repeats the token in the middle.
IMAGE_TEXT = "<|vision_start|><|image_pad|><|vision_end|>"
VIDEO_TEXT = "<|vision_start|><|video_pad|><|vision_end|>"
# Of tiny image processors: white paper becomes 0, so that a patch embedding starts from the ink.
WHITE_IS_ZERO = {"image_mean": [1.0, 1.0, 1.0], "image_std": [0.3, 0.3, 0.3]}
# Names of attributes that hold a placeholder, of configurations and processors, and its text in a tokenizer.
_MEDIUM = r"image|img|video|vision|audio|media"
_PLACEHOLDER_NAME = re.compile(rf"({_MEDIUM}|\b[be]o[iva]_).*token(_id|_index)?$")
_PLACEHOLDER_TEXT = re.compile(rf"[<\[].*({_MEDIUM}).*[>\]]", re.IGNORECASE)
# Buffers that older releases wrote with the weights and that every model computes by itself.
SPARE_TENSORS = (r"rotary(_pos)?_emb\.inv_freq$", r"rotary_emb\.(cos|sin)_cached$")


class Vision(Protocol):
    """How a family sees: all that makes or reads `Media`, and what there is to know of its vision modules.

    `learning` are the projectors that features of a frozen tower still have to go through; () when none learns.

    A class may also have `fit(processor, image)`, an image in the size that the model sees; and, where `sees_videos` is
    true, `cut_clips(inputs, kinds)`, the media of one row of images and videos (`kinds`: "image" or "video" for each,
    in the order of the prompt). The tokens of a video then stand as those of an image, with token type 2.
    """

    # Media: from the processor's output to the model's arguments.

    def cut(self, processor: Any, inputs: Mapping[str, Tensor], num_images: Sequence[int]) -> list[Media]:
        """The media of each row of a processor's output; copies, since a view would keep (and send) the whole batch."""

    def num_tokens(self, processor: Any, media: Media) -> int | None:
        """Tokens of a prompt that the processor marks as those of these images; None where the model counts them."""

    def join(self, parts: Sequence[Media]) -> Media:
        """Media of several prompts as those of one forward, in order; at least one."""

    def is_empty(self, media: Media) -> bool:
        """No token of a forward would come from it: features of a prompt without images."""

    def with_features(
        self, model: nn.Module, parts: Sequence[Media | None], learning: Sequence[nn.Module]
    ) -> list[Media]:
        """Features of the frozen tower on the CPU in the place of pixels, for all prompts; one forward of the tower.

        A prompt without images (None) gets empty features, so that every rank packs the same kind of rows.
        """

    def blank(self, model: nn.Module, media: Media | None) -> tuple[Tensor, Media]:
        """Token ids [n] of the smallest image and its media; features where `media` are features."""

    def arguments(self, model: nn.Module, media: Media, learning: Sequence[nn.Module]) -> dict[str, Any]:
        """Keyword arguments of the transformers model."""

    # Modules. A projector may lie inside the tower.

    def tower(self, model: nn.Module) -> nn.Module:
        """The module whose forward encodes images."""

    def projectors(self, model: nn.Module) -> list[nn.Module]:
        """The modules that map vision to text width, the main one first."""

    def adapt(self, model: nn.Module) -> None:
        """Change how a loaded model computes, but no value, name or weight."""

    # Processor and sizes.

    def set_pixel_limits(self, processor: Any, min_pixels: int | None, max_pixels: int | None) -> None:
        """Change the area limits of an image; None leaves a limit as it is. ModelError when they cross."""

    def pixels_per_token(self, processor: Any) -> int:
        """Area that one image token sees, by the processor."""

    def stack(self, config: Any) -> Stack:
        """The layers of the tower that a configuration describes."""

    # Costs.

    def work(self, model: nn.Module, media: Media) -> Work:
        """What passes through tower and projectors for these pixels."""

    def work_of_call(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> Work:
        """The same for a call of the tower, from its arguments."""

    def parts(self, model: nn.Module) -> list[Part]:
        """Matrices of tower and projectors, with what backward costs for what is trained."""

    # Tiny models.

    def tiny_processor(self, tokenizer: Any) -> Any:
        """The family's real processor around the tiny tokenizer."""


@dataclass(frozen=True, slots=True)
class TinyWords:
    """What a tiny tokenizer and its template have for a family; Qwen's unless said otherwise.

    Attributes:
        placeholders: special tokens of images and videos.
        image: what stands for an image in the template.
        names: placeholders that the processor looks up by attributes of these names.
        tags: ordinary tokens by which answers are read.
    """

    placeholders: tuple[str, ...] = VISION_TOKENS
    image: str = IMAGE_TEXT
    names: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = TAGS


@dataclass(frozen=True, slots=True)
class Family:
    """One row of the table of supported architectures; logits are those of lm_head, by its `LogitRule`.

    Attributes:
        model_type: transformers' name of the configuration.
        positions: (model, prompt) -> [A, S] int64 positions of the prompt's tokens.
        vision: how images are seen; None = text alone.
        sight: what its layers see beside what causal ones see of a packed row; None = no more.
        own_inputs: the model prepares its inputs itself (`families.own_path`): a forward has one row of one completion.
        shares_prompt: completions may share a row and a cache with their prompt; else each has a copy of it.
        plain_layers: its text layers are norm, attention that turns whole heads in halves, norm and MLP, added up and
            nothing more: tokens are decoded by `rollout.hf.token_layer` in place of their own forwards.
        recurrent: names of module classes that carry a state from token to token (gated delta nets); completions go on
            from the state of their prompt (`models.recurrent`).
        has_pixel_limits: the area of an image may be limited (`model.min_pixels`, `model.max_pixels`).
        leaf_modules: names of module classes that ZeRO-3 must gather whole (routed experts, recurrent layers).
        tied: tensors that a folder may lack where its configuration ties them to others: module and name.
        spare: patterns of tensors that a folder may hold although the model does not read them.
        hub_name: a pattern in the hub names of its published models, in small letters with "_" for all else.
        answer_tokens: a budget below which many answers of its published models are cut; 0 = not known.
        tiny_words: what its tiny tokenizer and template have of their own.
        tiny_config: (tokenizer, sizes of the text part) -> configuration of the family's tiny model, if any.
    """

    model_type: str
    positions: Callable[[nn.Module, Prompt], Tensor]
    vision: Vision | None = None
    shares_prompt: bool = True
    plain_layers: bool = False
    recurrent: tuple[str, ...] = ()
    sight: Sight | None = None
    own_inputs: bool = False
    has_pixel_limits: bool = True
    leaf_modules: tuple[str, ...] = ()
    tied: tuple[str, ...] = ("lm_head.weight", "embed_tokens.weight")
    spare: tuple[str, ...] = SPARE_TENSORS
    hub_name: str = "(?!)"
    answer_tokens: int = 0
    tiny_words: TinyWords = TinyWords()
    tiny_config: Callable[[Any, dict[str, Any]], Any] | None = None

    def with_processor(self, processor: Any) -> Family:
        """The same where the table says all; else a family that holds the processor."""
        return self.vision.known_by(self, processor) if self.own_inputs else self

    @property
    def has_vision(self) -> bool:
        """Images are accepted."""
        return self.vision is not None

    @property
    def sees_videos(self) -> bool:
        """Videos are accepted."""
        return getattr(self.vision, "sees_videos", False)

    def fit(self, processor: Any, image: Any) -> Any:
        """An image in the size that the model sees, where that is not left to the processor."""
        return self.vision.fit(processor, image) if hasattr(self.vision, "fit") else image

    @property
    def auto_classes(self) -> tuple[Any, Any]:
        """transformers' loaders of the model and of its processor (a tokenizer for text)."""
        import transformers as hf

        if self.vision:
            return hf.AutoModelForImageTextToText, hf.AutoProcessor
        return hf.AutoModelForCausalLM, hf.AutoTokenizer

    def join(self, parts: Sequence[Media | None]) -> Media | None:
        """Media of several prompts as those of one forward; None where no prompt has any."""
        present = [part for part in parts if part is not None]
        return self.vision.join(present) if self.vision and present else None


def banned_tokens(tokenizer: Any, vocabulary_size: int, *sources: Any) -> Tensor:
    """[V] bool, True for placeholders and for ids that the tokenizer does not know (padding of the matrix).

    A sampled placeholder makes the next forward look for an image, a video or a sound that is not there. They are those
    that `sources` name (the model's configuration and its processor: tokens of media and of their edges), and all added
    tokens of the tokenizer that speak of a medium.
    """
    banned_V = torch.zeros(vocabulary_size, dtype=torch.bool)
    banned_V[len(tokenizer) :] = True
    known = tokenizer.get_added_vocab()
    banned_V[[index for token, index in known.items() if _PLACEHOLDER_TEXT.fullmatch(token)]] = True
    named = [value for source in (tokenizer.special_tokens_map, *sources) for value in _named_placeholders(source)]
    ids = [tokenizer.get_vocab().get(value, -1) if isinstance(value, str) else value for value in named]
    banned_V[[index for index in ids if 0 <= index < vocabulary_size]] = True
    return banned_V


def _named_placeholders(source: Any) -> Iterator[int | str]:
    """Ids and texts of placeholders among the attributes of a configuration, and of those in it, or of a processor."""
    for name, value in (source if isinstance(source, Mapping) else vars(source)).items():
        if hasattr(value, "to_dict") and hasattr(value, "model_type"):
            yield from _named_placeholders(value)
        # A number under a name without _id or _index is a size (Gemma 4's audio_ms_per_token).
        elif (match := _PLACEHOLDER_NAME.search(name)) and type(value) is (int if match[2] else str):
            yield value


def vision_weights(model: nn.Module, family: Family) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Weights of the vision tower and of its projectors; none of a text model, or where they are not known."""
    if family.vision is None or (family.own_inputs and not family.vision.knows_tower(model)):
        return [], []
    projectors = [weight for module in family.vision.projectors(model) for weight in module.parameters()]
    named = {id(weight) for weight in projectors}
    return [weight for weight in family.vision.tower(model).parameters() if id(weight) not in named], projectors


def tower_is_frozen(model: nn.Module, family: Family) -> bool:
    """There is a vision tower, and no weight of it in front of the projectors can change."""
    tower = vision_weights(model, family)[0]
    return bool(tower) and not any(weight.requires_grad for weight in tower)


def freeze(model: nn.Module, family: Family, *, vision_tower_frozen: bool, projector_frozen: bool) -> None:
    """Set requires_grad of the vision encoder's and the projector's weights."""
    if not family.has_vision and (vision_tower_frozen or projector_frozen):
        raise ModelError(f"a {family.model_type} model has no vision tower: set model.freeze_* to false")
    if vision_tower_frozen or projector_frozen:
        family.vision.tower(model)  # says so where it is not known
    for weights, is_frozen in zip(vision_weights(model, family), (vision_tower_frozen, projector_frozen), strict=True):
        for weight in weights:
            weight.requires_grad_(not is_frozen)


def parameter_table(model: nn.Module, family: Family) -> list[tuple[str, int, int]]:
    """(part, weights, trainable weights) of vision tower, projector, language model and the adapters in them."""
    names = ("vision tower", "projector", "language model", "adapters")
    part_of = {id(w): name for name, some in zip(names, vision_weights(model, family), strict=False) for w in some}
    part_of |= {id(weight): "adapters" for name, weight in model.named_parameters() if ".lora_" in name}
    counts = {name: [0, 0] for name in names}
    for parameter in model.parameters():
        count = counts[part_of.get(id(parameter), "language model")]
        # ZeRO-3 leaves empty tensors behind; ds_numel keeps the true size.
        size = getattr(parameter, "ds_numel", parameter.numel())
        count[0] += size
        count[1] += size if parameter.requires_grad else 0
    return [(part, total, trainable) for part, (total, trainable) in counts.items() if total]
