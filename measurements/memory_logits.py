"""Extra memory of log-probs and entropy, forward and backward: in chunks, against all logits at once.

Every figure comes from a fresh process in float32, on the GPU if there is one (then what torch allocated counts), else
on the CPU: it makes the head's weight, the hidden states and room
for their gradients, touches all of it, and then runs forward and backward; "extra" is the highest resident set that the
kernel saw, minus the resident set before, minus gradients that did not exist before. Two cases: the gradients exist
already and are added to ("accumulating", every micro-batch but the first), or not ("first"). In the former autograd
holds the gradient of this backward beside the sum, one more gradient of the head, which "extra" counts. The dense way
keeps log_softmax of all logits for the backward; it needs more memory than most machines have, so it is measured on an
eighth of the vocabulary and multiplied by eight.

glibc keeps freed blocks of up to 32 MiB, and scattered ones add up to many times what is in use. It is told to give
blocks back at once, as torch's allocator on a GPU would reuse them; "default_malloc" is the same case without that.

Usage: python measurements/memory_logits.py [--tokens 8192] [--vocabulary 151936] [--hidden 1024] [--chunk-size N]
                                          [--out FILE]
The whole size takes some 10 TFLOP a case and 3 to 20 GB, with the chunk.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from side_by_side import apart, memory_held, use_one_thread, wait_for_device, write_record

DENSE_SHARE = 8
LIMIT_MB = 300


@dataclass(frozen=True, slots=True)
class Case:
    """What one process measures; `chunk_size` None is the dense way."""

    num_tokens: int
    vocabulary: int
    hidden: int
    chunk_size: int | None
    accumulates: bool


def main() -> None:
    """Measure all cases and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--vocabulary", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--chunk-size", type=int, help="default: train.logits_chunk_size as it comes")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    use_one_thread()
    size = (arguments.tokens, arguments.vocabulary, arguments.hidden)
    chunk_size = arguments.chunk_size or default_chunk_size()
    small = (arguments.tokens, arguments.vocabulary // DENSE_SHARE, arguments.hidden)
    accumulating, first = (Case(*size, chunk_size, accumulates) for accumulates in (True, False))
    results = {"chunked_accumulating_default_malloc": apart(measure, accumulating)}
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"
    results |= {
        "chunked_accumulating": apart(measure, accumulating),
        "chunked_first": apart(measure, first),
        "dense_on_an_eighth": apart(measure, Case(*small, None, accumulates=True)),
    }
    dense_mb = DENSE_SHARE * results["dense_on_an_eighth"]["extra_mb"]
    summary = {
        "dense_extra_mb_scaled": dense_mb,
        "limit_mb": LIMIT_MB,
        "chunked_extra_mb": results["chunked_first"]["extra_mb"],
        # Autograd makes the gradient of every backward whole before it adds it to the one that is there.
        "chunked_extra_mb_beside_a_second_gradient": results["chunked_accumulating"]["extra_mb"]
        - size[1] * size[2] * 4 / 1e6,
    }
    write_record("memory_logits", {**results, **summary}, arguments.out)


def default_chunk_size() -> int:
    """`train.logits_chunk_size` of a configuration that does not set it."""
    from vlm_mhpo.config.training import TrainConfig

    return TrainConfig.model_fields["logits_chunk_size"].default


def measure(case: Case) -> dict[str, Any]:
    """Extra megabytes (1e6 bytes) and seconds of one forward and backward; the same inputs for every case."""
    import torch
    from torch import nn

    torch.set_num_threads(1)
    torch.set_default_device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    # The first forward and backward load modules and make work buffers, which stay.
    warm = nn.Linear(8, 8, bias=False)
    targets_N, banned_V = torch.zeros(64, dtype=torch.int64), torch.zeros(8, dtype=torch.bool)
    small = replace(case, chunk_size=case.chunk_size and 16)
    values(small, torch.randn(64, 8, requires_grad=True), targets_N, warm, banned_V)[0].sum().backward()
    head = nn.Linear(case.hidden, case.vocabulary, bias=False)
    hidden_NH = torch.randn(case.num_tokens, case.hidden, requires_grad=True)
    targets_N = torch.randint(case.vocabulary, (case.num_tokens,))
    banned_V = torch.zeros(case.vocabulary, dtype=torch.bool)
    given = [head.weight, hidden_NH]
    if case.accumulates:
        for tensor in given:
            # ones, because zeros may be pages that exist only when they are written to.
            tensor.grad = torch.ones_like(tensor)
    before = memory_held()["held_bytes"]
    begun = time.perf_counter()
    log_probs_N, entropy_N = values(case, hidden_NH, targets_N, head, banned_V)
    log_probs_N.sum().backward()
    wait_for_device()
    seconds = time.perf_counter() - begun
    new_gradients = 0 if case.accumulates else sum(tensor.numel() * tensor.element_size() for tensor in given)
    return {
        **asdict(case),
        "extra_mb": (memory_held()["peak_bytes"] - before - new_gradients) / 1e6,
        "weights_gradients_hidden_mb": 2 * sum(tensor.numel() * tensor.element_size() for tensor in given) / 1e6,
        "seconds": seconds,
        "mean_log_prob": log_probs_N.detach().mean().item(),
        "mean_entropy": entropy_N.mean().item(),
    }


def values(case: Case, hidden_NH: Any, targets_N: Any, head: Any, banned_V: Any) -> tuple[Any, Any]:
    """Log-probs with gradient and entropies without, in chunks or from all logits."""
    if case.chunk_size:
        from vlm_mhpo.models.logprobs import token_log_probs

        return token_log_probs(hidden_NH, targets_N, head, banned_V, temperature=1.0, chunk_size=case.chunk_size)
    log_probs_NV = head(hidden_NH).log_softmax(dim=-1)
    entropy_N = -(log_probs_NV.detach().exp() * log_probs_NV.detach()).sum(dim=-1)
    return log_probs_NV.gather(-1, targets_N[:, None]).squeeze(-1), entropy_N


if __name__ == "__main__":
    main()
