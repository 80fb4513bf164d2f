"""Where the tests for a GPU run: there, or with TEST_DEVICE=cpu, in small sizes, on a machine that has none."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest
import torch

# Before anything starts cuBLAS: what it does with its work space decides whether sums come out the same twice.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
if torch.cuda.is_available():
    # All other tests are for the CPU, and tests/conftest.py says so to DeepSpeed.
    os.environ.pop("DS_ACCELERATOR", None)
# The models of real size that the measurements build.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "measurements"))


@pytest.fixture
def device() -> torch.device:
    """The device under test; skips where there is none."""
    wanted = os.environ.get("TEST_DEVICE", "cuda")
    if wanted == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    if wanted == "cpu" and torch.cuda.is_available():
        # Our own code computes on the GPU that it finds.
        pytest.skip("TEST_DEVICE=cpu needs CUDA_VISIBLE_DEVICES= on a machine with a GPU")
    return torch.device(wanted)


@pytest.fixture
def restored(monkeypatch):
    """ZeRO-3 puts its own linear layer in the place of torch's, for good; afterwards it is torch's again."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)
