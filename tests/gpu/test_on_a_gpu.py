"""What only a GPU can show: its kernels, its bfloat16, its memory. Run with `python -m pytest tests/gpu`.

`TEST_DEVICE=cpu python -m pytest tests/gpu` runs the same code on the CPU, which shows that it runs, and little more.
"""

from __future__ import annotations

import pytest
import torch

from tests.builders import FAMILIES, build_and_load
from tests.system.resume_cases import rows_of
from tests.vlm_mhpo.attention_cases import draw, exact_attention, used, visible
from tests.vlm_mhpo.test_other_device import BASE, sample_and_update
from tests.vlm_mhpo.update_cases import batch_of
from vlm_mhpo.commands.doctor.parity import examine_parity
from vlm_mhpo.config import load_config
from vlm_mhpo.models.attention import segment_attention, segments_of
from vlm_mhpo.models.logprobs import token_log_probs
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.run import train

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device")]
BFLOAT16 = ("model.dtype=bfloat16", "rollout.old_log_probs=trainer", "deepspeed.zero_stage=2")


@pytest.mark.parametrize("family", FAMILIES)
def test_sampling_and_updates_in_float32_give_the_values_of_the_cpu(family, device, tmp_path, monkeypatch):
    monkeypatch.setattr("vlm_mhpo.models.policy.SPLIT_WIDTH", 0)
    model = build_and_load(tmp_path, family)
    batch, other = batch_of(model), model.copy()
    with monkeypatch.context() as patch:
        patch.setattr(ranks, "device", lambda: torch.device("cpu"))
        groups, update = sample_and_update(model, batch)
    other.policy.to(device)
    other_groups, other_update = sample_and_update(other, batch)
    for one, another in zip(groups, other_groups, strict=True):
        for mine, its in zip(one.completions, another.completions, strict=True):
            assert mine.token_ids == its.token_ids
            assert mine.log_probs == pytest.approx(its.log_probs, abs=1e-4)
    assert update.grad_norms == pytest.approx(other_update.grad_norms, rel=1e-3)
    assert update.metrics == pytest.approx(other_update.metrics, rel=1e-2, abs=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_piece_by_piece_is_attention_under_the_mask(dtype, device):
    """Values and gradients, on whatever kernels torch takes for the pieces, with 8 query heads on 2 of keys."""
    lengths = [(70, 9, 1, 33), (40, 50)]
    width = max(map(sum, lengths))
    generator = torch.Generator(device).manual_seed(0)
    tensors = [draw(lengths, width, heads, generator).to(dtype).requires_grad_() for heads in (8, 2, 2)]
    found = segment_attention(*tensors, segments_of(lengths, like=tensors[0]), 0.18)
    exact = [tensor.detach().double().requires_grad_() for tensor in tensors]
    expected = exact_attention(*exact, visible(lengths, width, device), 0.18)
    tolerance = 1e-5 if dtype == torch.float32 else 0.03
    assert torch.allclose(found.double(), expected, rtol=tolerance, atol=tolerance)
    weights = torch.randn(found.shape, device=device, generator=generator)
    (found.float() * weights).sum().backward()
    (expected * weights * used(lengths, width, device)).sum().backward()
    for tensor, other in zip(tensors, exact, strict=True):
        assert (tensor.grad.double() - other.grad).norm() < tolerance * other.grad.norm()


def test_log_probs_of_a_real_vocabulary_take_little_memory(device):
    """8,192 tokens x 151,936 words, forward and backward, beyond weights, gradients and hidden states."""
    if device.type != "cuda":
        pytest.skip("counts what a GPU has allocated")
    head = torch.nn.Linear(1024, 151_936, bias=False, device=device, dtype=torch.bfloat16)
    hidden = torch.randn(8192, 1024, device=device, dtype=torch.bfloat16, requires_grad=True)
    targets = torch.randint(151_936, (8192,), device=device)
    banned = torch.zeros(151_936, dtype=torch.bool, device=device)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    log_probs, _ = token_log_probs(hidden, targets, head, banned, temperature=1.0, chunk_size=384)
    log_probs.sum().backward()
    gradients = 2 * (head.weight.numel() + hidden.numel())
    # Logits of a chunk in float32, and their gradient in bfloat16: 384 x 151,936 x 6 bytes are 350 MB.
    assert torch.cuda.max_memory_allocated() - before - gradients < 700e6


@pytest.fixture
def repeatable():
    """Kernels that give the same sums twice, as far as torch has them."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(before)


@pytest.mark.parametrize("stage", [2, 3])
def test_a_run_in_bfloat16_that_stops_and_continues_is_the_straight_run(stage, repeatable, restored, tmp_path):
    given = [*BFLOAT16, f"deepspeed.zero_stage={stage}"]
    for name, last_steps in (("straight", (4,)), ("resumed", (2, 4))):
        for last in last_steps:
            train(load_config(BASE, [*given, f"output_dir={tmp_path / name}", f"train.max_steps={last}"]))
    rows = rows_of(tmp_path / "straight")
    assert [row["step"] for row in rows] == [0, 1, 2, 3, 4]
    assert all(row["grad_norm"] > 0 and row["num_skipped_updates"] == 0 for row in rows[1:])
    # The first half of the resumed run ends with an evaluation that the straight one does not make.
    for straight, resumed in zip(rows, rows_of(tmp_path / "resumed"), strict=True):
        assert straight == {name: resumed[name] for name in straight}


@pytest.mark.parametrize("overrides", [(), BFLOAT16[:2]], ids=["float32", "bfloat16"])
def test_sampler_and_trainer_agree(overrides, tmp_path):
    (finding,) = examine_parity(load_config(BASE, [*overrides, f"output_dir={tmp_path}"]), tmp_path)
    assert finding.state == "ok", finding
