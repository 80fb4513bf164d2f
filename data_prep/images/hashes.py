"""Two hashes of a decoded image: one that any changed pixel changes, one that a re-saved image keeps.

Not covered: crops, rotations and mirror images have other hashes.
"""

import hashlib
from functools import cache

import numpy as np
from PIL import Image

NUM_BITS = 256
# Hamming distance up to which two images count as nearly the same. Measured on 687 real images (Geometry3K
# diagrams, MATH-Vision, DynaMath, puzzles): saved again as JPEG of quality 50 to 95, or at half, three quarters or
# twice the size, 99 % moved at most 12 bits and one of 4,122 more than 20. Of the 235,627 pairs of different images
# 28 lie within 20, and all show the same figure: 23 one drawing (copies, other letters, points drawn on), 5 one
# template with other numbers. From 24 bits on unrelated images on the same axes pair up.
NEAR_LIMIT = 20

_SIDE = 64
_NUM_WAVES = 16
_PAIRS_AT_ONCE = 2**25


def pixel_hash(image: Image.Image) -> str:
    """SHA-256, in hex, of an RGB picture's size and pixels: equal for the same pixels in any file format."""
    return hashlib.sha256(b"%d x %d:" % image.size + image.tobytes()).hexdigest()


def perceptual_hash(image: Image.Image) -> bytes:
    """`NUM_BITS` bits of the image's coarse form, packed: which of its 16 x 16 longest cosine waves are strong.

    The usual pHash keeps 8 x 8 of 32 x 32; line drawings on white need the finer grid to be told apart.
    """
    grey = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float64)
    # Rounded, or the waves that a blank or symmetric image does not have would be bits of rounding noise.
    strengths = (_cosines() @ grey @ _cosines().T).round(3).ravel()
    return np.packbits(strengths > np.median(strengths[1:])).tobytes()


def nearest(hashes: list[bytes], others: list[bytes], *, same: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """For each of N perceptual hashes the place of the nearest of M others and its distance in bits.

    Args:
        hashes: N packed hashes.
        others: M packed hashes, M >= 1 (>= 2 when `same`).
        same: `others` is `hashes` itself, and a hash is not its own neighbour.
    Returns:
        [N] int64 places in `others`; [N] int64 distances, 0 to `NUM_BITS`.
    """
    left, right = _signs(hashes), _signs(others)
    places, distances = np.zeros(len(hashes), np.int64), np.zeros(len(hashes), np.int64)
    step = max(1, _PAIRS_AT_ONCE // len(others))
    for start in range(0, len(hashes), step):
        agreement = left[start : start + step] @ right.T  # same bits - different bits
        rows = np.arange(len(agreement))
        if same:
            agreement[rows, start + rows] = -np.inf
        best = agreement.argmax(axis=1)
        places[start : start + step] = best
        distances[start : start + step] = (NUM_BITS - agreement[rows, best]) / 2
    return places, distances


@cache
def _cosines() -> np.ndarray:
    """[16, 64] the longest waves of the discrete cosine transform."""
    return np.cos(np.pi / _SIDE * np.outer(np.arange(_NUM_WAVES), np.arange(_SIDE) + 0.5))


def _signs(hashes: list[bytes]) -> np.ndarray:
    """[N, 256] float32 of +1 and -1."""
    packed = np.frombuffer(b"".join(hashes), np.uint8).reshape(len(hashes), NUM_BITS // 8)
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1
