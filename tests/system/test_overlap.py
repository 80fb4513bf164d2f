"""What runs ahead or is computed once changes no number: prefetched prompts, features of a frozen vision tower."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.builders import picture
from tests.system.test_runs import assert_same_row, rows_of, run_all
from tests.video_files import noisy_frames, video

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

FROZEN = ["model.freeze_vision_tower=true", "objective.beta=0.1", "train.max_steps=3", "data.eval=null",
          "data.video.min_pixels=1568", "data.video.max_pixels=3136"]  # fmt: skip
DYNAMIC = ["rollout.dynamic_sampling=true", "train.max_steps=3", "data.eval=null"]


def write_mixed_rows(folder: Path) -> Path:
    """Eight rows of which every other has an image and two a video, so that ranks differ in what they hold."""
    lines = []
    for n in range(8):
        row = {"problem": f"What is {n} + 1 ?", "answer": str(n + 1)}
        if n % 2:
            (folder / f"{n}.png").write_bytes(picture(56, 28 * (1 + n % 3), seed=n))
            row |= {"problem": f"<image>{row['problem']}", "images": [f"{n}.png"]}
        if n in (2, 5):
            (folder / f"{n}.mp4").write_bytes(video(noisy_frames(6, seed=n), fps=3))
            row |= {"problem": f"<video>{row['problem']}", "videos": [f"{n}.mp4"]}
        lines.append(json.dumps(row))
    file = folder / "mixed.jsonl"
    file.write_text("\n".join(lines))
    return file


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> Path:
    """Runs of one process."""
    folder = tmp_path_factory.mktemp("overlap_alone")
    requests = []
    for name, overrides in (("plain", []), ("dynamic", DYNAMIC)):
        for ahead in ("true", "false"):
            run = {"output_dir": str(folder / f"{name}_{ahead}"), "overrides": [*overrides, f"data.prefetch={ahead}"]}
            requests.append(run)
    rows = f"data.train={write_mixed_rows(folder)}"
    requests.append({"output_dir": str(folder / "frozen"), "overrides": [*FROZEN, rows]})
    run_all(folder, requests, 1)
    return folder


@pytest.fixture(scope="module")
def together(alone, tmp_path_factory) -> Path:
    """Runs of two ranks."""
    folder = tmp_path_factory.mktemp("overlap_together")
    rows = f"data.train={alone / 'mixed.jsonl'}"
    requests = [
        {"output_dir": str(folder / f"frozen{stage}{projector}"), "overrides": [*FROZEN, rows, *settings]}
        for stage, projector in ((2, "false"), (3, "false"), (3, "true"))
        for settings in [[f"deepspeed.zero_stage={stage}", f"model.freeze_projector={projector}"]]
    ]
    run_all(folder, requests, 2)
    return folder


@pytest.mark.parametrize("name", ["plain", "dynamic"])
def test_prefetched_prompts_write_the_same_bytes_of_metrics(alone, name):
    ahead, plain = (rows_of(alone / f"{name}_{value}") for value in ("true", "false"))
    assert json.dumps(ahead) == json.dumps(plain)
    assert len({row["policy_loss"] for row in ahead if "policy_loss" in row}) >= 3
    weights = [
        max((alone / f"{name}_{value}").glob("checkpoints/step_*")) / "policy" / "model.safetensors"
        for value in ("true", "false")
    ]
    assert weights[0].read_bytes() == weights[1].read_bytes()


@pytest.mark.parametrize("stage", [2, 3])
def test_two_ranks_with_a_frozen_tower_see_the_metrics_of_one(alone, together, stage):
    """Every rank runs the same modules, whether its prompts have images or not."""
    first, second = rows_of(alone / "frozen"), rows_of(together / f"frozen{stage}false")
    assert [row["step"] for row in second] == [1, 2, 3]
    assert_same_row(second[0], first[0])
    assert second[1]["kl"] > 1e-6


def test_a_frozen_projector_trains_on_two_ranks_too(together):
    rows = rows_of(together / "frozen3true")
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert all(row["grad_norm"] > 0 for row in rows)
