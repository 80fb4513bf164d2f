"""What bfloat16 rounds away: sampler against trainer, and log-ratios, before and after float32 scores and products.

Tiny models whose logits reach 20 to 25 and whose keys have the offsets of real ones
(`tests/vlm_mhpo/bfloat16_cases.py`). "Before" is the same code with scores, or products of the head, rounded to the
weights' type again. Gaps are means over the sampled tokens, in nats; the truth is the stock model with the same weights
in float64.

Usage: python measurements/bfloat16_gaps.py [--out FILE]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from side_by_side import ROOT, use_one_thread, write_record

STEPS = (2e-4, 6e-4, 2e-3)


def main() -> None:
    """Measure, print both tables and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    sys.path.insert(0, str(ROOT))
    results = {"gaps": list(gaps()), "log_ratios": list(log_ratios())}
    for rows in results.values():
        print("\n| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
        for row in rows:
            print("| " + " | ".join(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()) + " |")
    write_record("bfloat16_gaps", results, arguments.out)


@contextmanager
def rounded(*names: str) -> Iterator[None]:
    """Round as before: "scores", "head", or both."""
    places = {
        "scores": ("vlm_mhpo.rollout.hf.shared_prefix.in_float32", lambda tensor: tensor),
        "head": ("vlm_mhpo.models.logprobs.product", lambda left, right: left @ right),
    }
    patches = [mock.patch(*places[name]) for name in names]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def gaps() -> Iterator[dict[str, Any]]:
    """A row per family and key offset: sampler to trainer before and after, and the trainer's SDPA to float64."""
    from tests.vlm_mhpo import bfloat16_cases as cases

    def measure(model: Any) -> tuple[float, float]:
        sampled, trained, truth = cases.three_log_probs(model, cases.sampled_groups(model))
        return float((sampled - trained).abs().mean()), float((trained - truth).abs().mean())

    for family in cases.FAMILIES:
        for bias in cases.BIASES:
            with tempfile.TemporaryDirectory() as folder:
                model = cases.build_and_load_bfloat16(Path(folder), family, bias)
                with rounded("scores", "head"):
                    before, _ = measure(model)
                with rounded("head"):
                    scores, _ = measure(model)
                now, own = measure(model)
            yield {
                "family": family,
                "key offset": int(bias),
                "sampler to trainer, scores and head rounded": before,
                "head rounded": scores,
                "now": now,
                "trainer to float64": own,
            }


def log_ratios() -> Iterator[dict[str, Any]]:
    """A row per step of the head's weights: std of the log-ratio of the policies before and after it."""
    import torch

    from tests.vlm_mhpo.test_bfloat16 import head_and_states, moved
    from vlm_mhpo.models.logprobs import token_log_probs

    for step in STEPS:
        head, states, targets, random = head_and_states()
        other = moved(head, step, random)
        none = torch.zeros(head.out_features, dtype=torch.bool)

        def read(one: Any, states: Any = states, targets: Any = targets, none: Any = none) -> Any:
            return token_log_probs(states, targets, one, none, temperature=1.0, chunk_size=384)[0].detach()

        def true(one: Any, states: Any = states, targets: Any = targets) -> Any:
            logits = states.double() @ one.weight.detach().double().T
            return logits.log_softmax(dim=-1).gather(-1, targets[:, None]).squeeze(-1)

        with rounded("head"):
            before = read(other) - read(head)
        yield {
            "step, share of a weight": str(step),
            "true std": float((true(other) - true(head)).std()),
            "head rounded": float(before.std()),
            "now": float((read(other) - read(head)).std()),
        }


if __name__ == "__main__":
    main()
