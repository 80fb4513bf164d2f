"""What the families share: the finished drawing, colours, fonts, exactly centred glyphs and smooth edges."""

import io
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]

INK: Colour = (34, 34, 34)
GREY: Colour = (150, 150, 150)
PALE: Colour = (230, 230, 230)
RED: Colour = (219, 40, 40)
BLUE: Colour = (33, 90, 210)
GREEN: Colour = (38, 150, 72)
ORANGE: Colour = (240, 145, 20)
PURPLE: Colour = (128, 62, 170)
TEAL: Colour = (20, 150, 160)

OVERSAMPLING = 4  # Lines and outlines are drawn this much larger and shrunk, for smooth edges.


@dataclass(frozen=True, slots=True)
class Drawing:
    """One problem as a family draws it: an RGB image, the question, the reasoning and the answer."""

    image: Image.Image
    problem: str
    reasoning: str
    answer: str


@lru_cache(maxsize=64)
def font(size: int) -> ImageFont.FreeTypeFont:
    """Pillow's bundled outline font at `size` pixels."""
    return ImageFont.load_default(size)


@lru_cache(maxsize=512)
def glyph(text: str, size: int, weight: float = 0) -> Image.Image:
    """Mask of `text`, cut to its ink; `weight` thickens the strokes, in pixels."""
    # Drawn with room on every side and cut afterwards: a fractional weight reaches beyond the box that Pillow gives.
    width = round(font(size).getlength(text)) + 2 * size
    mask = Image.new("L", (width, 3 * size), 0)
    ImageDraw.Draw(mask).text((size, size), text, 255, font(size), stroke_width=weight)
    return mask.crop(mask.getbbox())


def put(image: Image.Image, mask: Image.Image, centre: tuple[float, float], colour: Colour = INK) -> None:
    """Paint `colour` through `mask`, its middle on `centre` (pixels), kept inside the image."""
    corner = [
        min(max(round(middle - length / 2), 0), limit - length)
        for middle, length, limit in zip(centre, mask.size, image.size, strict=True)
    ]
    image.paste(colour, tuple(corner), mask)


def shrink(image: Image.Image) -> Image.Image:
    """A image drawn `OVERSAMPLING` times too large, at its final size."""
    return image.reduce(OVERSAMPLING)


def png_bytes(image: Image.Image) -> bytes:
    """The image as PNG; a low compression level, since thousands are written."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
