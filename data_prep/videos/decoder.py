"""The process that decodes one video; `data_prep.videos.opening` starts it and may kill it at any moment.

Run by its file name and isolated, so that it loads PyAV and numpy and nothing else. It is given a descriptor of the
video, never a name, and ffmpeg may neither guess a container nor open a file or an address: a playlist is no video.

On stdout each reply is a line of JSON; behind that of a frame its pixels follow, [height, width, 3] uint8.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import resource
import sys
from typing import Any, BinaryIO

import av
import numpy as np

# First bytes, where they lie, and ffmpeg's name of the container.
_CONTAINERS = ((4, b"ftyp", "mov"), (0, b"\x1a\x45\xdf\xa3", "matroska"), (8, b"AVI ", "avi"))
_CODECS = "h264,hevc,vp8,vp9,libdav1d,av1,mpeg4,mjpeg"
_OPTIONS = {"protocol_whitelist": "none", "codec_whitelist": _CODECS, "max_streams": "32"}


class Refused(Exception):
    """What is wrong with the video, for people."""


def main() -> None:
    """Describe the video, read the wanted places of frames from stdin, send those frames."""
    descriptor, limits = int(sys.argv[1]), json.loads(sys.argv[2])
    try:
        _load()
        _confine(limits)
        with os.fdopen(descriptor, "rb") as file:
            container = _container_of(file)
            described = _describe(file, container, limits)
            _say(described)
            _send(file, container, json.loads(sys.stdin.readline()), described, limits)
    except Refused as error:
        _say({"error": str(error)})
    except (av.FFmpegError, ValueError, MemoryError, OverflowError) as error:
        _say({"error": f"truncated or broken ({type(error).__name__}: {str(error)[:200]})"})


def _load() -> None:
    """Import what PyAV and numpy would load when it is first needed: by then no file can be opened."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _confine(limits: dict[str, Any]) -> None:
    """Bound what this process may take: memory, processor time, and no file or socket beside those that are open."""
    bounds = {resource.RLIMIT_AS: limits["max_memory"], resource.RLIMIT_CPU: int(limits["timeout"]) + 1}
    for kind, bound in (bounds | {resource.RLIMIT_CORE: 0, resource.RLIMIT_NOFILE: 0}).items():
        # Where a system lacks a limit the others hold, and the time limit is the parent's.
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(kind, (bound, bound))


def _container_of(file: BinaryIO) -> str:
    head = file.read(16)
    for start, mark, name in _CONTAINERS:
        if head[start : start + len(mark)] == mark:
            return name
    raise Refused(f"not an MP4, MOV, MKV, WebM or AVI video (starts with {head[:8]!r}); convert it first")


def _open(file: BinaryIO, container: str) -> tuple[Any, Any]:
    file.seek(0)
    opened = av.open(file, format=container, options=_OPTIONS)
    if not opened.streams.video:
        raise Refused("holds no video stream")
    stream = opened.streams.video[0]
    if stream.codec_context is None or stream.codec_context.name not in _CODECS.split(","):
        raise Refused(f"holds a stream of a kind that is not decoded; use one of {_CODECS}")
    stream.codec_context.thread_count = 1
    return opened, stream


def _describe(file: BinaryIO, container: str, limits: dict[str, Any]) -> dict[str, Any]:
    """Frames as they are counted, not as the header says; frames per second; size before rotation."""
    opened, stream = _open(file, container)
    with opened:
        width, height, rate = stream.codec_context.width, stream.codec_context.height, stream.average_rate
        _check_size(width, height, limits)
        if not rate or rate <= 0:
            raise Refused("declares no frame rate")
        num_frames = 0
        for packet in opened.demux(stream):
            if packet.is_corrupt:
                raise Refused(f"truncated or broken behind frame {num_frames}")
            num_frames += bool(packet.size) and not packet.is_discard
            if num_frames > limits["max_frames"]:
                raise Refused(f"holds over {limits['max_frames']:,} frames; cut it")
    return {"num_frames": num_frames, "fps": float(rate), "width": width, "height": height}


def _check_size(width: int, height: int, limits: dict[str, Any]) -> None:
    if min(width, height) < 1:
        raise Refused(f"declares {width} x {height} pixels")
    if width * height > limits["max_pixels"] or max(width, height) > limits["max_side"]:
        bounds = f"{limits['max_pixels']:,} pixels and {limits['max_side']:,} a side"
        raise Refused(f"{width} x {height} pixels is over the limit of {bounds}; resize it")


def _send(file: BinaryIO, container: str, wanted: list[int], described: dict[str, Any], limits: dict[str, Any]) -> None:
    """The frames at these places, which increase."""
    opened, stream = _open(file, container)
    left, size = iter(wanted), (described["width"], described["height"])
    place, decoded = next(left), 0
    with opened:
        for index, frame in enumerate(opened.decode(stream)):
            decoded = index + 1
            if (frame.width, frame.height) != size:
                raise Refused(f"changes its size from {size[0]} x {size[1]} to {frame.width} x {frame.height} pixels")
            if index == place:
                # A camera that was held upright says by how much to turn, counted against the clock.
                pixels = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90) % 4)
                _say({"shape": pixels.shape[:2]}, np.ascontiguousarray(pixels).tobytes())
                place = next(left, None)
                if place is None:
                    return
    raise Refused(f"truncated or broken: {decoded} of {described['num_frames']} frames can be decoded")


def _say(reply: dict[str, Any], pixels: bytes = b"") -> None:
    sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n" + pixels)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
