"""Videos: the frames that are asked for come out; what is hostile is one sentence, in bounded time and memory."""

import io
import os
import struct
import sys
import time
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data_prep.images.opening import resolve_image_path
from data_prep.schema import DataError, RowError
from data_prep.videos.opening import VideoError, VideoLimits, glance, open_frames, read_frames, read_video
from tests.video_files import STEP, grey_frames, noisy_frames, video

LIMITS = VideoLimits(timeout=30)
GREY = video(grey_frames(20), fps=10)


def levels(source, places, limits=LIMITS):
    """The mean level of the frames at these places, in steps."""
    info, means = read_frames(source, lambda info: places, lambda frame: float(frame.mean()), limits)
    return info, [round(mean / STEP) for mean in means]


@pytest.mark.parametrize(
    ("container", "codec"),
    [("mp4", "libx264"), ("mov", "mpeg4"), ("matroska", "libx264"), ("webm", "libvpx-vp9"), ("avi", "mjpeg")],
)
def test_the_frames_at_the_places_that_are_asked_for_come_out(container, codec):
    data = video(grey_frames(12), 5, container, codec)
    info, found = levels(data, [0, 3, 7, 11])
    assert found == [0, 3, 7, 11]
    assert (info.num_frames, info.width, info.height) == (12, 64, 48)
    # AVI and Matroska may leave the last frame's length open.
    assert info.fps == pytest.approx(5, rel=0.1)


def test_frames_between_others_in_time_come_in_the_order_of_time():
    """B-frames are stored behind frames that are shown later."""
    data = video(grey_frames(24), 24, "mp4", "libx264", bf="3", g="24")
    assert levels(data, list(range(24)))[1] == list(range(24))


def test_a_rate_that_is_no_whole_number_is_kept():
    info, _ = levels(video(grey_frames(6), Fraction(30000, 1001)), [0])
    assert info.fps == pytest.approx(29.97, abs=0.01)


def test_a_file_a_table_cell_and_bytes_give_the_same(tmp_path):
    file = tmp_path / "a.mp4"
    file.write_bytes(GREY)
    assert levels(file, [0, 19]) == levels(GREY, [0, 19])
    assert read_video(file) == GREY


def test_a_video_that_was_filmed_upright_is_upright():
    """The header of an MP4 says how to turn its frames: the matrix of its track, here a quarter turn."""
    turned = bytearray(video([half for half in [np.zeros((32, 64, 3), np.uint8)] for _ in range(4)]))
    at = turned.index(b"tkhd") + 4 + 40
    one, zero = 1 << 16, 0
    turned[at : at + 36] = struct.pack(">9i", zero, one, zero, -one, zero, zero, 32 << 16, zero, 1 << 30)
    frame = read_frames(bytes(turned), lambda info: [0], lambda frame: frame)[1][0]
    assert frame.shape == (64, 32, 3)


def test_a_glance_shows_the_first_and_the_last_frame():
    means = [round(np.asarray(image).mean() / STEP) for image in glance(GREY, 3, LIMITS)]
    assert means == [0, 10, 19]
    frames = tuple(_png(frame) for frame in grey_frames(3))
    assert [np.asarray(image)[0, 0, 0] for image in glance(frames, 2)] == [0, 2 * STEP]


def _png(frame) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(frame).save(stream, "PNG")
    return stream.getvalue()


def test_frames_of_a_list_have_one_size():
    with pytest.raises(VideoError, match="different sizes"):
        open_frames((_png(grey_frames(1)[0]), _png(grey_frames(1, width=32)[0])))
    with pytest.raises(VideoError, match="give 1 to"):
        open_frames(())
    with pytest.raises(DataError, match="not a PNG"):
        open_frames((b"GIF89a",))
    # Refused when the first is open: the others would be seven gigabytes.
    with pytest.raises(VideoError, match="640 x 640 pixels each is over the limit of 536,870,912 pixels"):
        open_frames(6000 * (_png(grey_frames(1, 640, 640)[0]),))


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("faststart", [False, True])
def test_a_truncated_file_is_one_sentence(share, faststart):
    whole = video(noisy_frames(20), 10, movflags="faststart") if faststart else GREY
    with pytest.raises(VideoError, match=r"video of .* bytes: (truncated|not an MP4|holds no|declares)"):
        levels(whole[: int(share * len(whole))], [0, 19])


def test_bits_that_fell_over_give_frames_or_one_sentence():
    for seed in range(3):
        broken = bytearray(video(noisy_frames(8), 10))
        for at in np.random.default_rng(seed).integers(0, len(broken), 60):
            broken[at] ^= 1 << (at % 8)
        try:
            _, found = read_frames(bytes(broken), lambda info: [0], lambda frame: frame.shape, LIMITS)
            assert len(found) == 1
        except VideoError as error:
            assert "\n" not in str(error)


