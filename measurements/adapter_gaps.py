"""How far apart the ways to one policy with adapters are, on tiny models: nats, mean and largest over the tokens.

Usage: python measurements/adapter_gaps.py

Trainer: packed rows. Peft: transformers and peft alone, a sequence at a time, on what was saved. Merged: what
`export --merge` gives. Sampler: the log-probs that it drew with.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from tests.builders import FAMILIES, Tiny, completion, plain_log_probs, prompts_of, random_completions, scored
from tests.vlm_mhpo.bfloat16_cases import sampled_groups
from tests.vlm_mhpo.test_adapters import by_peft, lora, saved, stir
from tests.vlm_mhpo.update_cases import settings_of
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.training.forwards import log_probs_of


def main() -> None:
    """A line for each family, type and kind of base."""
    print(f"{'model':<28}" + "".join(f"{name:>22}" for name in ("peft", "merged", "sampler")))
    cases = [(family, dtype, None) for family in FAMILIES for dtype in ("float32", "bfloat16")]
    cases += [("qwen2_5_vl", "float32", kind) for kind in ("nf4", "int8")]
    for case in cases:
        with tempfile.TemporaryDirectory() as folder:
            gaps = gaps_of(Path(folder), *case)
        told = "".join(f"{f'{gap.mean():.1e} {gap.max():.1e}' if gap is not None else '':>22}" for gap in gaps)
        print(f"{' '.join(filter(None, case)):<28}{told}", flush=True)


def gaps_of(folder: Path, family: str, dtype: str, quantization: str | None) -> list[Tensor | None]:
    """Distances of the trainer's log-probs from peft's, the merged policy's and the sampler's."""
    path = build_tiny(folder / "base", family)
    policy, codec = load_policy(str(path), dtype=dtype, lora=lora(), quantization=quantization)
    stir(policy)
    model = Tiny(family, path, policy, codec)
    prompts = prompts_of(model)
    groups = [
        scored(prompt, [completion(ids) for ids in random_completions(model, (9, 4), seed=index)])
        for index, prompt in enumerate(prompts)
    ]
    adapter, found = saved(model), log_probs(policy, groups)
    gaps: list[Tensor | None] = [None, None]
    if not quantization:
        reference = by_peft(model, adapter, dtype=getattr(torch, dtype))
        with torch.no_grad():
            rows = [
                plain_log_probs(reference, g.group.prompt, c.token_ids) for g in groups for c in g.group.completions
            ]
        merged, _ = load_policy(str(adapter), dtype=dtype, merges_adapter=True)
        gaps = [(torch.cat(rows) - found).abs(), (log_probs(merged, groups) - found).abs()]
    drawn = sampled_groups(model)
    trained = log_probs(policy, [scored(group.prompt, group.completions) for group in drawn])
    return [*gaps, (torch.cat([c.log_probs for group in drawn for c in group.completions]) - trained).abs()]


def log_probs(policy: torch.nn.Module, groups: list) -> Tensor:
    """[N] of the trainer's packed rows."""
    return torch.cat(log_probs_of(policy, policy, groups, settings_of(temperature=1.0)))


if __name__ == "__main__":
    main()
