"""Seeds as pure functions of what they are for, so that nothing random has to be saved."""

import hashlib

import numpy as np


def derive_seed(*parts: int | str) -> int:
    """A 64-bit seed that depends only on `parts` (their types and order included).

    Args:
        parts: what the randomness is for, for example `(run_seed, "rollout", step, prompt_id, completion_index)`.

    Returns:
        An integer in [0, 2**64).
    """
    # The length prefix keeps ("ab", "c") and ("a", "bc") apart; hash() would change with PYTHONHASHSEED.
    text = "".join(f"{type(part).__name__[0]}{len(str(part))}:{part}" for part in parts)
    return int.from_bytes(hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest(), "little")


def uniforms(seed: int, count: int) -> np.ndarray:
    """`count` uniform numbers in [0, 1), float64, of the counter-based Philox stream `seed`."""
    return np.random.Generator(np.random.Philox(key=seed)).random(count)


def permutation(seed: int, count: int) -> np.ndarray:
    """A permutation of `range(count)`, int64, decided by `seed` alone."""
    return np.random.Generator(np.random.Philox(key=seed)).permutation(count)
