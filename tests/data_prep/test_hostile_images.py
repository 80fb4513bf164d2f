"""Pictures cannot explode: bombs cost neither time nor memory, damage is an error, odd honest ones come out right."""

import io
import json
import os
import random
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms

from data_prep.images.opening import ImageError, open_image

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
PNG = b"\x89PNG\r\n\x1a\n"


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    return chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0))


def png(*chunks: bytes, pixels: bytes = b"") -> bytes:
    return PNG + b"".join(chunks) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def frame(width: int, height: int) -> bytes:
    """The frame header of a JPEG."""
    return b"\xff\xc0" + struct.pack(">HBHHB", 11, 8, height, width, 1) + b"\x01\x11\x00"


def webp(canvas: tuple[int, int], *chunks: tuple[bytes, bytes], flags: int = 0) -> bytes:
    """A WEBP in the extended format that declares a canvas."""
    sides = b"".join((side - 1).to_bytes(3, "little") for side in canvas)
    parts = [(b"VP8X", bytes([flags, 0, 0, 0]) + sides), *chunks]
    body = b"WEBP" + b"".join(name + struct.pack("<I", len(data)) + data + bytes(len(data) % 2) for name, data in parts)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def half_red(width: int = 40, height: int = 20) -> Image.Image:
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height))
    return image


def frames_of(image_format: str, side: int, number: int) -> bytes:
    shades = [Image.new("L", (side, side), 50 * index) for index in range(number)]
    return encoded(shades[0], image_format, save_all=True, append_images=shades[1:])


