"""Train and held-out sides that share no image: an image's side depends on its own pixels and on nothing else.

No seed: an image stays on its side when rows are added, removed or reordered. The held-out share of rows is
therefore only near the one asked for.
"""

import hashlib
from collections.abc import Sequence

TRAIN, HELDOUT = "train", "heldout"


def sides(pictures: Sequence[Sequence[str]], share: float) -> list[str]:
    """The side of each row.

    Args:
        images: [N] the hashes of each row's images, at least one (of its questions where it has no image). Rows
            that are linked through common images, also over other rows, go to the same side.
        share: of the images that are held out, 0 to 1.
    Returns:
        [N] "train" or "heldout".
    """
    parent = {name: name for names in pictures for name in names}
    for first, *others in pictures:
        for other in others:
            # The smaller name becomes the root, so that the root does not depend on the order of rows.
            low, high = sorted((_root(parent, first), _root(parent, other)))
            parent[high] = low
    return [HELDOUT if _lot(_root(parent, first)) < share else TRAIN for first, *_ in pictures]


def _root(parent: dict[str, str], name: str) -> str:
    while parent[name] != name:
        parent[name] = parent[parent[name]]
        name = parent[name]
    return name


def _lot(name: str) -> float:
    """A number in [0, 1) that depends on the name alone; hashed again, as the least of several is no fair lot."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