PLAYLISTS = {
    "hls": "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "concat": "ffconcat version 1.0\nfile /etc/passwd\n",
    "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "dash": "<?xml version='1.0'?><MPD xmlns='urn:mpeg:dash:schema:mpd:2011'><BaseURL>http://127.0.0.1/</BaseURL></MPD>",
    "gif": "GIF89a" + "\0" * 40,
    "text": "a question",
}


@pytest.mark.parametrize("kind", PLAYLISTS)
def test_a_playlist_and_other_kinds_are_no_video(kind, tmp_path):
    file = tmp_path / "a.mp4"
    file.write_text(PLAYLISTS[kind])
    with pytest.raises(VideoError, match="not an MP4, MOV, MKV, WebM or AVI"):
        levels(file, [0])


def test_no_file_and_no_socket_can_be_opened_where_a_video_is_decoded(tmp_path):
    """The process itself says so: its limit of open files is 0 once the video is open."""
    script = tmp_path / "decoder.py"
    lines = ["import sys, socket", f"sys.path.insert(0, {str(Path('data_prep/videos').resolve())!r})", "import decoder"]
    lines += ["decoder._confine({'max_memory': 2**32, 'timeout': 5})"]
    for attempt in ("open('/etc/hostname')", "socket.socket()"):
        lines += ["try:", f"    {attempt}", "    print('opened')", "except OSError as error:", "    print(error.errno)"]
    script.write_text("\n".join(lines))
    import subprocess

    said = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60).stdout.split()
    assert said == ["24", "24"]


def test_frames_as_large_as_a_wall_are_refused_before_they_are_decoded():
    frame_header = b"\xff\xc0\x00\x11\x08"
    data = video(grey_frames(2), 10, "avi", "mjpeg").replace(
        frame_header + struct.pack(">HH", 48, 64), frame_header + struct.pack(">HH", 16_000, 16_000)
    )
    started = time.process_time()
    with pytest.raises(VideoError, match=r"16000 x 16000 pixels is over the limit|broken"):
        levels(data, [0])
    with pytest.raises(VideoError, match="9008 x 16 pixels is over the limit of 16,700,000 pixels and 8,192 a side"):
        levels(video(grey_frames(2, width=9008, height=16), 10), [0])
    assert time.process_time() - started < 5
    with pytest.raises(VideoError, match="64 x 48 pixels is over the limit of 1,000 pixels"):
        levels(GREY, [0], replace(LIMITS, max_pixels=1000))


def test_a_bomb_of_frames_is_refused_when_they_are_counted():
    with pytest.raises(VideoError, match="holds over 10 frames"):
        levels(GREY, [0], replace(LIMITS, max_frames=10))


def test_a_video_that_takes_too_long_is_killed():
    with pytest.raises(VideoError, match=r"not decoded within 0\.02 s"):
        levels(GREY, [0], replace(LIMITS, timeout=0.02))


def test_a_video_that_wants_too_much_memory_ends_with_a_sentence():
    large = video(grey_frames(2, width=1920, height=1080), 10)
    with pytest.raises(VideoError, match=r"decoder ended|broken|cannot be read"):
        levels(large, [0, 1], replace(LIMITS, max_memory=2**27))


def test_a_large_file_is_refused_unread(tmp_path):
    file = tmp_path / "a.mp4"
    with file.open("wb") as stream:
        stream.truncate(2**31)
    for limits in (LIMITS, replace(LIMITS, max_bytes=10)):
        with pytest.raises(VideoError, match="larger than"):
            levels(file, [0], limits)


def test_links_and_pipes_are_not_followed(tmp_path):
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(GREY)
    root = tmp_path / "data"
    root.mkdir()
    (root / "link.mp4").symlink_to(outside)
    with pytest.raises(RowError, match="leads out of the image folder through a link") as caught:
        resolve_image_path(root, "link.mp4", "videos")
    assert caught.value.field == "videos"
    with pytest.raises(VideoError, match="cannot be read"):
        levels(root / "link.mp4", [0])
    os.mkfifo(root / "pipe.mp4")
    with pytest.raises(VideoError, match="not a regular file"):
        levels(root / "pipe.mp4", [0])
    with pytest.raises(VideoError, match="cannot be read"):
        levels(root / "nothing.mp4", [0])


def test_sound_alone_is_no_video():
    import av

    stream = io.BytesIO()
    with av.open(stream, "w", format="mp4") as output:
        track = output.add_stream("aac", rate=16000)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 16000
        output.mux(track.encode(sound))
        output.mux(track.encode())
    with pytest.raises(VideoError, match="holds no video stream"):
        levels(stream.getvalue(), [0])
