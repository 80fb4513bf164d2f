"""What two gloo ranks save has the tensors of the folder that they loaded, as safetensors reads them, at any stage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

from tests.builders import FAMILIES, VISION_FAMILIES
from tests.model_folders import change_tensors, copy_of, listing, split_in_shards, tie_head
from tests.system.ranks import run_ranks
from vlm_mhpo.models.tiny import build_tiny

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

BASE = Path(__file__).with_name("base.yaml")
DTYPES = {"float32": ("F32", torch.float32), "bfloat16": ("BF16", torch.bfloat16)}
# Every family, whole and tied, under the stage that partitions weights; the other stages for one.
CASES = [
    *((family, kind, 3, dtype) for family in FAMILIES for kind, dtype in (("whole", "float32"), ("tied", "bfloat16"))),
    *(("qwen2_5_vl", "tied", stage, "bfloat16") for stage in (0, 1, 2)),
    *(("qwen2_5_vl", "shards", stage, "float32") for stage in (0, 3)),
]
BROKEN = ("headless", "misshapen", "foreign")


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[tuple[str, str], Path]:
    """Model folders by family and kind, whole ones and broken ones."""
    root = tmp_path_factory.mktemp("folders")
    found = {(family, "whole"): build_tiny(root / family, family, hidden_size=64) for family in FAMILIES}
    for family in FAMILIES:
        found[family, "tied"] = tie_head(copy_of(found[family, "whole"], root / f"{family}_tied"))
    source = found["qwen2_5_vl", "whole"]
    copies = {kind: copy_of(source, root / kind) for kind in ("shards", *BROKEN)}
    split_in_shards(copies["shards"])
    change_tensors(copies["headless"], lambda held: {name: held[name] for name in held if name != "lm_head.weight"})
    change_tensors(copies["misshapen"], lambda held: held | {"lm_head.weight": held["lm_head.weight"][:-1]})
    change_tensors(copies["foreign"], lambda held: {f"module.{name}": value for name, value in held.items()})
    return found | {("qwen2_5_vl", kind): folder for kind, folder in copies.items()}


@pytest.fixture(scope="module")
def saved(folders, tmp_path_factory) -> Path:
    """What both ranks made of every case."""
    root = tmp_path_factory.mktemp("saved")
    # By default ZeRO-3 leaves weights as small as a tiny model's whole, and would not be tested at all.
    partitioned = root / "zero3.json"
    partitioned.write_text(json.dumps({"zero_optimization": {"stage": 3, "stage3_param_persistence_threshold": 0}}))
    jobs = []
    for family, kind, stage, dtype in [*CASES, *(("qwen2_5_vl", kind, 3, "float32") for kind in BROKEN)]:
        overrides = [f"model.dtype={dtype}", f"deepspeed.zero_stage={stage}"]
        overrides += [f"deepspeed.config={partitioned}"] if stage == 3 else []
        out = root / name_of(family, kind, stage, dtype)
        jobs.append(
            {"config": str(BASE), "folder": str(folders[family, kind]), "out": str(out), "overrides": overrides}
        )
    (root / "jobs.json").write_text(json.dumps(jobs))
    for ended in run_ranks(("-m", "tests.system.drive_saving", root / "jobs.json"), root, num_ranks=2, timeout_s=150):
        assert ended.code == 0, ended.stderr[-3000:]
    return root


def name_of(family: str, kind: str, stage: int, dtype: str) -> str:
    return f"{family}-{kind}-{stage}-{dtype}"


@pytest.mark.parametrize(("family", "kind", "stage", "dtype"), CASES)
def test_names_and_shapes_are_those_that_were_loaded(folders, saved, family, kind, stage, dtype):
    name, torch_dtype = DTYPES[dtype]
    source, written = folders[family, kind], saved / name_of(family, kind, stage, dtype)
    assert listing(written) == {tensor: (shape, name) for tensor, (shape, _) in listing(source).items()}
    held = {tensor: value for file in source.glob("*.safetensors") for tensor, value in load_file(file).items()}
    for file in written.glob("*.safetensors"):
        assert all(torch.equal(value, held[tensor].to(torch_dtype)) for tensor, value in load_file(file).items())


@pytest.mark.parametrize(("family", "kind", "stage", "dtype"), [case for case in CASES if case[2] == 3])
def test_plain_transformers_misses_nothing_in_it(saved, family, kind, stage, dtype):
    reader = AutoModelForImageTextToText if family in VISION_FAMILIES else AutoModelForCausalLM
    _, info = reader.from_pretrained(saved / name_of(family, kind, stage, dtype), output_loading_info=True)
    assert not any(info.values())


@pytest.mark.parametrize("kind", BROKEN)
def test_both_ranks_refuse_a_broken_folder_under_zero_3_in_the_same_words(saved, kind):
    told = {(saved / f"{name_of('qwen2_5_vl', kind, 3, 'float32')}.rank{rank}.txt").read_text() for rank in (0, 1)}
    assert len(told) == 1 and "lm_head.weight" in told.pop()
