"""Kernels of one decode step and of one update, counted by layer: what a device has to launch.

Every operation that torch dispatches is counted: a view (which moves no data) or a kernel (which a GPU launches; some
composite ones launch more than one). Models of two depths are counted in turn; their difference is what a layer costs
and the rest is what a step costs without layers. Counted, not timed: the machine may be busy.

"decode" is one token of every completion, drawn by our sampler; "generate" is the same by transformers' generate() with
its default cache. "forward" and "backward" are those of
packed rows, two prompts with four completions each.

Usage: python measurements/kernels.py [--widths 128 896] [--out FILE]
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from side_by_side import use_one_thread, write_record

DEPTHS = (2, 4)
# Completions of each of two prompts, their tokens, and the step that is counted: in the middle of a call.
NUM_SAMPLES, NUM_TOKENS, COUNTED = 4, 24, 16
PROMPT_TOKENS = 400


def main() -> None:
    """Count at every width and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--widths", type=int, nargs="+", default=[128, 896])
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    results = {f"width_{width}": by_layer([counts(width, depth) for depth in DEPTHS]) for width in arguments.widths}
    write_record("kernels", results, arguments.out)


def by_layer(found: list[dict[str, Counter[str]]]) -> dict[str, Any]:
    """Kernels and views of a layer, and of a step without its layers, from the counts at two depths."""
    extra = DEPTHS[1] - DEPTHS[0]
    results = {}
    for name in found[0]:
        shallow, deep = found[0][name], found[1][name]
        layer = Counter({each: (deep[each] - shallow[each]) / extra for each in deep})
        rest = Counter({each: shallow[each] - DEPTHS[0] * layer[each] for each in deep})
        results[name] = {
            "kernels_per_layer": total(layer, views=False),
            "views_per_layer": total(layer, views=True),
            "kernels_beside_layers": total(rest, views=False),
            "views_beside_layers": total(rest, views=True),
            "of_a_layer": {k.removeprefix("aten::"): v for k, v in layer.most_common() if v and not is_view(k)},
        }
    return results


def is_view(name: str) -> bool:
    """Whether a counted operation moves no data."""
    return name.endswith(" (view)")


def total(counter: Counter[str], *, views: bool) -> float:
    """How many views, or kernels, there are."""
    return sum(value for name, value in counter.items() if is_view(name) == views)


def counts(width: int, depth: int) -> dict[str, Counter[str]]:
    """Operations of each part, by name."""
    import torch

    from vlm_mhpo.models.families import family_of
    from vlm_mhpo.models.families.base import banned_tokens
    from vlm_mhpo.models.loading import adapt
    from vlm_mhpo.models.policy import Policy
    from vlm_mhpo.models.tiny import build_tokenizer, draw_weights, model_config

    torch.manual_seed(0)
    torch.set_num_threads(1)
    family, tokenizer = family_of("qwen2_5_vl"), build_tokenizer()
    config = model_config("qwen2_5_vl", tokenizer, width)
    text = config.get_text_config()
    text.num_hidden_layers, text.layer_types = depth, ["full_attention"] * depth
    model = family.auto_classes[0].from_config(config, dtype=torch.float32)
    draw_weights(model)
    plain = family.auto_classes[0].from_config(config, dtype=torch.float32)
    adapt(model, family, "sdpa")
    policy = Policy(model, family, banned_tokens(tokenizer, text.vocab_size, config))
    return decode_counts(policy) | {"generate": generate_counts(plain)} | update_counts(policy)


def decode_counts(policy: Any) -> dict[str, Counter[str]]:
    """One step of our sampler with two prompts."""
    import torch

    from vlm_mhpo.rollout.base import SamplingParams
    from vlm_mhpo.rollout.hf.decoding import Decoding, Work
    from vlm_mhpo.rollout.hf.prefill import prefill

    prompts = two_prompts()
    params = SamplingParams(NUM_SAMPLES, NUM_TOKENS, 1.0, 1.0, 0)
    work = Work(
        lengths=[prompt.num_tokens for prompt in prompts],
        order=range(len(prompts)),
        seed_of=lambda number: number,
        prefill=lambda places: prefill(policy, [prompts[place] for place in places], 0, "left"),
    )
    steps: list[Counter[str]] = []
    counting = Counting()

    def on_token() -> None:
        steps.append(Counter(counting.found))
        counting.found.clear()

    with torch.no_grad(), counting:
        policy.eval()
        ends = [policy.model.config.get_text_config().vocab_size - 1]
        for _ in Decoding(policy, work, params, ends, 10**6, on_token).run():
            pass
    return {"decode": steps[COUNTED]}


def generate_counts(model: Any) -> Counter[str]:
    """One step of transformers' generate(), as the difference of two lengths."""
    import torch

    ids = torch.stack([prompt.input_ids_S[:PROMPT_TOKENS] for prompt in two_prompts()])
    found = []
    for length in (COUNTED, COUNTED + 1):
        with torch.no_grad(), Counting() as counting:
            model.eval().generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=True, top_k=0, pad_token_id=0,
                num_return_sequences=NUM_SAMPLES, max_new_tokens=length, min_new_tokens=length,
            )  # fmt: skip
        found.append(counting.found)
    return Counter({name: found[1][name] - found[0][name] for name in found[1]})


def update_counts(policy: Any) -> dict[str, Counter[str]]:
    """Forward and backward of one packed row of each prompt."""

    from vlm_mhpo.models.packing import pack_rows, plan_micro_batches

    prompts = two_prompts()
    completions = [[3 + (7 * row + at) % 200 for at in range(NUM_TOKENS)] for row in range(2 * NUM_SAMPLES)]
    lengths = [[NUM_TOKENS] * NUM_SAMPLES] * 2
    (items,) = plan_micro_batches([p.num_tokens for p in prompts], lengths, max_tokens=10**6)
    positions = [policy.family.positions(policy.model, prompt) for prompt in prompts]
    rows = pack_rows(items, prompts, positions, completions, join=policy.family.join, pad_id=0)
    policy.train()
    found = {}
    with Counting() as counting:
        log_probs_N, _ = policy(rows, temperature=1.0, chunk_size=10**4)
        found["forward"] = Counter(counting.found)
        counting.found.clear()
        log_probs_N.sum().backward()
        found["backward"] = Counter(counting.found)
    return found


def two_prompts() -> list[Any]:
    """Text prompts of two lengths; images cost nothing per decode step."""
    import torch

    from vlm_mhpo.types import Prompt

    def prompt(length: int) -> Prompt:
        ids = torch.arange(length) % 300 + 3
        return Prompt(None, "", ids, torch.zeros(length, dtype=torch.int64))

    return [prompt(PROMPT_TOKENS), prompt(PROMPT_TOKENS + 16)]


def Counting() -> Any:
    """A context manager whose `found` counts the operations dispatched inside it by name."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Mode(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: Counter[str] = Counter()

        def __torch_dispatch__(self, func: Callable, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = func._schema.name
            if name != "aten::promote_types":
                self.found[f"{name} (view)" if func.is_view or name == "aten::_unsafe_view" else name] += 1
            return func(*args, **(kwargs or {}))

    return Mode()


if __name__ == "__main__":
    main()
