"""Untrusted images: bombs are refused by their header, odd but honest ones come out right, paths stay inside."""

import io
import os
import random
import struct
import time
import tracemalloc
import zlib
from pathlib import Path

import pytest
from PIL import Image

from data_prep.images.opening import ImageError, ImageLimits, open_image, resolve_image_path
from data_prep.schema import RowError

RED, BLUE = (255, 0, 0), (0, 0, 255)


def encoded(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png(width: int, height: int, depth: int, colour: int, pixels: bytes, *extra: bytes) -> bytes:
    """A PNG put together by hand, so that its header can say anything."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(pixels)), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def with_red_left_half(width: int = 40, height: int = 20) -> Image.Image:
    image = Image.new("RGB", (width, height), BLUE)
    image.paste(RED, (0, 0, width // 2, height))
    return image


def frames(image_format: str) -> bytes:
    first, second = Image.new("RGB", (16, 16), RED), Image.new("RGB", (16, 16), BLUE)
    return encoded(first, image_format, save_all=True, append_images=[second])


BOMB = png(13_000, 13_000, 1, 0, bytes((13_000 // 8 + 1) * 13_000))
REFUSED = {
    "1-bit PNG bomb": (BOMB, "over the limit"),
    "RGB PNG bomb": (png(9_000, 9_000, 8, 2, b""), "over the limit"),
    # Each side is below 8,192, so only the limit of pixels is left to refuse it.
    "8,000 x 8,000 pixels": (png(8_000, 8_000, 8, 2, b""), "8000 x 8000 pixels is over the limit of 16,700,000 pixels"),
    "a line too many": (png(4_175, 4_001, 1, 0, b""), "4175 x 4001 pixels is over the limit of 16,700,000 pixels"),
    "long side": (png(8_193, 100, 8, 2, b""), "over the limit"),
    "thin line": (png(1, 201, 8, 0, bytes(402)), "thinner"),
    "empty": (png(0, 10, 8, 2, b""), "declares 0 x 10"),
    "WEBP bomb": (
        b"RIFF\x1e\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + (16_000).to_bytes(3, "little") * 2 + bytes(8),
        "over the limit",
    ),
    "JPEG bomb": (
        b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, 60_000, 60_000, 1) + bytes(20),
        "over the limit",
    ),
    "header larger than its data": (png(500, 500, 8, 2, bytes(10)), "truncated or broken PNG"),
    "GIF": (encoded(with_red_left_half(), "GIF"), "not a PNG, JPEG or WEBP"),
    "TIFF": (encoded(with_red_left_half(), "TIFF"), "not a PNG, JPEG or WEBP"),
    "BMP": (encoded(with_red_left_half(), "BMP"), "not a PNG, JPEG or WEBP"),
    "SVG": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not a PNG, JPEG or WEBP"),
    "animated PNG": (frames("PNG"), "several frames"),
    "animated WEBP": (frames("WEBP"), "several frames"),
    "truncated PNG": (encoded(with_red_left_half(400, 400), compress_level=0)[:5_000], "truncated or broken PNG"),
    "truncated JPEG": (encoded(Image.effect_noise((99, 99), 50), "JPEG")[:-2_000], "truncated or broken JPEG"),
    "truncated WEBP": (encoded(Image.effect_noise((99, 99), 50), "WEBP")[:-900], "truncated or broken WEBP"),
    "PNG signature only": (b"\x89PNG\r\n\x1a\n", "truncated or broken header"),
    "JPEG without a frame": (b"\xff\xd8" + b"\xff" * 100_000, "no JPEG frame header"),
    "endless JPEG segments": (b"\xff\xd8" + b"\xff\xe1\0\2" * 100_000, "no JPEG frame header"),
    "text chunk bomb": (
        png(8, 8, 8, 0, bytes(72), chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(20_000_000)))),
        "truncated or broken PNG",
    ),
    "nothing": (b"", "not a PNG, JPEG or WEBP"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_picture_is_refused_with_its_reason(name):
    data, reason = REFUSED[name]
    with pytest.raises(ImageError, match=reason):
        open_image(data)


@pytest.mark.parametrize("name", [name for name, (_, reason) in REFUSED.items() if "over the limit" in reason])
def test_a_bomb_is_refused_before_anything_is_decoded(name, monkeypatch):
    monkeypatch.setattr(Image, "open", lambda *_, **__: pytest.fail("Pillow was given the bomb"))
    started, _ = time.process_time(), tracemalloc.start()
    with pytest.raises(ImageError):
        open_image(REFUSED[name][0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert time.process_time() - started < 0.5
    assert peak < 2**20


# A white bit a pixel and a byte of filter a line: 4,175 x 4,000 are the 16.7 million pixels that are allowed.
@pytest.mark.parametrize(("width", "height"), [(4_175, 4_000), (8_192, 2_038)])
def test_the_largest_picture_that_is_allowed_is_opened(width, height):
    opened = open_image(png(width, height, 1, 0, (b"\0" + b"\xff" * -(-width // 8)) * height))
    assert opened.size == (width, height) and opened.getpixel((width - 1, height - 1)) == (255, 255, 255)


def test_a_file_of_20_mib_is_opened_and_one_of_a_byte_more_is_refused(tmp_path):
    data = encoded(with_red_left_half())
    data += bytes(20 * 2**20 - len(data))
    (tmp_path / "most.png").write_bytes(data)
    (tmp_path / "more.png").write_bytes(data + b"\0")
    for allowed, refused in ((data, data + b"\0"), (tmp_path / "most.png", tmp_path / "more.png")):
        assert open_image(allowed).size == (40, 20)
        with pytest.raises(ImageError, match="larger than 20,971,520 bytes"):
            open_image(refused)


def test_limits_are_inclusive_and_can_be_changed():
    data = encoded(Image.new("RGB", (30, 10)))
    assert open_image(data, ImageLimits(max_pixels=300, max_side=30, max_aspect=3)).size == (30, 10)
    for limits in (ImageLimits(max_pixels=299), ImageLimits(max_side=29), ImageLimits(max_aspect=2.9)):
        with pytest.raises(ImageError):
            open_image(data, limits)


def test_a_file_over_the_byte_limit_is_refused_unread(tmp_path):
    path = tmp_path / "large.png"
    path.write_bytes(encoded(with_red_left_half()) + bytes(1000))
    with pytest.raises(ImageError, match=r"large\.png: larger than 500 bytes"):
        open_image(path, ImageLimits(max_bytes=500))


def test_a_missing_file_a_folder_and_a_pipe_are_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for name in ("missing.png", "", "pipe.png"):
        with pytest.raises(ImageError):
            open_image(tmp_path / name)


def test_transparent_pixels_become_white_and_half_transparent_ones_a_mix():
    image = Image.new("RGBA", (3, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (255, 0, 0, 255))
    image.putpixel((2, 0), (0, 0, 0, 128))
    opened = open_image(encoded(image))
    assert opened.mode == "RGB"
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == RED
    # 255 * (1 - 128 / 255) = 127
    assert opened.getpixel((2, 0)) == (127, 127, 127)


def test_transparent_grey_and_palette_pixels_become_white_too():
    grey = Image.new("LA", (2, 1), (0, 0))
    grey.putpixel((1, 0), (100, 255))
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 0, 0, 255])
    palette.putpixel((1, 0), 1)
    opaque_blue = open_image(encoded(palette, transparency=0))
    assert open_image(encoded(grey)).tobytes() == bytes([255] * 3 + [100] * 3)
    assert opaque_blue.tobytes() == bytes([255, 255, 255, 0, 0, 255])


def test_sixteen_bit_grey_is_scaled_not_clipped():
    # One row of black, a quarter, half and white, big-endian after the row's filter byte.
    pixels = b"\0" + struct.pack(">4H", 0, 16_448, 32_896, 65_535)
    opened = open_image(png(4, 1, 16, 0, pixels))
    assert [opened.getpixel((x, 0)) for x in range(4)] == [(0,) * 3, (64,) * 3, (128,) * 3, (255,) * 3]


def test_one_bit_and_cmyk_and_progressive_pictures_keep_their_colours():
    bits = Image.new("1", (2, 1), 0)
    bits.putpixel((1, 0), 1)
    assert open_image(encoded(bits)).tobytes() == bytes([0, 0, 0, 255, 255, 255])
    pure_red = open_image(encoded(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95))
    progressive = open_image(encoded(Image.new("RGB", (16, 16), RED), "JPEG", progressive=True, quality=95))
    for image in (pure_red, progressive):
        red, green, blue = image.getpixel((8, 8))
        assert image.mode == "RGB" and red > 245 and green < 10 and blue < 10


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 95}, {"lossless": True, "exif": Image.Exif()}])
def test_every_kind_of_webp_is_read(options):
    opened = open_image(encoded(with_red_left_half(), "WEBP", **options))
    red, _, blue = opened.getpixel((5, 10))
    assert opened.size == (40, 20) and red > 230 and blue < 30


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_turns_the_picture_upright(image_format):
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate by 90 degrees clockwise to show": the left half ends up at the top
    opened = open_image(encoded(with_red_left_half(), image_format, exif=exif))
    assert opened.size == (20, 40)
    assert opened.getpixel((10, 5))[0] > 200 and opened.getpixel((10, 5))[2] < 60
    assert opened.getpixel((10, 35))[2] > 200 and opened.getpixel((10, 35))[0] < 60


def photograph(*images: Image.Image, **options) -> bytes:
    """What a phone writes: one JPEG with further images behind it."""
    return encoded(images[0], "MPO", save_all=True, append_images=list(images[1:]), **options)


def test_a_photograph_of_several_images_is_its_first():
    behind = Image.new("RGB", (20, 10), "blue")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    for shown, options in ((with_red_left_half(), {}), (with_red_left_half(), {"exif": exif})):
        data = photograph(shown, behind, behind, **options)
        with Image.open(io.BytesIO(data)) as image:
            assert (image.format, image.n_frames) == ("MPO", 3)
        alone = open_image(encoded(shown, "JPEG", **options))
        assert open_image(data).tobytes() == alone.tobytes()
        assert open_image(data).size == ((20, 40) if options else (40, 20))


def test_a_damaged_photograph_is_refused_or_read_and_its_limits_hold():
    data = photograph(with_red_left_half(), Image.new("RGB", (20, 10), "blue"))
    with pytest.raises(ImageError, match="over the limit"):
        open_image(data, ImageLimits(max_side=39))
    rng = random.Random(4)
    for _ in range(300):
        place = rng.randrange(3, len(data))
        for damaged in (data[:place], data[:place] + bytes([rng.randrange(256)]) + data[place + 1 :]):
            try:
                assert open_image(damaged).size == (40, 20)
            except ImageError:
                continue


def test_damaged_pictures_are_decoded_or_refused_but_never_crash():
    rng = random.Random(0)
    sources = [encoded(with_red_left_half(64, 48), name) for name in ("PNG", "JPEG", "WEBP")]
    outcomes = set()
    for _ in range(600):
        data = bytearray(rng.choice(sources))
        for _ in range(rng.randint(1, 8)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        del data[rng.randint(len(data) // 2, len(data)) :]
        try:
            outcomes.add(open_image(bytes(data)).mode)
        except ImageError:
            outcomes.add("refused")
    assert outcomes == {"RGB", "refused"}


@pytest.fixture
def image_root(tmp_path) -> Path:
    root = tmp_path / "root"
    (root / "images").mkdir(parents=True)
    (tmp_path / "secret.png").write_bytes(b"secret")
    (root / "images" / "a.png").write_bytes(b"picture")
    (root / "inside.png").symlink_to(root / "images" / "a.png")
    (root / "outside.png").symlink_to(tmp_path / "secret.png")
    (root / "up").symlink_to(tmp_path)
    (root / "loop.png").symlink_to(root / "loop.png")
    os.mkfifo(root / "pipe.png")
    return root


@pytest.mark.parametrize("reference", ["images/a.png", "./images/a.png", "inside.png"])
def test_a_path_inside_the_folder_is_found(image_root, reference):
    assert resolve_image_path(image_root, reference).read_bytes() == b"picture"


@pytest.mark.parametrize(
    "reference",
    [
        "../secret.png", "images/../../secret.png", "images/../images/a.png", "..\\secret.png", "/etc/passwd",
        "\\\\host\\share\\a.png", "C:\\a.png", "c:/a.png", "~/a.png", "~root/a.png", "outside.png", "up/secret.png",
        "up/root/../secret.png", "loop.png", "pipe.png", "images", "", " ", ".", "images/a.png\0.txt", "missing.png",
        "%2e%2e/secret.png", "http://host/a.png", "https://host/a.png", "HTTP:a.png", "ftp://host/a.png",
        "s3://bucket/a.png", "hf://datasets/a/b.png", "file:///etc/passwd", "file:a.png", "//host/a.png",
        "data:image/png;base64,AAAA", "zip://a.png::http://host/a.zip", "a" * 5000, "\ud800.png", "/dev/zero",
    ],
)  # fmt: skip
def test_a_path_that_leaves_the_folder_or_names_no_file_is_refused(image_root, reference):
    with pytest.raises(RowError) as caught:
        resolve_image_path(image_root, reference)
    assert caught.value.field == "images"
