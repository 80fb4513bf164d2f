"""Sampled tokens a second, our sampler against transformers' generate(num_return_sequences=G), side by side.

Both hold the same weights in one process, get prompts that are already tensors, and take turns. Ours also returns the
log-prob of every token, which generate() does not. The same tokens are banned on both sides; on the realistic shape no
completion can end, so both sample equally many tokens. generate() gets all prompts in one left-padded batch, sampling
from the whole distribution (temperature 1, no top-k, no top-p), with its default cache.

With --rows the shape is measured at several numbers of completions in one process, and each result is written at once.
"decode" looks closer at ours: how many decode steps there are, how long one takes, and under torch's profiler, for some
steps in the middle of a call, the kernels that a step launches and their own time. What is left of a step is the device
waiting for the next launch.

Usage: python measurements/speed_sampling.py [--shapes realistic quickstart] [--rounds 12] [--start MODEL] [--out FILE]
       python measurements/speed_sampling.py --shapes realistic_0.5b_128 realistic_3b_128 --rows 24 128 256   (on a GPU)
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from launches import Window
from shapes import CONFIG, Shape, prepare
from side_by_side import (
    add_common_arguments,
    alternate,
    apart,
    chosen,
    compare,
    timed,
    use_one_thread,
    write_record,
)

WARMUP = 1


def main() -> None:
    """Measure every shape and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_common_arguments(parser, ("realistic", "quickstart"))
    parser.add_argument("--rows", type=int, nargs="+", help="completions at a time; default: as many as a shape has")
    arguments = parser.parse_args()
    use_one_thread()
    results: dict[str, Any] = {}
    for shape in chosen(arguments):
        counts = [each // shape.num_generations for each in arguments.rows or [shape.num_samples]]
        sizes = [replace(shape, num_prompts=count) for count in counts]
        if arguments.rows:
            sizes = [replace(each, name=f"{each.name}_{each.num_samples}_rows") for each in sizes]
        with tempfile.TemporaryDirectory() as folder:
            # Made for the largest, so that there are rows enough.
            overrides = apart(prepare, max(sizes, key=lambda each: each.num_prompts), Path(folder), arguments.start)
            keep = partial(write_record, "speed_sampling", out=arguments.out, before=results)
            results |= apart(measure, sizes, overrides, arguments.rounds, keep)


def measure(
    sizes: Sequence[Shape], overrides: Sequence[str], rounds: int, keep: Callable[[dict[str, Any]], None]
) -> dict[str, Any]:
    """Results by name of sizes that share a model; `keep` gets all that is known after each."""
    from vlm_mhpo.checkpoint.opening import open_policy
    from vlm_mhpo.config import load_config
    from vlm_mhpo.prompts.builder import prompt_builder
    from vlm_mhpo.prompts.rows import read_rows
    from vlm_mhpo.runtime import ranks

    config = load_config(CONFIG, list(overrides))
    ranks.start(config.num_threads)
    opened = open_policy(config.model, Path(config.output_dir), "judge")
    builder = prompt_builder(config.data, opened.codec, opened.policy.family)
    rows = read_rows(config.data.train, config.data, config.data.train_split, config.data.max_rows)
    results: dict[str, Any] = {}
    for size in sizes:
        prompts = [builder(row) for row in rows[: size.num_prompts]]
        results[size.name] = measure_one(size, config, opened, prompts, rounds, 0 if results else WARMUP)
        keep(results)
    return results


def measure_one(
    shape: Shape, config: Any, opened: Any, prompts: Sequence[Any], rounds: int, warmup: int
) -> dict[str, Any]:
    """Both samplers on one shape, alternating, the same prompts in every round; then a closer look at ours."""
    from vlm_mhpo.rollout.base import SamplingParams
    from vlm_mhpo.rollout.build import build_sampler

    sampler = build_sampler(config.rollout, opened.policy, opened.codec)
    params = SamplingParams(shape.num_generations, shape.max_completion_length, 1.0, 1.0, 0)
    lengths: dict[str, list[float]] = {"ours": [], "generate": []}
    window = Window(skipped=shape.max_completion_length // 2)

    def ours(on_token: Callable[[], None]) -> None:
        seed = (config.seed, "round", len(lengths["ours"]))
        groups = sampler.sample(prompts, params, seed, on_token=on_token)
        tokens = [len(completion.token_ids) for group in groups for completion in group.completions]
        lengths["ours"].append(sum(tokens) / len(tokens))

    banned = opened.policy.banned_V.nonzero().flatten().tolist()

    def counted() -> None:
        window.begin()
        ours(window.count)

    generate = peer(shape, config, prompts, banned, opened.codec)

    def theirs() -> None:
        lengths["generate"].append(generate())

    steps = alternate({"ours": timed(counted), "generate": timed(theirs)}, rounds, warmup)
    mean_length = {name: sum(each) / len(each) for name, each in lengths.items()}
    seconds = {name: statistics.median(step["wall_s"] for step in each) for name, each in steps.items()}
    with window:
        ours(window.watch)
    return {
        "shape": asdict(shape),
        "prompt_tokens": sum(prompt.num_tokens for prompt in prompts) / len(prompts),
        **compare(steps, "ours", "generate"),
        "mean_length": mean_length,
        "tokens_per_s": {name: shape.num_samples * mean_length[name] / each for name, each in seconds.items()},
        "decode": window.facts(),
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
    main()
