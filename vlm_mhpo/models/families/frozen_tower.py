"""Image features of a frozen vision tower: computed once per rollout batch, read by sampling and by every update.

What is kept is what the first module that may learn reads: the projectors' inputs, or the projectors' outputs when they
are frozen too. The main features come first, then those of Qwen3-VL's deepstack.

Shape suffixes: I image tokens, K projectors, D width of what is kept.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from vlm_mhpo.types import Media

PIXELS, FEATURES = "pixel_values", "image_features_IKD"


class KeptFeatures:
    """What families share whose media are pixels, or features of a frozen tower in their place.

    A family gives `features_of` and `blank`; the other methods are as `base.Vision` describes them.

    Attributes:
        seen_once: tensors of media that only the tower reads; they go when features come.
    """

    __slots__ = ()
    seen_once: ClassVar[tuple[str, ...]] = (PIXELS,)

    def features_of(self, model: nn.Module, shown: Sequence[Media], learning: Sequence[nn.Module]) -> Sequence[Tensor]:
        """Features of each of some media with pixels, on the CPU; [I, ...] with tokens, patches or views in front."""
        raise NotImplementedError

    def blank(self, model: nn.Module, media: Media | None) -> tuple[Tensor, Media]:
        raise NotImplementedError

    def join(self, parts: Sequence[Media]) -> Media:
        names = dict.fromkeys(name for part in parts for name in part.tensors)
        return Media({name: torch.cat([p.tensors[name] for p in parts if name in p.tensors]) for name in names})

    def is_empty(self, media: Media) -> bool:
        return FEATURES in media.tensors and not len(media.tensors[FEATURES])

    def with_features(
        self, model: nn.Module, parts: Sequence[Media | None], learning: Sequence[nn.Module]
    ) -> list[Media]:
        if all(part is not None and FEATURES in part.tensors for part in parts):
            return list(parts)
        has_pixels = [part is not None and PIXELS in part.tensors for part in parts]
        shown = [part for part, seen in zip(parts, has_pixels, strict=True) if seen] or [self.blank(model, None)[1]]
        features = self.features_of(model, shown, learning)
        kept = [{name: t for name, t in part.tensors.items() if name not in self.seen_once} for part in shown]
        made = iter([Media({**rest, FEATURES: each}) for rest, each in zip(kept, features, strict=True)])
        nothing = Media({FEATURES: features[0][:0]})
        return [next(made) if seen else part or nothing for part, seen in zip(parts, has_pixels, strict=True)]


def encode_images(tower: nn.Module, projectors: Sequence[nn.Module], *pixels: Tensor, **arguments: Any) -> Tensor:
    """[I, K, D] features of images, in the order of their tokens.

    Args:
        tower: called with `pixels` and `arguments`; gives transformers' output of a vision tower.
        projectors: those that may learn, whose inputs are wanted; empty when their outputs are.
    """
    # Each projector passes the patches of a token on as they are. The tower itself then puts the tokens in order
    # (Qwen2.5-VL works in windows and sorts behind the merger), so no family's ordering is repeated here.
    hooks = [projector.register_forward_hook(_patches_of_tokens) for projector in projectors]
    try:
        with torch.no_grad():
            output = tower(*pixels, **arguments, return_dict=True)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack([output.pooler_output, *getattr(output, "deepstack_features", ())], dim=1)


def distinct(images: Sequence[Tensor], layouts: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """Places of the images (on the CPU) that are unlike all before them, and for each image which of these it is.

    Args:
        images: patches of each.
        layouts: how they lie; the same patches in 4 x 8 and in 8 x 4 are two images.
    """
    digests = [hashlib.sha256(image.contiguous().view(torch.uint8).numpy()).digest() for image in images]
    keys = [(tuple(layout), digest) for layout, digest in zip(layouts, digests, strict=True)]
    firsts: dict[tuple[tuple[int, ...], bytes], int] = {}
    for place, key in enumerate(keys):
        firsts.setdefault(key, place)
    number = {key: index for index, key in enumerate(firsts)}
    return list(firsts.values()), [number[key] for key in keys]


def _patches_of_tokens(projector: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The input of a projector instead of its output: [patches, width] as one row per token."""
    return inputs[0].reshape(output.shape[0], -1)


def encoder_output(features_IKD: Tensor, projectors: Sequence[nn.Module], patches_per_token: int) -> dict[str, Any]:
    """The keyword argument that gives the model features in the place of pixels.

    Args:
        features_IKD: of `encode_images` with the same `projectors`.
        projectors: those that may learn; they are run here, with gradient.
        patches_per_token: merged into one image token.
    """
    streams = features_IKD.unbind(dim=1)
    if projectors:
        tokens, _, width = features_IKD.shape
        shape = (tokens * patches_per_token, width // patches_per_token)
        streams = [projector(x.reshape(shape)) for projector, x in zip(projectors, streams, strict=True)]
    first, *others = streams
    # transformers reads these two attributes, each split by image.
    image = SimpleNamespace(pooler_output=(first,), deepstack_features=[(each,) for each in others])
    return {"mm_encoder_outputs": {"image": image}}
