"""How far apart the ways to one log-prob are, for every family with a tiny model: the table of docs/families.md.

Usage: python measurements/family_gaps.py [--families NAME ...] [--dtypes float32 bfloat16] [--out FILE]

Weights have the scales of real models: logits of some 20 and keys with a large offset. Gaps are in nats, the largest
and the mean over all tokens, but for the gradient, which is relative in L2 norm over all weights:

    sampler     log-probs that completions were drawn with, against the trainer's of the same tokens
    packed      completions that share rows with their prompt, against a row for each
    gradient    of the packed rows, against the sum over separate rows
    adapter     a policy with LoRA beside its weights, against the one that `export --merge` gives
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from side_by_side import ROOT, use_one_thread, write_record

KEY_OFFSET = 20.0
NUM_SAMPLES, NUM_TOKENS = 4, 16


def main() -> None:
    """Measure, print the table and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="*", help="of `vlm_mhpo.models.tiny.tiny_families()`; all by default")
    parser.add_argument("--dtypes", nargs="*", default=["float32", "bfloat16"])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    sys.path.insert(0, str(ROOT))
    from vlm_mhpo.models.tiny import tiny_families

    rows = []
    for family in arguments.families or tiny_families():
        for dtype in arguments.dtypes:
            with tempfile.TemporaryDirectory() as folder:
                rows.append({"family": family, "dtype": dtype, **gaps_of(Path(folder), family, dtype)})
            if len(rows) == 1:
                print("| " + " | ".join(rows[0]) + " |\n|" + " --- |" * len(rows[0]))
            print("| " + " | ".join(_told(value) for value in rows[-1].values()) + " |", flush=True)
    write_record("family_gaps", {"gaps": rows}, arguments.out)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['max']:.1e} ({value['mean']:.1e})"
    return f"{value:.1e}" if isinstance(value, float) else str(value)


def gaps_of(folder: Path, family: str, dtype: str) -> dict[str, Any]:
    """One row of the table."""
    import torch

    from tests.builders import Tiny, gradients
    from tests.vlm_mhpo.bfloat16_cases import give_real_scales
    from vlm_mhpo.models.loading import load_policy
    from vlm_mhpo.models.tiny import build_tiny

    policy, codec = load_policy(str(build_tiny(folder / "base", family)), dtype=dtype)
    with torch.no_grad():
        give_real_scales(policy, KEY_OFFSET)
    model = Tiny(family, folder / "base", policy, codec)
    prompts, drawn = sampled(model)
    ids = [[completion.token_ids for completion in group.completions] for group in drawn]
    packed, separate = (log_probs(model, prompts, ids, shares=shares) for shares in (True, False))
    found, expected = (_pulled(model, values, gradients) for values in (packed, separate))
    distance = sum(float((found[name] - value).double().norm()) ** 2 for name, value in expected.items()) ** 0.5
    size = sum(float(value.double().norm()) ** 2 for value in expected.values()) ** 0.5
    own = torch.cat([completion.log_probs for group in drawn for completion in group.completions])
    return {
        "sampler": gap(own, packed),
        "packed": gap(packed, separate),
        "gradient": distance / size,
        "adapter": _adapter_gap(folder, family, dtype),
    }


def gap(left: Any, right: Any) -> dict[str, float]:
    """Largest and mean distance of two [N]."""
    distance_N = (left.detach().double() - right.detach().double()).abs()
    return {"max": float(distance_N.max()), "mean": float(distance_N.mean())}


def sampled(model: Any) -> tuple[Any, Any]:
    """Prompts with two images, one and none, and groups of completions drawn for them."""
    from tests.builders import prompts_of
    from vlm_mhpo.rollout.base import SamplingParams
    from vlm_mhpo.rollout.hf.sampler import HfSampler

    prompts = prompts_of(model)
    sampler = HfSampler(model.policy, model.codec, max_batch_tokens=100_000)
    return prompts, sampler.sample(prompts, SamplingParams(NUM_SAMPLES, NUM_TOKENS), (5, "rollout", 0))


def log_probs(model: Any, prompts: Any, ids: Any, *, shares: bool) -> Any:
    """[N] with gradient, in the order of reading `ids`; a row for each completion unless it `shares` its prompt's."""
    import torch

    from vlm_mhpo.training.micro_batches import micro_batches

    found = {}
    # A budget of no token is one of a single completion.
    for batch in micro_batches(model.policy, prompts, ids, max_tokens=10_000 if shares else 0, pad_id=0):
        values_N, _ = model.policy(batch.rows, temperature=1.0, chunk_size=64)
        places = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
        found |= dict(zip(places, values_N.unbind(), strict=True))
    return torch.stack([found[place] for place in sorted(found)])


def _pulled(model: Any, values_N: Any, gradients: Any) -> Any:
    """Gradients of all weights, of a sum in which every token counts differently."""
    import torch

    (values_N * torch.cos(torch.arange(len(values_N)))).sum().backward()
    return gradients(model)


def _adapter_gap(folder: Path, family: str, dtype: str) -> dict[str, float]:
    """Adapters beside the weights against adapters merged into them."""
    import torch

    from tests.builders import Tiny, prompts_of, random_completions
    from tests.vlm_mhpo.test_adapters import lora, saved, stir
    from vlm_mhpo.models.loading import load_policy

    policy, codec = load_policy(str(folder / "base"), dtype=dtype, lora=lora())
    stir(policy)
    model = Tiny(family, folder / "base", policy, codec)
    merged, _ = load_policy(str(saved(model)), dtype=dtype, merges_adapter=True)
    prompts = prompts_of(model)
    ids = [random_completions(model, (9, 4), seed=index) for index, _ in enumerate(prompts)]
    with torch.no_grad():
        both = [log_probs(Tiny(family, folder, one, codec), prompts, ids, shares=True) for one in (policy, merged)]
    return gap(*both)


if __name__ == "__main__":
    main()
