"""Sampled tokens a second, our sampler against transformers' generate(num_return_sequences=G), side by side.

Both hold the same weights in one process, get prompts that are already tensors, and take turns. Ours also returns the
log-prob of every token, which generate() does not. The same tokens are banned on both sides; on the realistic shape no
completion can end, so both sample equally many tokens. generate() gets all prompts in one left-padded batch, sampling
from the whole distribution (temperature 1, no top-k, no top-p), with its default cache.

Usage: python measurements/speed_sampling.py [--shapes realistic quickstart] [--rounds 12] [--start MODEL] [--out FILE]
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from side_by_side import (
    CONFIG,
    Shape,
    alternate,
    compare,
    measure_shapes,
    timed,
)

WARMUP = 1


def measure(shape: Shape, overrides: Sequence[str], rounds: int) -> dict[str, Any]:
    """Both samplers on one shape, alternating, the same prompts in every round."""
    from vlm_mhpo.config import load_config
    from vlm_mhpo.rollout.base import SamplingParams
    from vlm_mhpo.runtime import ranks
    from vlm_mhpo.training.assembly import build_parts

    config = load_config(CONFIG, list(overrides))
    ranks.start(config.num_threads)
    parts = build_parts(config, config.train)
    rows = parts.train_rows[: shape.num_prompts]
    prompts = [parts.builder(row) for row in rows]
    params = SamplingParams(shape.num_generations, shape.max_completion_length, 1.0, 1.0, 0)
    lengths: dict[str, list[float]] = {"ours": [], "generate": []}

    def ours() -> None:
        groups = parts.sampler.sample(prompts, params, (config.seed, "round", len(lengths["ours"])))
        tokens = [len(completion.token_ids) for group in groups for completion in group.completions]
        lengths["ours"].append(sum(tokens) / len(tokens))

    generate = peer(shape, config, prompts, parts.engine.policy.banned_V.nonzero().flatten().tolist(), parts.codec)

    def theirs() -> None:
        lengths["generate"].append(generate())

    steps = alternate({"ours": timed(ours), "generate": timed(theirs)}, rounds, WARMUP)
    return {
        "shape": asdict(shape),
        "prompt_tokens": sum(prompt.num_tokens for prompt in prompts) / len(prompts),
        **compare(steps, "ours", "generate"),
        "mean_length": {name: sum(each) / len(each) for name, each in lengths.items()},
    }


def peer(shape: Shape, config: Any, prompts: Sequence[Any], banned: list[int], codec: Any) -> Callable[[], float]:
    """One call samples all completions with a stock model and returns their mean length."""
    import torch
    import transformers

    from data_prep import open_image
    from vlm_mhpo.models.loading import DTYPES

    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        config.model.path, dtype=DTYPES[config.model.dtype], attn_implementation=config.model.attn_implementation
    )
    model.to(device).eval()
    processor = transformers.AutoProcessor.from_pretrained(config.model.path, padding_side="left")
    inputs = processor(
        text=[prompt.text for prompt in prompts],
        images=[[open_image(image) for image in prompt.row.images] for prompt in prompts],
        padding=True,
        return_tensors="pt",
    ).to(device)
    ends = torch.tensor(codec.end_ids, device=device)
    width = inputs["input_ids"].shape[1]

    def generate() -> float:
        sampled = model.generate(
            **inputs,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            num_return_sequences=shape.num_generations,
            max_new_tokens=shape.max_completion_length,
            suppress_tokens=banned,
            eos_token_id=list(codec.end_ids),
            pad_token_id=codec.pad_id,
        )[:, width:]
        before_end = torch.isin(sampled, ends).cumsum(dim=1) == 0
        return float(before_end.sum(dim=1).add(1).clamp(max=sampled.shape[1]).float().mean())

    return generate


if __name__ == "__main__":
    measure_shapes("speed_sampling", __doc__, measure, ("realistic", "quickstart"))
