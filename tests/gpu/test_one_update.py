"""One update in bfloat16 under ZeRO-2 and ZeRO-3, on the device, against AdamW's own formula."""

from __future__ import annotations

import math

import pytest

from tests.builders import build_and_load
from tests.vlm_mhpo.test_other_device import BASE
from tests.vlm_mhpo.update_cases import PlainEngine, batch_of, settings_of
from vlm_mhpo.config import DeepSpeedConfig, MhpoConfig, load_config
from vlm_mhpo.engine.deepspeed import Engine
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.objectives import build_objective
from vlm_mhpo.runtime import ranks
from vlm_mhpo.training.token_statistics import Totals
from vlm_mhpo.training.update import accumulate, update_on

pytestmark = [pytest.mark.gpu, pytest.mark.usefixtures("device", "restored")]
RATE, EPSILON = 1e-2, 1e-8


@pytest.mark.parametrize("stage", [2, 3])
def test_one_update_is_adams(stage, device, tmp_path):
    """The gradient of the plain policy in one piece; the first step of AdamW is rate g / (|g| + epsilon)."""
    ranks.start(1)
    model = build_and_load(tmp_path / "model", "qwen2_5_vl")
    batch = batch_of(model)
    objective, settings = build_objective(MhpoConfig(), 16), settings_of()
    plain, _ = load_policy(str(tmp_path / "model"), dtype="bfloat16")
    plain.to(device).train()
    accumulate(PlainEngine(plain), objective, batch, settings, Totals())
    gradients = {
        name: weight.grad.float() for name, weight in plain.model.named_parameters() if weight.grad is not None
    }
    norm = math.sqrt(sum(float(each.double().square().sum()) for each in gradients.values()))
    before = {name: weight.detach().float() for name, weight in plain.model.named_parameters()}
    policy, _ = load_policy(str(tmp_path / "model"), dtype="bfloat16")
    train = load_config(BASE, ["train.max_grad_norm=1e9"]).train
    engine = Engine(policy, optimizer=train, deepspeed=DeepSpeedConfig(zero_stage=stage), dtype="bfloat16")
    result = update_on(engine, objective, [batch], settings, learning_rate=RATE, step=1)
    assert result.grad_norms == pytest.approx([norm], rel=1e-3)
    right = total = 0
    with engine.whole_weights():
        for name, weight in engine.policy.model.named_parameters():
            assert weight.device.type == device.type
            if name not in gradients:
                continue
            gradient = gradients[name]
            expected = (before[name] - RATE * gradient / (gradient.abs() + EPSILON)).bfloat16()
            # Which way a gradient of nothing but rounding points is nobody's business.
            counts = gradient.abs() > 1e-3 * gradient.abs().max()
            # One unit of bfloat16 more or less where the float32 master lies between two.
            near = (weight.detach().float() - expected.float()).abs() <= 2**-7 * expected.float().abs() + 1e-6
            right += int((near & counts).sum())
            total += int(counts.sum())
    assert total > 100_000
    assert right >= 0.999 * total
    engine.deepspeed.destroy()
