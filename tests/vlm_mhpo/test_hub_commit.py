"""A run writes down which commit of a hub model it loaded, because the name alone may mean another one tomorrow."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm_mhpo.config import load_config
from vlm_mhpo.models.loading import load_policy, loaded_commit
from vlm_mhpo.training.assembly import Parts, record_run

OLD, NEW = "0" * 39 + "a", "0" * 39 + "b"


@pytest.fixture
def hub(tiny, tmp_path, monkeypatch) -> Path:
    """The local cache of a hub that cannot be reached, with two commits of somebody/tiny; `main` is the new one."""
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))
    model = cache / "models--somebody--tiny"
    for commit, scale in ((OLD, 1.0), (NEW, 2.0)):
        folder = Path(shutil.copytree(tiny("qwen2").folder, model / "snapshots" / commit))
        weights = load_file(folder / "model.safetensors")
        save_file(
            {name: scale * value for name, value in weights.items()}, folder / "model.safetensors", {"format": "pt"}
        )
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(NEW)
    return cache


@pytest.mark.parametrize("revision,commit,scale", [(None, NEW, 2.0), (OLD, OLD, 1.0), (NEW, NEW, 2.0)])
def test_run_json_names_the_commit_that_was_loaded(hub, tiny, tmp_path, revision, commit, scale):
    policy, _ = load_policy("somebody/tiny", revision=revision)
    mine, stock = (each.model.get_input_embeddings().weight for each in (policy, tiny("qwen2").policy))
    assert torch.equal(mine, scale * stock)
    values = [f"output_dir={tmp_path / 'run'}", "model.path=somebody/tiny", f"model.revision={revision or 'null'}"]
    config = load_config(Path(__file__).parents[1] / "system" / "base.yaml", values)
    record_run(config, Parts(SimpleNamespace(policy=policy), None, None, None, (), ()))
    assert json.loads((tmp_path / "run" / "run.json").read_text())["model"]["commit"] == commit


def test_a_folder_has_no_commit(tiny, tmp_path):
    assert loaded_commit(str(tiny("qwen2").folder), None) is None


def test_what_is_not_in_the_cache_has_none(hub):
    assert loaded_commit("somebody/else", None) is None
    assert loaded_commit("somebody/tiny", "c" * 40) is None
