"""Triangles drawn to scale: the missing angle, or the missing side of a right triangle.

Difficulty 1 uses angles in tens and small right triangles, 2 any whole angle and larger ones, 3 adds isosceles
triangles whose equal sides carry a tick.
"""

import math
import random
from collections.abc import Sequence

from PIL import Image, ImageDraw

from data_prep.synthetic.canvas import BLUE, INK, OVERSAMPLING, RED, Drawing, glyph, put, shrink

SIDE = 168
_LABEL_SIZE = 16
_SIDE_MARGIN, _ANGLE_MARGIN = 26, 8  # pixels round the triangle; labels of sides stand outside
_MIN_ANGLE = 40  # degrees: room for a label inside
_ARC = 14  # radius of an angle's arc, pixels
_GAP = 2  # between a label and a line, pixels
_EASY_TRIPLES = ((3, 4, 5), (6, 8, 10), (9, 12, 15), (5, 12, 13))
_TRIPLES = (*_EASY_TRIPLES, (8, 15, 17), (12, 16, 20), (15, 20, 25), (20, 21, 29), (10, 24, 26), (12, 35, 37))
_FILL = (240, 245, 255)

_Point = tuple[float, float]


def draw(rng: random.Random, difficulty: int) -> Drawing:
    """One triangle and its question."""
    kinds = [_third_angle, _right_side] + [_isosceles] * (difficulty == 3)
    return rng.choice(kinds)(rng, difficulty)


def _third_angle(rng: random.Random, difficulty: int) -> Drawing:
    step = 10 if difficulty == 1 else 1
    lowest = math.ceil(_MIN_ANGLE / step) * step
    first = rng.randrange(lowest, 180 - 2 * _MIN_ANGLE, step)
    second = rng.randrange(lowest, 180 - _MIN_ANGLE - first + 1, step)
    third = 180 - first - second
    corners = _placed(rng, _from_angles(first, second), _ANGLE_MARGIN)
    image = _outline(corners, arcs=(0, 1, 2))
    for corner, text in enumerate((f"{first}°", f"{second}°", "x")):
        _label_angle(image, corners, corner, text)
    return Drawing(image, "What is the angle x in degrees?", f"180 - {first} - {second}", str(third))


def _isosceles(rng: random.Random, difficulty: int) -> Drawing:
    base = rng.randint(_MIN_ANGLE, 70)
    apex = 180 - 2 * base
    corners = _placed(rng, _from_angles(base, base), _ANGLE_MARGIN)
    image = _outline(corners, arcs=(0, 2), ticks=(0, 1))
    _label_angle(image, corners, 0, "x")
    _label_angle(image, corners, 2, f"{apex}°")
    return Drawing(image, "What is the angle x in degrees?", f"(180 - {apex}) / 2", str(base))


def _right_side(rng: random.Random, difficulty: int) -> Drawing:
    *legs, hypotenuse = rng.choice(_EASY_TRIPLES if difficulty == 1 else _TRIPLES)
    rng.shuffle(legs)
    # Side i lies opposite corner i; the right angle is at corner 0.
    lengths = [hypotenuse, *legs]
    corners = _placed(rng, [(0.0, 0.0), (legs[1], 0.0), (0.0, legs[0])], _SIDE_MARGIN)
    image = _outline(corners, right_angle=True)
    unknown = rng.randrange(3)
    for side, length in enumerate(lengths):
        _label_side(image, corners, side, "x" if side == unknown else str(length))
    known = [length for side, length in enumerate(lengths) if side != unknown]
    if unknown == 0:
        reasoning = f"{known[0]}^2 + {known[1]}^2 = {hypotenuse**2}"
    else:
        reasoning = f"{hypotenuse}^2 - {known[1]}^2 = {lengths[unknown] ** 2}"
    return Drawing(image, "What is the length x?", reasoning, str(lengths[unknown]))


def _from_angles(first: float, second: float) -> list[_Point]:
    """Corners of a triangle with base 1 and these base angles, degrees."""
    tan_first, tan_second = math.tan(math.radians(first)), math.tan(math.radians(second))
    if first == 90:
        return [(0.0, 0.0), (1.0, 0.0), (0.0, tan_second)]
    if second == 90:
        return [(0.0, 0.0), (1.0, 0.0), (1.0, tan_first)]
    x = tan_second / (tan_first + tan_second)
    return [(0.0, 0.0), (1.0, 0.0), (x, x * tan_first)]


