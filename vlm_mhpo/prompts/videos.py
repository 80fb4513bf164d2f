"""From a row's video to frames of the size that a model sees, by the rules of qwen-vl-utils.

qwen-vl-utils itself would read files and addresses; here it says how many frames are shown and how large they are, and
`data_prep` decodes them. A list of frames goes through it as it is.

Shape suffixes: T frames, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from data_prep import VideoLimits, VideoSource, open_frames, read_frames
from vlm_mhpo.config.data import VideoConfig


@dataclass(frozen=True, slots=True)
class Clip:
    """The frames of a video that are shown.

    Attributes:
        frames_TCHW: [T, C, H, W] float32, 0 to 255; sides are multiples of those of a token.
        metadata: transformers' VideoMetadata as a dictionary: what the processor tells times by.
    """

    frames_TCHW: Tensor
    metadata: dict[str, Any]


def open_clip(source: VideoSource, config: VideoConfig, patch_size: int) -> Clip:
    """The frames of a video that a model with patches of this side sees.

    Raises:
        DataError: the video cannot be used.
        ValueError: it has too few frames, or is too thin.
    """
    from qwen_vl_utils import vision_process as rules

    budgets = {
        "min_pixels": config.min_pixels,
        "max_pixels": config.max_pixels,
        "total_pixels": config.total_pixels,
    }
    budgets = {name: pixels for name, pixels in budgets.items() if pixels}
    try:
        if not isinstance(source, tuple):
            return _of_file(source, config, budgets, rules.SPATIAL_MERGE_SIZE * patch_size)
        wish = {"video": open_frames(source), "sample_fps": config.frames_fps, **budgets}
        frames_TCHW, metadata = rules.fetch_video(wish, image_patch_size=patch_size, return_video_metadata=True)
    except AssertionError as error:
        raise ValueError(f"the pixel limits of data.video cross: {error}") from error
    return Clip(frames_TCHW, metadata)


def _of_file(source: Any, config: VideoConfig, budgets: dict[str, int], factor: int) -> Clip:
    from qwen_vl_utils import vision_process as rules
    from torchvision.transforms import InterpolationMode
    from torchvision.transforms.functional import resize

    places: list[int] = []

    def choose(info: Any) -> list[int]:
        wish = {"fps": config.fps, "min_frames": config.min_frames, "max_frames": config.max_frames}
        count = rules.smart_nframes(wish, total_frames=info.num_frames, video_fps=info.fps)
        places.extend(torch.linspace(0, info.num_frames - 1, count).round().long().tolist())
        return places

    def shown(frame: Any) -> Tensor:
        frame_CHW = torch.tensor(frame).permute(2, 0, 1)
        size = _frame_size(*frame_CHW.shape[1:], len(places), factor, **budgets)
        return resize(frame_CHW, size, interpolation=InterpolationMode.BICUBIC, antialias=True)

    info, frames = read_frames(source, choose, shown, VideoLimits(timeout=config.timeout))
    metadata = {"fps": info.fps, "frames_indices": places, "total_num_frames": info.num_frames}
    return Clip(torch.stack(frames).float(), metadata)


def _frame_size(
    height: int,
    width: int,
    num_frames: int,
    factor: int,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    total_pixels: float | None = None,
) -> list[int]:
    """Height and width of each of `num_frames` frames: the budgets of qwen-vl-utils' `fetch_video`."""
    from qwen_vl_utils import vision_process as rules

    least = min_pixels or rules.VIDEO_MIN_TOKEN_NUM * factor**2
    total = total_pixels or rules.MODEL_SEQ_LEN * factor**2 * 0.9
    share = total / num_frames * rules.FRAME_FACTOR
    most = max(min(rules.VIDEO_MAX_TOKEN_NUM * factor**2, share), int(least * 1.05))
    most = min(max_pixels or most, most)
    return list(rules.smart_resize(height, width, factor=factor, min_pixels=least, max_pixels=most))
