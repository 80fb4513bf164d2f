"""DeepSpeed in bfloat16: the sum of micro-batch gradients and Adam's first update, against plain arithmetic."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.builders import build_and_load, prompts_of, random_completions
from vlm_mhpo.config import DeepSpeedConfig, load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.micro_batches import micro_batches

BASE = Path(__file__).parents[1] / "system" / "base.yaml"
RATE = 1e-3


@pytest.fixture(autouse=True)
def torch_as_it_was(monkeypatch):
    """ZeRO-3 puts its own linear layer in the place of torch's, for good."""
    monkeypatch.setattr(torch.nn.functional, "linear", torch.nn.functional.linear)


def engine_of(folder: Path, stage: int, **options) -> Engine:
    """An engine that clips nothing, around the weights in a folder."""
    ranks.start(1)
    policy, _ = load_policy(str(folder), dtype="bfloat16")
    train = load_config(BASE, ["train.max_grad_norm=1e9", "train.weight_decay=0.1"]).train
    return Engine(policy, optimizer=train, deepspeed=DeepSpeedConfig(zero_stage=stage, **options), dtype="bfloat16")


def next_gradient(engine: Engine) -> list[torch.Tensor]:
    """A list that will hold the optimizer's gradients, in its order, once it steps."""
    held: list[torch.Tensor] = []

    def keep(optimizer, *_):
        held.extend(p.grad.flatten().clone() for group in optimizer.param_groups for p in group["params"])

    engine.optimizer.register_step_pre_hook(keep)
    return held


@pytest.mark.parametrize("options", [{}, {"offload_optimizer": True}], ids=["device", "offloaded"])
@pytest.mark.parametrize("stage", [2, 3])
def test_gradients_of_micro_batches_are_added_in_float32(stage, options, tmp_path):
    """Each is rounded to bfloat16 once, by the model; their sum is not."""
    model = build_and_load(tmp_path / "model", "qwen2_5_vl")
    engine = engine_of(tmp_path / "model", stage, **options)
    plain, _ = load_policy(str(tmp_path / "model"), dtype="bfloat16")
    prompts = prompts_of(model) * 8
    ids = [random_completions(model, (6, 3), seed=index) for index in range(len(prompts))]
    exact = rounded = 0
    batches = list(micro_batches(plain, prompts, ids, max_tokens=10, pad_id=0))
    assert len(batches) == 48
    for batch in batches:
        for policy in (plain, engine):
            loss = policy(batch.rows, temperature=1.0, chunk_size=4096)[0].sum() / len(batches)
            policy.backward(loss) if policy is engine else loss.backward()
        grads = [weight.grad for weight in plain.parameters()]
        gradient = torch.cat(
            [
                torch.zeros(p.numel()) if g is None else g.flatten()
                for p, g in zip(plain.parameters(), grads, strict=True)
            ]
        )
        exact, rounded = exact + gradient.double(), (rounded + gradient).bfloat16()
        plain.zero_grad()
    held = next_gradient(engine)
    assert engine.update(0.0).applied
    # Flat parts end with padding.
    found = torch.cat(held)[: len(exact)].double()
    assert (found - exact).norm() <= 1e-6 * exact.norm()
    # What DeepSpeed does unasked is far outside.
    assert (rounded - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_the_first_update_is_adams_first(stage, tmp_path):
    """It moves every weight by the learning rate, whatever the gradient; a second one would move it by 0.74 of that."""
    build_and_load(tmp_path / "model", "qwen2")
    engine = engine_of(tmp_path / "model", stage)
    masters = [weight for group in engine.optimizer.param_groups for weight in group["params"]]
    loaded, _ = load_policy(str(tmp_path / "model"), dtype="bfloat16")
    before = torch.cat([weight.detach().flatten() for weight in masters])
    total = sum(weight.numel() for weight in loaded.parameters())
    # Nothing has been decayed or moved on the way.
    assert torch.equal(before[:total], torch.cat([weight.detach().float().flatten() for weight in loaded.parameters()]))
    engine.backward(sum((weight.float() ** 2).sum() for weight in engine.policy.parameters()))
    assert engine.update(RATE).applied
    after = torch.cat([weight.detach().flatten() for weight in masters])[:total]
    before = before[:total]
    # AdamW, decoupled decay: w - rate * 0.1 * w - rate * sign(gradient), and the gradient is 2 w.
    expected = before - RATE * 0.1 * before - RATE * before.sign()
    # Beside Adam's epsilon the smallest are not small.
    large = before.abs() > 1e-3
    assert large.float().mean() > 0.9
    assert torch.allclose(after[large], expected[large], rtol=0, atol=RATE * 1e-3)