def _placed(rng: random.Random, corners: Sequence[_Point], margin: int) -> list[_Point]:
    """The corners turned, perhaps mirrored, and scaled to fill the image inside its margin (pixels)."""
    turn, mirror = math.radians(rng.randrange(0, 360, 5)), rng.choice((-1, 1))
    turned = [
        (mirror * (x * math.cos(turn) - y * math.sin(turn)), x * math.sin(turn) + y * math.cos(turn))
        for x, y in corners
    ]
    lows = [min(point[axis] for point in turned) for axis in (0, 1)]
    spans = [max(point[axis] for point in turned) - lows[axis] for axis in (0, 1)]
    scale = (SIDE - 2 * margin) / max(spans)
    return [
        (
            SIDE / 2 + (x - lows[0] - spans[0] / 2) * scale,
            SIDE / 2 + (y - lows[1] - spans[1] / 2) * scale,
        )
        for x, y in turned
    ]


def _outline(
    corners: Sequence[_Point], *, arcs: Sequence[int] = (), ticks: Sequence[int] = (), right_angle: bool = False
) -> Image.Image:
    """The triangle with angle arcs at some corners, ticks on some sides, and a square at corner 0 if it is right."""
    zoom = OVERSAMPLING
    image = Image.new("RGB", (SIDE * zoom, SIDE * zoom), "white")
    pen = ImageDraw.Draw(image)
    big = [(x * zoom, y * zoom) for x, y in corners]
    pen.polygon(big, fill=_FILL)
    for corner in arcs:
        x, y = big[corner]
        angles = sorted(math.degrees(math.atan2(other[1] - y, other[0] - x)) for other in big if other != big[corner])
        start, end = angles if angles[1] - angles[0] < 180 else (angles[1], angles[0] + 360)
        radius = _ARC * zoom
        pen.arc((x - radius, y - radius, x + radius, y + radius), start, end, fill=RED, width=round(1.5 * zoom))
    if right_angle:
        first, second = (_towards(big[0], big[corner], 11 * zoom) for corner in (1, 2))
        far = (first[0] + second[0] - big[0][0], first[1] + second[1] - big[0][1])
        pen.line([first, far, second], fill=RED, width=round(1.5 * zoom))
    pen.line([*big, big[0], big[1]], fill=INK, width=2 * zoom, joint="curve")
    for side in ticks:
        pen.line(_tick(big, side), fill=BLUE, width=2 * zoom)
    return shrink(image)


def _towards(start: _Point, end: _Point, distance: float) -> _Point:
    share = distance / math.dist(start, end)
    return start[0] + (end[0] - start[0]) * share, start[1] + (end[1] - start[1]) * share


def _ends(corners: Sequence[_Point], side: int) -> tuple[_Point, _Point]:
    return corners[(side + 1) % 3], corners[(side + 2) % 3]


def _normal(corners: Sequence[_Point], side: int) -> tuple[_Point, _Point]:
    """(middle of a side, unit vector out of the triangle)."""
    start, end = _ends(corners, side)
    middle = ((start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    length = math.dist(start, end)
    x, y = (end[1] - start[1]) / length, (start[0] - end[0]) / length
    inwards = (corners[side][0] - middle[0]) * x + (corners[side][1] - middle[1]) * y > 0
    return middle, (-x, -y) if inwards else (x, y)


def _tick(corners: Sequence[_Point], side: int) -> list[_Point]:
    (x, y), (out_x, out_y) = _normal(corners, side)
    reach = 5 * OVERSAMPLING
    return [(x - reach * out_x, y - reach * out_y), (x + reach * out_x, y + reach * out_y)]


def _label_side(image: Image.Image, corners: Sequence[_Point], side: int, text: str) -> None:
    mask = glyph(text, _LABEL_SIZE)
    (x, y), out = _normal(corners, side)
    reach = _GAP + 3 + _extent(mask, out)
    put(image, mask, (x + reach * out[0], y + reach * out[1]))


def _label_angle(image: Image.Image, corners: Sequence[_Point], corner: int, text: str) -> None:
    """Put the label on the bisector, where its box first clears both sides and the arc."""
    mask, tip = glyph(text, _LABEL_SIZE), corners[corner]
    first, second = (_towards(tip, end, 1.0) for end in _ends(corners, corner))
    bisector = _towards(tip, ((first[0] + second[0]) / 2, (first[1] + second[1]) / 2), 1.0)
    # The chord between the unit vectors is twice the sine of half the angle.
    sine = math.dist(first, second) / 2
    normals = (_normal(corners, (corner + step) % 3)[1] for step in (1, 2))
    clear_of_sides = max((_GAP + _extent(mask, normal)) / sine for normal in normals)
    clear_of_arc = _ARC + _GAP + _extent(mask, (bisector[0] - tip[0], bisector[1] - tip[1]))
    put(image, mask, _towards(tip, bisector, max(clear_of_sides, clear_of_arc)))


def _extent(mask: Image.Image, direction: _Point) -> float:
    """How far a label's box reaches from its middle along a unit vector, pixels."""
    return (abs(direction[0]) * mask.width + abs(direction[1]) * mask.height) / 2
