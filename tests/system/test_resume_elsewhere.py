"""A run goes on with another number of ranks or another ZeRO stage: the same values, the same curve."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.system.resume_cases import rows_of, run_all

pytestmark = [pytest.mark.full, pytest.mark.timeout(1200)]

# ZeRO stages on 1 rank, then on 2, then on 1 again.
CHAINS = ((2, 2, 2), (3, 3, 1), (0, 3, 2), (1, 2, 0))
IN_BFLOAT16 = ((3, 2, 1), (1, 3, 2))
AT = (2, 3, 4)


def request(folder: Path, chain: tuple[int, ...], leg: int) -> dict[str, Any]:
    """One leg of a chain: from the last leg's last checkpoint to the next step of AT."""
    name = "".join(map(str, chain))
    overrides = [f"deepspeed.zero_stage={chain[leg]}", f"train.max_steps={AT[leg]}", "checkpoint.save_steps=0"]
    overrides += ["model.dtype=bfloat16", "rollout.old_log_probs=trainer"] if chain in IN_BFLOAT16 else []
    asked = {"output_dir": str(folder / f"{name}_{leg}"), "overrides": overrides, "record": f"{folder}/{name}_{leg}"}
    return asked | ({"source": str(folder / f"{name}_{leg - 1}"), "step": AT[leg - 1]} if leg else {})


@pytest.fixture(scope="module")
def chains(tmp_path_factory) -> tuple[Path, list[str]]:
    """All chains, and what rank 0 printed on each leg; `straight` is the run without any change."""
    folder = tmp_path_factory.mktemp("chains")
    straight = {"output_dir": str(folder / "straight"), "overrides": ["train.max_steps=4", "deepspeed.zero_stage=2"]}
    printed = []
    for leg, num_ranks in enumerate((1, 2, 1)):
        requests = [request(folder, chain, leg) for chain in CHAINS + IN_BFLOAT16] + ([straight] if leg == 0 else [])
        printed.append(run_all(folder / f"leg{leg}", requests, num_ranks))
    return folder, printed


@pytest.mark.parametrize("leg", [1, 2])
@pytest.mark.parametrize("chain", CHAINS + IN_BFLOAT16, ids=str)
def test_every_weight_and_moment_is_the_saved_one(chains, chain, leg):
    folder, _ = chains
    name = "".join(map(str, chain))
    saved, loaded = (
        torch.load(folder / f"{name}_{part}" / f"{moment}.pt", weights_only=True)
        for part, moment in ((leg - 1, "after"), (leg, "before"))
    )
    assert saved["steps"] == loaded["steps"] == [float(2 * AT[leg - 1])]
    # What is only there below ZeRO-3, the weights in use, are the float32 ones, rounded if need be.
    names = [key for key in saved if key != "steps" and not key.endswith(" in use")]
    assert len(names) > 100
    assert any(saved[key].abs().max() > 0 for key in names if key.endswith("exp_avg"))
    for key in names:
        assert torch.equal(saved[key], loaded[key]), key
        if f"{key} in use" in loaded:
            in_use = loaded[f"{key} in use"]
            assert torch.equal(saved[key].to(in_use.dtype), in_use), key


@pytest.mark.parametrize("chain", CHAINS, ids=str)
def test_the_curve_is_that_of_the_undisturbed_run(chains, chain):
    folder, _ = chains
    expected, rows = rows_of(folder / "straight"), rows_of(folder / f"{''.join(map(str, chain))}_2")
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    for row, straight in zip(rows, expected, strict=True):
        assert row == pytest.approx(straight, rel=1e-4, abs=1e-4)
    # Starting over would give the first row again.
    assert len({row["entropy"] for row in rows}) == 4


def test_the_user_is_told(chains):
    _, printed = chains
    assert "resharded" not in printed[0]
    for leg in (1, 2):
        assert printed[leg].count(f"continuing after step {AT[leg - 1]} of {AT[leg]}") == len(CHAINS + IN_BFLOAT16)
        assert printed[leg].count("resharded: ") == len(CHAINS + IN_BFLOAT16)
    assert "world_size was 1 and is now 2" in printed[1]
    assert "world_size was 1 and is now 2; deepspeed.zero_stage was 0 and is now 3" in printed[1]
