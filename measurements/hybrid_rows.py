"""What a shared prompt is worth where layers are recurrent: sampling and update of a tiny Qwen3.5, shared and not.

Usage: python measurements/hybrid_rows.py [--rounds 7] [--out FILE]

Three gated delta nets and one layer of attention, width 128, pure torch, one thread; eight prompts with an image of 8 x
8 tokens, eight completions each. A step samples them and takes the gradient of one update, once with prompts shared
(states forked at their ends) and once with a copy of the prompt for every completion, which is what transformers'
caches and a row per completion come to. Both alternate in one process. Medians; processor seconds.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from side_by_side import ROOT, use_one_thread, write_record

NUM_PROMPTS, NUM_SAMPLES, NUM_TOKENS, SIDE = 8, 8, 48, 8
FAMILY, MOST = "qwen3_5", 4096


def main() -> None:
    """Measure, print and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as folder:
        result = measure(Path(folder), arguments.rounds)
    print(result)
    write_record("hybrid_rows", result, arguments.out)


def measure(folder: Path, rounds: int) -> dict[str, Any]:
    """Seconds of both sides, and how far their log-probs are apart."""
    import torch

    from tests.builders import build_and_load, picture, problem_row, prompts_of
    from vlm_mhpo.rollout.base import SamplingParams
    from vlm_mhpo.rollout.hf.sampler import HfSampler
    from vlm_mhpo.training.micro_batches import micro_batches

    model = build_and_load(folder, FAMILY)
    side = SIDE * model.token_side
    texts = "<image>What is the value of bar A? What is the total of all bars?"
    rows = [problem_row(str(index), texts, [picture(side, side, seed=index)]) for index in range(NUM_PROMPTS)]
    prompts, policy = prompts_of(model, rows), model.policy
    families = {"shared": policy.family, "copied": replace(policy.family, shares_prompt=False, recurrent=())}
    seconds: dict[str, dict[str, list[float]]] = {name: {"sampling": [], "update": []} for name in families}
    values = {}
    for number in range(rounds + 1):
        for name, policy.family in families.items():
            begin = time.process_time()
            sampler = HfSampler(policy, model.codec, max_batch_tokens=100_000)
            params = SamplingParams(NUM_SAMPLES, NUM_TOKENS, 1.0)
            groups = sampler.sample(prompts, params, (number, "rollout"))
            sampled = time.process_time()
            ids = [[completion.token_ids for completion in group.completions] for group in groups]
            found: dict[tuple[int, int], float] = {}
            for batch in micro_batches(policy, prompts, ids, max_tokens=MOST, pad_id=model.codec.pad_id):
                log_probs_N, _ = policy(batch.rows, temperature=1.0, chunk_size=1024)
                log_probs_N.sum().backward()
                keys = zip(batch.rows.completion_N.tolist(), batch.rows.time_N.tolist(), strict=True)
                found |= dict(zip(keys, log_probs_N.tolist(), strict=True))
            policy.zero_grad()
            if number:
                # The first round warms up.
                seconds[name]["sampling"].append(sampled - begin)
                seconds[name]["update"].append(time.process_time() - sampled)
            values[name] = found
    gap = max(abs(values["shared"][key] - values["copied"][key]) for key in values["shared"])
    medians = {name: {part: statistics.median(each) for part, each in its.items()} for name, its in seconds.items()}
    ratios = {part: medians["copied"][part] / medians["shared"][part] for part in ("sampling", "update")}
    return {
        "family": FAMILY,
        "torch": torch.__version__,
        "prompt_tokens": prompts[0].num_tokens,
        "completion_tokens": sum(len(each) for group in ids for each in group) / (NUM_PROMPTS * NUM_SAMPLES),
        "seconds": medians,
        "copied_over_shared": ratios,
        "largest_gap_of_log_probs": gap,
    }


if __name__ == "__main__":
    main()
