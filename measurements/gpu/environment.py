"""Step 1 on a GPU: what the figures depend on, and that everything which the other steps import is there.

Usage: python measurements/gpu/environment.py [--trial] [--out FILE]
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import time
from pathlib import Path

from side_by_side import use_one_thread, write_record

PACKAGES = ("torch", "torchvision", "triton", "transformers", "accelerate", "peft", "deepspeed", "trl", "datasets")
OURS = ("vlm_mhpo.training.run", "vlm_mhpo.training.warm_start", "vlm_mhpo.commands.quickstart", "rewards", "data_prep")
COPIED_BYTES = 2**30


def main() -> None:
    """Import, measure the device's rates, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trial", action="store_true", help="the same on any machine, with less to copy")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    begun = time.perf_counter()
    for name in (*PACKAGES, *OURS):
        importlib.import_module(name)
    imports_s = time.perf_counter() - begun
    import torch
    from deepspeed.accelerator import get_accelerator

    from vlm_mhpo.commands.profiling.rate import matmul_rate
    from vlm_mhpo.runtime import ranks

    ranks.start(1)
    device = ranks.device()
    results = {
        "imports_s": imports_s,
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "accelerator_of_deepspeed": get_accelerator().device_name(),
        "memory_gb": torch.cuda.get_device_properties(device).total_memory / 1e9 if device.type == "cuda" else None,
        "matmul_tflops_per_s": {
            str(dtype).removeprefix("torch."): matmul_rate(device, dtype) / 1e12
            for dtype in (torch.bfloat16, torch.float32)
        },
        "copy_gb_per_s": copy_rate(device, COPIED_BYTES // (64 if arguments.trial else 1)) / 1e9,
    }
    if results["accelerator_of_deepspeed"] != device.type:
        raise SystemExit(f"DeepSpeed computes on {results['accelerator_of_deepspeed']} and torch on {device.type}")
    write_record("gpu_environment", results, arguments.out)


def copy_rate(device: object, num_bytes: int) -> float:
    """Bytes a second that a copy within the device reads and writes; the fastest of ten."""
    import torch
    from side_by_side import wait_for_device

    source = torch.ones(num_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    taken = []
    for _ in range(10):
        wait_for_device()
        begun = time.perf_counter()
        target.copy_(source)
        wait_for_device()
        taken.append(time.perf_counter() - begun)
    return 2 * num_bytes / min(taken)


if __name__ == "__main__":
    main()
