"""Untrusted videos to frames: decoded by a process of its own, which is killed when it takes too long.

A video is a file (MP4, MOV, MKV, WebM, AVI; in a table also its bytes) or a list of images, its frames. Sound is not
read. Frames are upright and RGB. Nothing here ever reads a URL.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Timer
from typing import Any, BinaryIO, TypeVar

from PIL import Image

from data_prep.images.opening import ImageError, ImageLimits, open_image, open_regular_file, read_image
from data_prep.images.stored import ImageSource, VideoSource
from data_prep.schema import DataError

_DECODER = Path(__file__).with_name("decoder.py")
_MAX_REPLY = 2**12
_Frame = TypeVar("_Frame")


class VideoError(DataError):
    """A video that cannot be used; the text says which and why."""


@dataclass(frozen=True, slots=True)
class VideoLimits:
    """What a video may cost.

    Attributes:
        max_bytes: encoded size, bytes.
        max_pixels, max_side: of a frame: width x height, longer side in pixels.
        max_frames: in the file, or in a list; how many are shown is another rule.
        max_list_pixels: of all frames of a list, which are in memory together.
        max_memory: address space of the process that decodes, bytes.
        timeout: seconds for the whole video.
    """

    max_bytes: int = 2**30
    max_pixels: int = 16_700_000
    max_side: int = 8192
    max_frames: int = 200_000
    max_list_pixels: int = 2**29
    max_memory: int = 2**32
    timeout: float = 60.0


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """What a video file holds: frames that were counted, frames per second on average, pixels before rotation."""

    num_frames: int
    fps: float
    width: int
    height: int


def read_frames(
    source: ImageSource,
    choose: Callable[[VideoInfo], Sequence[int]],
    each: Callable[[Any], _Frame],
    limits: VideoLimits = VideoLimits(),
) -> tuple[VideoInfo, list[_Frame]]:
    """What `each` makes of the frames that `choose` wants; one decoded frame is in memory at a time.

    Args:
        source: a file that `resolve_image_path` gave, encoded bytes, or a place in a table.
        choose: places of frames from 0, increasing.
        each: called with a frame, [height, width, 3] uint8 in numpy.
    Raises:
        VideoError: missing, unreadable, another format, over a limit, truncated or broken.
    """
    name = name_of(source)
    try:
        with _opened(source, limits) as file, _decoding(file, name, limits) as talk:
            info = VideoInfo(**talk.reply())
            places = [int(place) for place in choose(info)]
            talk.ask(places)
            return info, [each(talk.frame()) for _ in places]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(f"{name}: cannot be read ({reason})") from error


def open_frames(source: VideoSource, limits: VideoLimits = VideoLimits()) -> list[Image.Image]:
    """The images of a list of frames, of one size.

    Raises:
        DataError: too few, too many, of different sizes, or one cannot be used.
    """
    if not 1 <= len(source) <= limits.max_frames:
        raise VideoError(f"{name_of(source)}: give 1 to {limits.max_frames:,} frames")
    of_image = ImageLimits(max_pixels=limits.max_pixels, max_side=limits.max_side)
    width, height = open_image(source[0], of_image).size
    if len(source) * width * height > limits.max_list_pixels:
        raise VideoError(
            f"{name_of(source)}: {width} x {height} pixels each is over the limit of {limits.max_list_pixels:,} pixels "
            "of all frames; give fewer or smaller ones"
        )
    frames = []
    for frame in source:
        frames.append(open_image(frame, of_image))
        if frames[-1].size != (width, height):
            raise VideoError(f"{name_of(source)}: frames of different sizes; give them one")
    return frames


def glance(source: VideoSource, num_frames: int = 4, limits: VideoLimits = VideoLimits()) -> list[Image.Image]:
    """Up to `num_frames` images of a video, evenly spread: for contact sheets, hashes and people.

    Raises:
        DataError: the video cannot be used.
    """
    if isinstance(source, tuple):
        frames = open_frames(source, limits)
        return [frames[place] for place in _spread(len(frames), num_frames)]
    return read_frames(source, lambda info: _spread(info.num_frames, num_frames), Image.fromarray, limits)[1]


def contact_sheet(source: VideoSource, num_frames: int = 4, side: int = 320) -> Image.Image:
    """Frames of a video in one image, in rows, each at most `side` pixels wide and high.

    Raises:
        DataError: the video cannot be used.
    """
    frames = glance(source, num_frames)
    for frame in frames:
        frame.thumbnail((side, side))
    columns = math.ceil(math.sqrt(len(frames)))
    width, height = frames[0].size
    sheet = Image.new("RGB", (columns * width, math.ceil(len(frames) / columns) * height), "white")
    for place, frame in enumerate(frames):
        sheet.paste(frame, (place % columns * width, place // columns * height))
    return sheet


def read_video(source: VideoSource, limits: VideoLimits = VideoLimits()) -> bytes | tuple[bytes, ...]:
    """The encoded bytes of a video, or of each frame of a list, not looked into.

    Raises:
        DataError: missing, behind a link, unreadable, or too large.
    """
    if isinstance(source, tuple):
        return tuple(read_image(frame) for frame in source)
    try:
        return read_image(source, ImageLimits(max_bytes=limits.max_bytes))
    except ImageError as error:
        raise VideoError(f"video: {error}") from error


def name_of(source: VideoSource) -> str:
    """A video in words, for messages."""
    if isinstance(source, tuple):
        return f"video of {len(source)} frames"
    return f"video of {len(source):,} bytes" if isinstance(source, bytes) else f"video {source}"


def _spread(length: int, count: int) -> list[int]:
    """Up to `count` places, the first and the last among them."""
    count = min(count, length)
    return [round(place * (length - 1) / max(1, count - 1)) for place in range(count)]


@contextmanager
def _opened(source: ImageSource, limits: VideoLimits) -> Iterator[BinaryIO]:
    """The video as an open file without a name."""
    if isinstance(source, Path):
        with open_regular_file(source) as file:
            if os.fstat(file.fileno()).st_size > limits.max_bytes:
                raise VideoError(f"{name_of(source)}: larger than {limits.max_bytes:,} bytes; cut or compress it")
            yield file
        return
    data = read_video(source, limits)
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.seek(0)
        yield file


class _Talk:
    """What is said to the process that decodes, and what it answers; nothing it says is trusted."""

    def __init__(self, process: subprocess.Popen, name: str, limits: VideoLimits) -> None:
        self._process, self._name, self._limits = process, name, limits
        self.late = False

    def stop(self) -> None:
        """Kill it, since its time is over."""
        self.late = True
        self._process.kill()

    def ask(self, places: list[int]) -> None:
        """Ask for the frames at these places."""
        self._process.stdin.write(json.dumps(places).encode() + b"\n")
        self._process.stdin.flush()

    def reply(self) -> dict[str, Any]:
        """The next line; VideoError where it says what is wrong, or says nothing."""
        line = self._process.stdout.readline(_MAX_REPLY)
        if not line:
            raise self.silence()
        reply = json.loads(line)
        if "error" in reply:
            raise VideoError(f"{self._name}: {reply['error']}")
        return reply

    def frame(self) -> Any:
        """The next frame, [height, width, 3] uint8."""
        import numpy

        height, width = (int(side) for side in self.reply()["shape"])
        if min(height, width) < 1 or height * width > self._limits.max_pixels:
            raise ValueError(f"a frame of {width} x {height} pixels")
        pixels = self._process.stdout.read(height * width * 3)
        if len(pixels) < height * width * 3:
            raise self.silence()
        return numpy.frombuffer(pixels, dtype=numpy.uint8).reshape(height, width, 3)

    def silence(self) -> VideoError:
        """Why there is no answer."""
        if self.late:
            return VideoError(f"{self._name}: not decoded within {self._limits.timeout:g} s; cut it or raise the limit")
        return VideoError(f"{self._name}: its decoder ended without a word (exit {self._process.wait()})")


@contextmanager
def _decoding(file: BinaryIO, name: str, limits: VideoLimits) -> Iterator[_Talk]:
    command = [sys.executable, "-I", str(_DECODER), str(file.fileno()), json.dumps(asdict(limits))]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(command, pass_fds=(file.fileno(),), **pipes)
    talk = _Talk(process, name, limits)
    timer = Timer(limits.timeout, talk.stop)
    timer.start()
    try:
        yield talk
    except BrokenPipeError:
        raise talk.silence() from None
    finally:
        timer.cancel()
        process.kill()
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):
                pipe.close()
        process.wait()
