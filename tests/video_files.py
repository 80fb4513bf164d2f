"""Small videos that tests make: frames of one grey level each, so that a frame says which one it is."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction

import av
import numpy as np

STEP = 10


def grey_frames(num_frames: int, width: int = 64, height: int = 48) -> list[np.ndarray]:
    """Frame i has the level i * STEP (modulo 250) everywhere."""
    return [np.full((height, width, 3), (index * STEP) % 250, dtype=np.uint8) for index in range(num_frames)]


def noisy_frames(num_frames: int, width: int = 64, height: int = 48, seed: int = 0) -> list[np.ndarray]:
    """Coloured blocks that move, so that no two frames are alike."""
    blocks = np.random.default_rng(seed).integers(0, 256, (-(-height // 8), -(-width // 8), 3), dtype=np.uint8)
    image = blocks.repeat(8, axis=0).repeat(8, axis=1)[:height, :width]
    return [np.roll(image, 4 * index, axis=1) for index in range(num_frames)]


def video(
    frames: Sequence[np.ndarray],
    fps: int | Fraction = 10,
    container: str = "mp4",
    codec: str = "libx264",
    **options: str,
) -> bytes:
    """An encoded video of these [height, width, 3] uint8 frames."""
    stream = io.BytesIO()
    with av.open(stream, "w", format=container) as output:
        track = output.add_stream(codec, rate=fps)
        track.height, track.width = frames[0].shape[:2]
        track.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        track.options = options or {}
        track.codec_context.thread_count = 1
        for frame in frames:
            output.mux(track.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        output.mux(track.encode())
    return stream.getvalue()