def bombs() -> dict[str, bytes]:
    """Small files that ask for much."""
    lossless = encoded(half_red(), "WEBP", lossless=True)[12:]
    huge_text = zlib.compress(bytes(50_000_000))
    return {
        "1-bit PNG": png(header(13_000, 13_000, 1, 0), pixels=bytes((13_000 // 8 + 1) * 13_000)),
        "RGB PNG": png(header(16_000, 16_000), pixels=bytes(100)),
        "PNG of allowed sides": png(header(8000, 8000), pixels=bytes(24_001 * 100)),
        "PNG of the largest sides": png(header(2**31 - 1, 2**31 - 1)),
        "APNG": frames_of("PNG", 1000, 5),
        "GIF": frames_of("GIF", 1000, 3),
        "WEBP animation": frames_of("WEBP", 1000, 5),
        "WEBP canvas": webp((16_384, 16_384), (b"VP8L", lossless[8:])),
        "TIFF": encoded(Image.new("1", (9000, 9000)), "TIFF", compression="group4"),
        "MPO": frames_of("MPO", 500, 4),
        "zTXt chunk": png(header(8, 8, 8, 0), chunk(b"zTXt", b"a\0\0" + huge_text), pixels=bytes(72)),
        "iTXt chunk": png(header(8, 8, 8, 0), chunk(b"iTXt", b"a\0\1\0\0\0" + huge_text), pixels=bytes(72)),
        "ICC chunk": png(header(8, 8, 8, 0), chunk(b"iCCP", b"a\0\0" + huge_text), pixels=bytes(72)),
        "1 x N": png(header(1, 8000, 8, 0), pixels=bytes(16_000)),
        "N x 1": png(header(8000, 1, 8, 0), pixels=bytes(8001)),
        "0 x 0": png(header(0, 0)),
        "PNG that declares its size twice": png(header(8, 8), header(16_000, 16_000), pixels=bytes(200)),
        "JPEG that declares its size twice": b"\xff\xd8" + frame(8, 8) + frame(60_000, 60_000) + bytes(50),
        "WEBP whose frame is larger than its canvas": webp((8, 8), (b"VP8L", b"\x2f" + struct.pack("<I", 2**28 - 1))),
        "JPEG": b"\xff\xd8" + frame(60_000, 60_000) + bytes(50),
        "PNG that ends before it begins": PNG + header(16_000, 16_000) + chunk(b"IEND", b"") + bytes(1_000_000),
        "PNG with a million chunks": PNG + header(8, 8) + chunk(b"tEXt", b"a\0b") * 1_000_000,
        "JPEG with a million segments": b"\xff\xd8" + frame(8, 8) + b"\xff\xfe\0\2" * 1_000_000,
        "JPEG with ten thousand scans": many_scans(10_000),
    }


def many_scans(number: int) -> bytes:
    """A progressive JPEG whose last pass over all its pixels is there so often; 50 of them take a second."""
    data = encoded(Image.new("L", (4000, 4000)), "JPEG", progressive=True)
    start = data.rindex(b"\xff\xda")
    return data[:start] + data[start:-2] * number + data[-2:]


# A fork for each file: peak memory never goes down again, and what an earlier file took would hide a later one's.
MEASURE = """
import json, os, resource, sys, time
from pathlib import Path
from data_prep.images.opening import ImageError, open_image
def megabytes(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
def look(data):
    started = time.process_time()
    try:
        open_image(data)
        outcome = "opened"
    except ImageError as error:
        outcome = str(error)
    return outcome, time.process_time() - started
folder = Path(sys.argv[1])
for name in ("PNG", "JPEG", "WEBP"):
    open_image(folder / f"warm.{name}")
found = {}
for path in sorted(folder.glob("file*")):
    if not os.fork():
        data = path.read_bytes()
        before = megabytes()
        look(data)
        growth = megabytes() - before
        # The second look: the first one loads whatever part of Pillow had no use so far.
        (folder / f"found.{path.name}").write_text(json.dumps([*look(data), growth]))
        os._exit(0)
    assert os.wait()[1] == 0, path
    found[path.name] = json.loads((folder / f"found.{path.name}").read_text())
print(json.dumps(found))
"""


def measured(folder: Path, files: dict[str, bytes]) -> dict[str, tuple[str, float, float]]:
    """What `open_image` said of each file, its CPU seconds, and the MB by which the process grew meanwhile."""
    for name in ("PNG", "JPEG", "WEBP"):
        (folder / f"warm.{name}").write_bytes(encoded(half_red(400, 400), name))
    for number, data in enumerate(files.values()):
        (folder / f"file{number:02d}").write_bytes(data)
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", MEASURE, str(folder)],
        # Memory that is given back leaves the process, so it cannot be taken a second time unseen.
        env=os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return dict(zip(files, json.loads(done.stdout).values(), strict=True))


def test_every_bomb_is_refused_in_50_ms_and_20_megabytes(tmp_path):
    made = bombs()
    assert len(made) >= 12 and max(map(len, made.values())) < 20 * 2**20
    # The largest that is allowed, last of all, shows that growth would be seen: 16.7 Mpixel of three bytes.
    honest = png(header(4175, 4000, 1, 0), pixels=bytes((4175 // 8 + 2) * 4000))
    found = measured(tmp_path, made | {"honest": honest})
    outcome, _, growth = found.pop("honest")
    assert outcome == "opened" and growth > 3 * 16.7 * 1e6 / 2**20
    # Of a photograph with further images only the first is decoded, so it may cost no more than the others.
    assert {name: outcome for name, (outcome, _, _) in found.items() if outcome == "opened"} == {"MPO": "opened"}
    assert {name: seconds for name, (_, seconds, _) in found.items() if seconds > 0.05} == {}
    assert {name: growth for name, (_, _, growth) in found.items() if growth > 20} == {}


# ---- damage ----------------------------------------------------------------------------------------------------


def honest_files() -> list[bytes]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 64, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    return [
        encoded(half_red(64, 48)),
        encoded(noise),
        encoded(noise.convert("P")),
        encoded(noise.convert("LA")),
        encoded(noise, "JPEG", quality=80, exif=exif),
        encoded(noise, "JPEG", progressive=True),
        encoded(noise.convert("CMYK"), "JPEG"),
        encoded(noise, "WEBP", lossless=True),
        encoded(noise, "WEBP", quality=60, exif=exif),
    ]


def mutated(rng: random.Random, sources: list[bytes]) -> bytes:
    """One of the files with bits flipped, bytes cut, doubled or zeroed, or the head of another."""
    data = bytearray(rng.choice(sources))
    for _ in range(rng.randint(1, 6)):
        at = rng.randrange(len(data))
        match rng.randrange(6):
            case 0:
                data[at] ^= 1 << rng.randrange(8)
            case 1:
                # Where the header says how large the image is.
                data[rng.randrange(min(64, len(data)))] = rng.randrange(256)
            case 2:
                del data[max(at, 8) :]
            case 3:
                del data[at : at + rng.randint(1, 20)]
            case 4:
                data[at:at] = data[at : at + rng.randint(1, 40)]
            case 5:
                head = rng.choice(sources)[: rng.randint(1, 60)]
                data[: len(head)] = head
        if not data:
            return b""
    return bytes(data)


def check_mutants(number: int, seed: int) -> None:
    rng, sources = random.Random(seed), honest_files()
    outcomes = {"RGB": 0, "refused": 0}
    for index in range(number):
        data = mutated(rng, sources)
        started = time.process_time()
        try:
            outcome = open_image(data).mode
        except ImageError:
            outcome = "refused"
        assert time.process_time() - started < 1, f"file {index}"
        outcomes[outcome] += 1
    assert set(outcomes) == {"RGB", "refused"}
    assert min(outcomes.values()) > number / 20


def test_mutated_files_are_decoded_or_refused_within_a_second():
    check_mutants(200, seed=0)


@pytest.mark.full
def test_two_thousand_mutated_files_are_decoded_or_refused_within_a_second():
    check_mutants(2000, seed=1)


# ---- odd but honest --------------------------------------------------------------------------------------------

LEFT, RIGHT = (10, 10), (30, 10)


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def palette_with_clear_left() -> Image.Image:
    image = Image.new("P", (40, 20), 0)
    image.putpalette([9, 9, 9, *BLUE])
    image.paste(1, (20, 0, 40, 20))
    return image


def clear_left() -> Image.Image:
    image = half_red().convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, 20, 20))
    return image


def grey_ramp(mode: str) -> Image.Image:
    """Black on the left, white on the right."""
    if mode == "I;16":
        return Image.fromarray(np.repeat([[0] * 20 + [65535] * 20], 20, axis=0).astype(np.uint16))
    image = Image.new("L", (40, 20), 0)
    image.paste(255, (20, 0, 40, 20))
    return image.convert(mode)


BLACK = (0, 0, 0)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# name: (bytes, size, where and which colour, how far a channel may be off)
ODD = {
    "CMYK JPEG": (encoded(half_red().convert("CMYK"), "JPEG", quality=95), (40, 20), RED, BLUE, 12),
    "grey JPEG": (encoded(grey_ramp("L"), "JPEG", quality=95), (40, 20), BLACK, WHITE, 4),
    "progressive JPEG": (encoded(half_red(), "JPEG", progressive=True, quality=95), (40, 20), RED, BLUE, 12),
    "JPEG without chroma sampling": (encoded(half_red(), "JPEG", subsampling=0, quality=95), (40, 20), RED, BLUE, 12),
    "JPEG with trailing bytes": (encoded(half_red(), "JPEG", quality=95) + bytes(999), (40, 20), RED, BLUE, 12),
    "JPEG with comment and profile": (
        encoded(half_red(), "JPEG", quality=95, comment=b"x" * 60_000, icc_profile=SRGB), (40, 20), RED, BLUE, 12,
    ),
    "16-bit grey PNG": (encoded(grey_ramp("I;16")), (40, 20), BLACK, WHITE, 0),
    "1-bit PNG": (encoded(grey_ramp("1")), (40, 20), BLACK, WHITE, 0),
    "grey PNG": (encoded(grey_ramp("L")), (40, 20), BLACK, WHITE, 0),
    "palette PNG": (encoded(half_red().convert("P", palette=Image.Palette.ADAPTIVE)), (40, 20), RED, BLUE, 0),
    "palette PNG with a clear colour": (encoded(palette_with_clear_left(), transparency=0), (40, 20), WHITE, BLUE, 0),
    "RGB PNG with a clear colour": (encoded(half_red(), transparency=RED), (40, 20), WHITE, BLUE, 0),
    "RGBA PNG": (encoded(clear_left()), (40, 20), WHITE, BLUE, 0),
    "grey PNG with alpha": (encoded(grey_ramp("LA")), (40, 20), BLACK, WHITE, 0),
    "PNG with text and profile": (encoded(half_red(), icc_profile=SRGB, dpi=(72, 72)), (40, 20), RED, BLUE, 0),
    "lossless WEBP": (encoded(half_red(), "WEBP", lossless=True), (40, 20), RED, BLUE, 0),
    "lossy WEBP": (encoded(half_red(), "WEBP", quality=95), (40, 20), RED, BLUE, 24),
    "WEBP with alpha": (encoded(clear_left(), "WEBP", lossless=True), (40, 20), WHITE, BLUE, 0),
    # 3: upside down. 2: mirrored. 4: mirrored upside down. So left and right change places in 2 and 3.
    "upside-down JPEG": (encoded(half_red(), "JPEG", quality=95, exif=turned(3)), (40, 20), BLUE, RED, 12),
    "mirrored PNG": (encoded(half_red(), exif=turned(2)), (40, 20), BLUE, RED, 0),
    "flipped PNG": (encoded(half_red(), exif=turned(4)), (40, 20), RED, BLUE, 0),
    "PNG with trailing bytes": (encoded(half_red()) + bytes(200_000), (40, 20), RED, BLUE, 0),
    "PNG without a turn": (encoded(half_red(), exif=turned(1)), (40, 20), RED, BLUE, 0),
    "PNG with a turn that does not exist": (encoded(half_red(), exif=turned(9)), (40, 20), RED, BLUE, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_an_odd_but_honest_picture_comes_out_right(name):
    data, size, left, right, slack = ODD[name]
    opened = open_image(data)
    assert (opened.mode, opened.size) == ("RGB", size)
    gaps = np.abs(np.array([opened.getpixel(LEFT), opened.getpixel(RIGHT)]) - np.array([left, right]))
    assert gaps.max() <= slack


@pytest.mark.parametrize(("orientation", "top"), [(5, RED), (6, RED), (7, BLUE), (8, BLUE)])
def test_a_picture_on_its_side_is_stood_up(orientation, top):
    # 6: turn clockwise to show, so the left half goes to the top; 8: the other way; 5 and 7: mirrored too.
    opened = open_image(encoded(half_red(), exif=turned(orientation)))
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 10)) == top


def test_a_picture_of_one_pixel_is_a_picture():
    assert open_image(encoded(Image.new("RGB", (1, 1), RED))).tobytes() == bytes(RED)


def test_a_broken_picture_is_one_error_of_ours():
    with pytest.raises(ImageError):
        open_image(encoded(half_red())[:50])
