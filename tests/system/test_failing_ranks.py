"""One rank's error is everybody's error: all processes end in time, and the error is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.builders import picture
from tests.system.ranks import CLI, run_ranks
from vlm_mhpo.faults.dump import read_dump

pytestmark = [pytest.mark.full, pytest.mark.timeout(120)]

BASE = Path(__file__).with_name("base.yaml")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def test_a_reward_that_raises_on_one_rank_ends_the_launcher_and_is_named(tmp_path):
    reward = "rewards.functions=[{name: mine, path: 'tests/system/user_rewards.py:raises_on_the_second_rank'}]"
    arguments = ["train", BASE, f"output_dir={tmp_path / 'run'}", "deepspeed.zero_stage=2", reward]
    (ended,) = run_ranks([*TORCHRUN, *CLI, *arguments], tmp_path, timeout_s=60)
    assert ended.code not in (0, None)
    assert re.search(r"error: reward 'mine' \(.*\) raised KeyError: 'no such column'", ended.stderr)


def test_a_bad_picture_on_one_ranks_share_ends_both_with_the_same_sentence(tmp_path):
    rows = [{"problem": "What is 3 + 4 ?", "answer": "7"} for _ in range(8)]
    rows[3] = {**rows[3], "images": ["cut.png"]}
    (tmp_path / "cut.png").write_bytes(picture(56, 56)[:120])
    table = tmp_path / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["train", BASE, f"output_dir={tmp_path / 'run'}", f"data.train={table}"]
    first, second = run_ranks([*CLI, *arguments], tmp_path / "ranks", num_ranks=2, timeout_s=60)
    assert (first.code, second.code) == (2, 2)
    sentence = f"row rows/rows/4: image {tmp_path}/cut.png: truncated or broken PNG"
    assert f"\nerror: rank 1: {sentence}" in first.stderr.replace("\r", "\n")
    assert f"error: {sentence}" in second.stderr
    assert "Traceback" not in first.stderr + second.stderr


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """The ranks and the folder of a run whose second step meets a NaN on the second rank, by what it is told to do."""
    runs = {}
    for action in ("stop", "skip"):
        folder = tmp_path_factory.mktemp(action)
        overrides = [
            f"train.on_nonfinite={action}",
            "deepspeed.zero_stage=2",
            "checkpoint.save_steps=1",
            "data.eval=null",
        ]
        arguments = ["train", BASE, f"output_dir={folder / 'run'}", "train.max_steps=3", *overrides]
        ended = run_ranks(["-m", "tests.system.drive_nan", *arguments], folder, num_ranks=2, timeout_s=60)
        runs[action] = (ended, folder / "run")
    return runs


def test_a_nan_on_one_rank_ends_both_and_names_step_rank_and_prompts(spoilt):
    ended, run_dir = spoilt["stop"]
    for process in ended:
        assert process.code == 4
        assert "Traceback" not in process.stderr
        sentence = process.stderr.replace("\r", "\n").strip().splitlines()[-1]
        assert re.match(
            r"error: step 2: the loss or gradient was not finite \(rank 1: prompts synthetic/shapes/\S+\); weights "
            "untouched",
            sentence,
        )
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000001"]


@pytest.mark.parametrize("action", ["stop", "skip"])
def test_a_nan_on_one_rank_leaves_the_batch_of_both(spoilt, action):
    _, run_dir = spoilt[action]
    shares = read_dump(run_dir / "dumps" / "step_2")
    assert [(share.rank, share.world_size, share.step) for share in shares] == [(0, 2, 2), (1, 2, 2)]
    named = re.search(r"rank 1: prompts ([^)]*)\)", shares[0].reason).group(1).split(", ")
    assert named == [scored.group.prompt.row.id for scored in shares[1].batch.groups]
    assert set(named).isdisjoint(scored.group.prompt.row.id for scored in shares[0].batch.groups)


def test_a_skipped_nan_is_counted_and_the_run_goes_on(spoilt):
    ended, run_dir = spoilt["skip"]
    assert [process.code for process in ended] == [0, 0], ended[0].stderr[-3000:]
    rows = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_skipped_updates"] for row in rows] == [0, 1, 0]
    assert "step 2: the loss or gradient was not finite (rank 1: prompts" in ended[0].stdout


def test_a_checkpoint_that_cannot_be_written_ends_both_ranks_in_one_sentence(tmp_path):
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / "checkpoints").write_text("a file where a folder should be")
    arguments = [
        "train",
        BASE,
        f"output_dir={run_dir}",
        "data.eval=null",
        "train.max_steps=1",
        "deepspeed.zero_stage=2",
    ]
    for rank, process in enumerate(run_ranks([*CLI, *arguments], tmp_path / "ranks", num_ranks=2, timeout_s=60)):
        assert process.code == 4, process.stderr[-3000:]
        named = "rank 0: " if rank else ""
        assert re.search(
            rf"error: {named}step 1 could not be saved: .*; older checkpoints are intact\n$", process.stderr
        )
