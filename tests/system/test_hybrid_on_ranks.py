"""Gated delta nets and routed experts on two gloo ranks under ZeRO 0 to 3: the update is that of plain torch."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from tests.model_folders import change_tensors
from tests.reference import advantages as reference
from tests.system.batches import REWARDS, load_tiny, plain_step, scored_groups
from tests.system.launches import NO_CLIPPING, assert_same_weights, launch
from tests.vlm_mhpo.test_hybrid import experts_as_columns
from vlm_mhpo.models.tiny import build_tiny

pytestmark = [pytest.mark.full, pytest.mark.timeout(240)]

# Stages that cut weights need each kind of layer; of the others one or two of a kind are enough.
CASES = [("qwen3_5", 0), ("qwen3_5", 2), ("qwen3_5", 3), ("qwen3_5_moe", 1), ("qwen3_5_moe", 3), ("qwen3_vl_moe", 3)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    built = {family: build_tiny(root / family, family, hidden_size=64) for family in dict(CASES)}
    change_tensors(built["qwen3_vl_moe"], experts_as_columns)
    return built


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, folders):
    """Images on the first rank alone, micro-batches in different numbers, and sampling where weights are cut."""
    jobs = [
        {"name": f"{family}{stage}", "case": "lopsided", "stage": stage, "model": str(folders[family])}
        | {"overrides": ["train.max_tokens_per_micro_batch=60"], "save": stage == 3, "sample": stage == 3}
        for family, stage in CASES
    ]
    return launch(tmp_path_factory.mktemp("two"), folders["qwen3_5"], jobs, 2)


@pytest.mark.parametrize(("family", "stage"), CASES)
def test_an_update_on_two_ranks_is_the_update_of_plain_torch(two_ranks, folders, family, stage):
    model = load_tiny(folders[family])
    groups = scored_groups(model, "lopsided")
    expected, norm = plain_step(model, groups, reference.group_advantages(REWARDS, "group"), NO_CLIPPING)
    assert_same_weights(two_ranks.weights(f"{family}{stage}"), expected, model.policy.model.state_dict())
    assert two_ranks.result(f"{family}{stage}")["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-4)
    if stage == 3:
        saved, loaded = (load_file(place / "model.safetensors") for place in
                         (two_ranks.folder / f"{family}{stage}", folders[family]))  # fmt: skip
        assert {name: value.shape for name, value in saved.items()} == {n: v.shape for n, v in loaded.items()}
        # Cut weights were whole when completions were drawn.
        assert all(two_ranks.result(f"{family}{stage}", rank)["completions"] for rank in (0, 1))
