"""An update of families with other towers on two gloo ranks, of which one has every image, is that of plain torch."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.own_models import build_own
from tests.reference import advantages as reference
from tests.system.batches import REWARDS, load_tiny, plain_step, scored_groups
from tests.system.launches import NO_CLIPPING, Launch, assert_same_weights, launch
from vlm_mhpo.models.tiny import build_tiny

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

FAMILIES = ("glm4v", "internvl", "gemma3", "gemma4")
# Of the generic family: a row for each completion, by the model's own inputs.
OWN = "mistral3"
STAGES = (2, 3)


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    known = {family: build_tiny(root / family, family, hidden_size=64) for family in FAMILIES}
    return known | {OWN: build_own(root / OWN, OWN)}


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory, folders) -> Launch:
    # The second rank has to make up a blank image, or the first would wait for it.
    jobs = [
        {"name": f"{family}{stage}", "model": str(folder), "case": "lopsided", "stage": stage}
        for family, folder in folders.items()
        for stage in STAGES
    ]
    return launch(tmp_path_factory.mktemp("two"), Path(), jobs, 2)


@pytest.mark.parametrize("family", (*FAMILIES, OWN))
def test_an_update_is_that_of_plain_torch_though_one_rank_has_every_image(two_ranks, folders, family):
    model = load_tiny(folders[family])
    groups = scored_groups(model, "lopsided")
    expected, norm = plain_step(model, groups, reference.group_advantages(REWARDS, "group"), NO_CLIPPING)
    for stage in STAGES:
        assert_same_weights(two_ranks.weights(f"{family}{stage}"), expected, model.policy.model.state_dict())
        assert two_ranks.result(f"{family}{stage}")["metrics"]["grad_norm"] == pytest.approx(norm, rel=1e-4)
