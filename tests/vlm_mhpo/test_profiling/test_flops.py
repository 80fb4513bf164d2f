"""Model FLOPs against torch's own counter, work against the packed mask, the matmul rate against a scripted clock."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.builders import build_and_load, picture, problem_row, random_completions
from vlm_mhpo.commands.profiling.flops import Work, model_flops, parts_of, sampling_work, training_work
from vlm_mhpo.commands.profiling.rate import matmul_rate
from vlm_mhpo.training.micro_batches import micro_batches


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl", "qwen2_vl", "qwen2", "glm4v", "internvl"])
def eager(request, tmp_path_factory):
    """A model whose attention is plain matrix products, so that torch's counter sees each of them."""
    return build_and_load(tmp_path_factory.mktemp("eager"), request.param, attn_implementation="eager")


def packed_forward(model):
    """(packed rows of one prompt and two completions, the work of a forward that leaves nothing masked out)."""
    side = model.token_side
    # 5 x 6 image tokens: windows of 4 x 4 are cut at both edges.
    images = [picture(6 * side, 5 * side)] if model.has_vision else []
    row = problem_row("one", "<image>What is 1 + 2 ?" if images else "What is 1 + 2 ?", images)
    prompt = model.builder()(row)
    completions = random_completions(model, (4, 7))
    (micro_batch,) = micro_batches(model.policy, [prompt], [completions], max_tokens=10_000, pad_id=model.codec.pad_id)
    width = prompt.num_tokens + 11
    work = Work(tokens=width, pairs=width**2, predictions=11)
    if images:
        work += model.policy.family.vision.work(model.policy.model, prompt.media)
    return micro_batch.rows, work


def counted(model, rows, *, backward: bool) -> int:
    """What torch counts while the policy runs."""
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        log_probs_N, _ = model.policy(rows, temperature=1.0, chunk_size=4096)
        if backward:
            log_probs_N.sum().backward()
    model.policy.zero_grad()
    return counter.get_total_flops()


@pytest.mark.parametrize("backward", [False, True])
def test_flops_are_those_that_torch_counts(eager, backward):
    rows, work = packed_forward(eager)
    ours = model_flops(parts_of(eager.policy), work, backward=backward)
    # What is left out (rotary positions) is well below a thousandth.
    assert ours == pytest.approx(counted(eager, rows, backward=backward), rel=1e-3)


def test_a_frozen_vision_tower_has_no_backward(eager):
    if not eager.has_vision:
        pytest.skip("a text model has no tower")
    rows, work = packed_forward(eager)
    whole = model_flops(parts_of(eager.policy), work, backward=True)
    # The projector of some families lies inside the tower.
    vision = [weight for name, weight in eager.policy.named_parameters() if eager.part_of(name) != "language"]
    for weight in vision:
        weight.requires_grad_(False)
    try:
        ours = model_flops(parts_of(eager.policy), work, backward=True)
        assert ours == pytest.approx(counted(eager, rows, backward=True), rel=1e-3)
        assert ours < whole
    finally:
        for weight in vision:
            weight.requires_grad_(True)


def test_work_of_training_is_what_the_packed_mask_allows(eager):
    rows, _ = packed_forward(eager)
    length = rows.input_ids_RS.shape[1]
    work = training_work(length - 11, [4, 7])
    assert (work.tokens, work.pairs, work.predictions) == (length, int(rows.allowed_R1SS.sum()), 11)


def test_work_of_sampling_by_hand():
    # Prompt of 3: pairs 1 + 2 + 3. A completion of 3 feeds two tokens, which see 4 and 5; one of 1 feeds none.
    # Logits: one set for the first tokens of both, then one for each fed token.
    assert sampling_work(3, [3, 1]) == Work(tokens=5, pairs=6 + 4 + 5, predictions=1 + 2)


def test_the_matmul_rate_is_a_product_of_that_size_over_its_time(monkeypatch):
    ticks = iter(range(100))
    monkeypatch.setattr("vlm_mhpo.commands.profiling.rate.SIZE", {"cpu": 10})
    monkeypatch.setattr("vlm_mhpo.commands.profiling.rate.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    assert matmul_rate(torch.device("cpu"), torch.float32) == 2000.0
