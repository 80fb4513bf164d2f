"""Peak memory of an update against the sum of what must be there, by shape.

What must be there: weights, their gradients, both moments of AdamW, and what forward saves for backward, each storage
counted once. With gradient checkpointing, which makes the activations of a layer again in backward, also those of one
layer. The peak is that of the allocator over two forwards and backwards, whose gradients are added up, and the
optimizer's step: what kernels take for themselves is in it. Float32, tiny Qwen2.5-VL of the given width and depth, two
text prompts of some 400 tokens with the given completions each; each shape in a process of its own.

Usage: python measurements/update_memory.py [--out FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from kernels import policy_of, rows_of
from side_by_side import apart, use_one_thread, write_record

# Width, depth, and the tokens of each prompt's completions.
SHAPES = {
    "narrow, 8 x 128": (128, 8, [128] * 8),
    "narrow, 12 ragged": (128, 8, [20, 40, 10, 200, 30, 25, 60, 12, 14, 16, 33, 70]),
    "narrow, 4 x 512": (128, 8, [512] * 4),
    "wide, 8 x 128": (896, 2, [128] * 8),
    "wide, 12 ragged": (896, 2, [20, 40, 10, 200, 30, 25, 60, 12, 14, 16, 33, 70]),
}
CHUNK_SIZE = 384


def main() -> None:
    """Measure all shapes and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    results = {
        name + (", checkpointing" if recomputes else ""): apart(measure, *shape, recomputes)
        for name, shape in SHAPES.items()
        for recomputes in (False, True)
    }
    write_record("update_memory", results, arguments.out)


def measure(width: int, depth: int, own: list[int], recomputes: bool) -> dict[str, float]:
    """Megabytes of each part, of the peak, and the ratio of the peak to the sum of the parts."""
    import torch

    from vlm_mhpo.models.families.base import freeze

    policy, _ = policy_of(width, depth)
    # Two text prompts: the tower has no part in them but a blank image.
    freeze(policy.model, policy.family, vision_tower_frozen=True, projector_frozen=True)
    rows = rows_of(policy, [own, own])
    policy.train()

    def forward() -> Any:
        return policy(rows, temperature=1.0, chunk_size=CHUNK_SIZE)[0]

    saved, layer = saved_bytes(policy, forward), 0
    if recomputes:
        policy.model.gradient_checkpointing_enable({"use_reentrant": False})
        without, saved = saved, saved_bytes(policy, forward)
        layer = (without - saved) // depth
    learning = [weight for weight in policy.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(learning, fused=True)

    def update() -> None:
        for _ in range(2):
            forward().sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=False)

    # Gradients and moments exist from here on.
    update()
    weights, gradients = (sum(each.nbytes for each in some) for some in (policy.parameters(), learning))
    parts = {"weights": weights, "gradients": gradients, "moments": 2 * gradients, "saved": saved, "layer": layer}
    peak = weights + 3 * gradients + most_allocated(update)
    megabytes = {f"{name}_mb": round(size / 1e6, 2) for name, size in (parts | {"peak": peak}).items()}
    return megabytes | {"peak_over_sum": peak / sum(parts.values())}


def saved_bytes(policy: Any, forward: Callable[[], Any]) -> int:
    """What a forward keeps for its backward beside the weights: storages, each counted once."""
    import torch

    own = {weight.untyped_storage().data_ptr() for weight in policy.parameters()}
    found: dict[int, Any] = {}

    def pack(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # The storage is kept, or another one could get its place.
            found[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        forward()
    return sum(storage.nbytes() for storage in found.values())


def most_allocated(call: Callable[[], None]) -> int:
    """The most that the allocator gave beyond what it had given before."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        call()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    level = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        most = max(most, level)
    return most


if __name__ == "__main__":
    main()
