"""Every recipe that is shipped loads and passes the doctor."""

from __future__ import annotations

import pytest

from tests.system.ranks import REPOSITORY
from vlm_mhpo.commands.doctor import examine
from vlm_mhpo.config import check_world_size, load_config

RECIPES = sorted((REPOSITORY / "configs").glob("*.yaml"))
# What the comments of the recipes promise.
RANKS = {
    "quickstart": (1, 2),
    "tiny_geometry3k": (1, 2),
    "qwen2_5_vl_3b_geometry3k": (4, 8),
    "qwen2_5_vl_7b_geometry3k": (8,),
    "qwen2_5_vl_7b_lora_1gpu": (1,),
    "qwen2_5_vl_7b_lora_48gb": (1,),
    "qwen3_vl_8b_geometry3k": (8,),
    "qwen3_vl_8b_geometry3k_16k": (8,),
    "qwen2_5_7b_math12k": (8,),
}


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_loads_and_the_doctor_finds_no_error(recipe, monkeypatch):
    # Paths in recipes start from the root of the source tree.
    monkeypatch.chdir(REPOSITORY)
    findings = examine(load_config(recipe))
    assert [finding for finding in findings if finding.state == "error"] == []
    assert len(findings) > 4


@pytest.mark.parametrize("name", RANKS)
def test_a_recipe_runs_on_the_number_of_ranks_that_it_names(name):
    config = load_config(REPOSITORY / "configs" / f"{name}.yaml")
    for ranks in RANKS[name]:
        check_world_size(config, ranks)


def test_there_are_recipes():
    assert {path.stem for path in RECIPES} >= set(RANKS)
