"""How many FLOPs a second plain matrix products reach on this device: what the model's FLOPs are compared with."""

from __future__ import annotations

import time

import torch

# Large enough that starting a product costs nothing beside it, small enough to take part of a second.
SIZE = {"cuda": 8192, "cpu": 1024}


def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float = 0.5) -> float:
    """FLOPs a second of the fastest of repeated square products in `dtype`, with the threads that torch has now."""
    size = SIZE[device.type]
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    out = left @ right
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        wait(device)
        begun = time.perf_counter()
        torch.mm(left, right, out=out)
        wait(device)
        taken.append(time.perf_counter() - begun)
    return 2.0 * size**3 / min(taken)


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()
