"""What only a GPU can show: its kernels, its bfloat16, its memory. Run with `python -m pytest tests/gpu`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.builders import FAMILIES, build_and_load
from tests.vlm_mhpo.test_other_device import BASE, sample_and_update
from tests.vlm_mhpo.update_cases import batch_of
from vlm_mhpo.commands.doctor.parity import examine_parity
from vlm_mhpo.config import load_config
from vlm_mhpo.models.attention import segment_attention, segments_of
from vlm_mhpo.models.logprobs import token_log_probs
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.run import train

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]
BFLOAT16 = ("model.dtype=bfloat16", "rollout.old_log_probs=trainer", "deepspeed.zero_stage=2")


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_and_updates_in_float32_give_the_values_of_the_cpu(family, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_mhpo.models.policy.SPLIT_WIDTH", 0)
    model = build_and_load(tmp_path, family)
    batch, other = batch_of(model), model.copy()
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "device", lambda: torch.device("cpu"))
        groups, update = sample_and_update(model, batch)
    other.policy.to("cuda")
    other_groups, other_update = sample_and_update(other, batch)
    for one, another in zip(groups, other_groups, strict=True):
        for mine, its in zip(one.completions, another.completions, strict=True):
            assert mine.token_ids == its.token_ids
            assert mine.log_probs == pytest.approx(its.log_probs, abs=1e-4)
    assert update.grad_norms == pytest.approx(other_update.grad_norms, rel=1e-3)
    assert update.metrics == pytest.approx(other_update.metrics, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_piece_by_piece_is_attention_under_the_mask(dtype):
    """Values and gradients, on whatever kernels torch takes for the pieces, with 8 query heads on 2 of keys."""
    lengths = [(70, 9, 1, 33), (40, 50)]
    width = max(map(sum, lengths))
    generator = torch.Generator("cuda").manual_seed(0)

    def draw(heads: int) -> torch.Tensor:
        drawn = torch.randn(2, heads, width, 64, device="cuda", generator=generator)
        return drawn.to(dtype).requires_grad_()

    query, key, value = draw(8), draw(2), draw(2)
    found = segment_attention(query, key, value, segments_of(lengths, like=query), 0.125)
    exact = [tensor.detach().double().requires_grad_() for tensor in (query, key, value)]
    allowed = torch.zeros(2, 1, width, width, dtype=torch.bool, device="cuda")
    for row, (prompt, *completions) in enumerate(lengths):
        allowed[row, :, :prompt, :prompt] = True
        start = prompt
        for length in completions:
            allowed[row, :, start : start + length, :prompt] = True
            allowed[row, :, start : start + length, start : start + length] = True
            start += length
    allowed &= torch.ones(width, width, dtype=torch.bool, device="cuda").tril()
    repeated = [tensor.repeat_interleave(4, dim=1) for tensor in exact[1:]]
    scores = (exact[0] @ repeated[0].transpose(-1, -2) * 0.125).masked_fill(~allowed, -torch.inf)
    # A padded query sees nothing; its row is zero on both sides.
    expected = (scores.softmax(dim=-1).nan_to_num() @ repeated[1]).transpose(1, 2)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(found.shape, device="cuda", generator=generator)
    (found.float() * weights).sum().backward()
    used = torch.tensor([[place < sum(row) for place in range(width)] for row in lengths], device="cuda")
    (expected * weights * used[:, :, None, None]).sum().backward()
    for tensor, other in zip((query, key, value), exact, strict=True):
        gap = (tensor.grad.double() - other.grad.nan_to_num()).norm() / other.grad.nan_to_num().norm()
        assert gap < tolerance


def test_log_probs_of_a_real_vocabulary_take_little_memory():
    """8,192 tokens x 151,936 words, forward and backward, beyond weights, gradients and hidden states."""
    head = torch.nn.Linear(1024, 151_936, bias=False, device="cuda", dtype=torch.bfloat16)
    hidden = torch.randn(8192, 1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(151_936, (8192,), device="cuda")
    banned = torch.zeros(151_936, dtype=torch.bool, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    log_probs, _ = token_log_probs(hidden, targets, head, banned, temperature=1.0, chunk_size=384)
    log_probs.sum().backward()
    gradients = 2 * (head.weight.numel() + hidden.numel())
    # Logits of a chunk in float32, and their gradient in bfloat16: 384 x 151,936 x 6 bytes are 350 MB.
    assert torch.cuda.max_memory_allocated() - before - gradients < 700e6


def test_a_run_in_bfloat16_learns_stops_and_continues(tmp_path):
    config = load_config(BASE, [*BFLOAT16, f"output_dir={tmp_path / 'run'}", "train.max_steps=2"])
    train(config)
    train(load_config(BASE, [*BFLOAT16, f"output_dir={tmp_path / 'run'}", "train.max_steps=4"]))
    rows = rows_of_run(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["grad_norm"] > 0 and row["num_skipped_updates"] == 0 for row in rows[1:])


def rows_of_run(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("overrides", [(), BFLOAT16[:2]], ids=["float32", "bfloat16"])
def test_sampler_and_trainer_agree(overrides, tmp_path):
    (finding,) = examine_parity(load_config(BASE, [*overrides, f"output_dir={tmp_path}"]), tmp_path)
    assert finding.state == "ok", finding
