"""One rank's error is everybody's error: all processes end in time, and the error is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.builders import picture
from tests.system.ranks import CLI, run_ranks
from tests.system.test_faults import BASE, drive
from vlm_mhpo.faults.dump import read_dump

pytestmark = [pytest.mark.full, pytest.mark.timeout(240)]

TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
# Where the second rank of two meets a NaN in the second step, and what the run is told to do.
SPOILT = [("loss", "stop"), ("loss", "skip"), ("gradient", "stop"), ("weight", "stop")]
PARTS = ["train.num_minibatches=2", "train.max_steps=3", "deepspeed.zero_stage=2", "data.eval=null"]


def test_a_reward_that_raises_on_one_rank_ends_the_launcher_and_is_named(tmp_path):
    reward = "rewards.functions=[{name: mine, path: 'tests/system/user_rewards.py:raises_on_the_second_rank'}]"
    arguments = ["train", BASE, f"output_dir={tmp_path / 'run'}", "deepspeed.zero_stage=2", reward]
    (ended,) = run_ranks([*TORCHRUN, *CLI, *arguments], tmp_path, timeout_s=60)
    assert ended.code not in (0, None)
    told = r"error: rank 1: reward 'mine' \(.*\) raised KeyError: 'no such column' .*\. The batch of step 1 is in "
    assert re.search(told, ended.stderr), ended.stderr[-3000:]


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """Two ranks each: an image cut short on one's share, NaNs on one, and a folder that cannot be saved in."""
    folder = tmp_path_factory.mktemp("failing")
    (folder / "unsaved").mkdir()
    (folder / "unsaved" / "checkpoints").write_text("a file where a folder should be")
    requests = [
        {"name": "picture", "num_ranks": 2, "more": [f"data.train={rows_with_a_bad_picture(folder)}"]},
        {"name": "unsaved", "num_ranks": 2, "more": [*PARTS, "train.max_steps=1"]},
    ]
    requests.append({"name": "memory", "num_ranks": 2, "memory": True, "more": [*PARTS, "deepspeed.zero_stage=3"]})
    for where, action in SPOILT:
        more = [*PARTS, f"train.on_nonfinite={action}"]
        requests.append({"name": f"{where}-{action}", "num_ranks": 2, "nan": where, "more": more})
    return folder, drive(folder, requests)


def rows_with_a_bad_picture(folder: Path) -> Path:
    """A table whose fourth row, of the second rank, has it."""
    rows = [{"problem": "What is 3 + 4 ?", "answer": "7"} for _ in range(8)]
    rows[3] = {**rows[3], "images": ["cut.png"]}
    (folder / "cut.png").write_bytes(picture(56, 56)[:120])
    table = folder / "rows.jsonl"
    table.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return table


def test_a_bad_picture_on_one_ranks_share_ends_both_with_the_same_sentence(ended):
    folder, answers = ended
    assert answers["picture"]["codes"] == [2, 2]
    first, second = answers["picture"]["stderr"]
    sentence = f"row rows/rows/4: image {folder}/cut.png: truncated or broken PNG"
    assert f"\nerror: rank 1: {sentence}" in first.replace("\r", "\n")
    assert f"error: {sentence}" in second
    assert "Traceback" not in first + second


def test_a_rank_without_memory_says_what_to_set_and_the_other_names_it(ended):
    answer = ended[1]["memory"]
    assert answer["codes"] == [5, 6] and answer["left"] == [], answer["stderr"]
    first, second = answer["stderr"]
    told = r"the update ran out of memory: set train\.max_tokens_per_micro_batch=\d+ \(now 16384\)"
    assert re.search(rf"error: {told}", second) and "Traceback" not in second
    assert re.search(rf"error: rank 1 failed in phase update of step 1: {told}", first)


@pytest.mark.parametrize("where", ["loss", "gradient", "weight"])
def test_a_nan_on_one_rank_ends_both_and_names_step_rank_and_prompts(where, ended):
    folder, answers = ended
    answer, run_dir = answers[f"{where}-stop"], folder / f"{where}-stop"
    assert answer["codes"] == [4, 4] and answer["left"] == [], answer["stderr"]
    # A NaN in one weight alone is seen when the ranks' gradients are already one.
    known = "in the backward of some rank" if where == "weight" else r"rank 1: prompts synthetic/shapes/[^,;)]+"
    for text in answer["stderr"]:
        assert "Traceback" not in text
        sentence = text.replace("\r", "\n").strip().splitlines()[-1]
        assert re.match(rf"error: step 2: the loss or gradient was not finite \({known}\); weights untouched", sentence)
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["step_000001"]
    # It was the first update of its step, so the weights that the run ended with are those of the checkpoint.
    before, after = (
        (run_dir / part / "policy" / "model.safetensors").read_bytes()
        for part in ("checkpoints/step_000001", "dumps/step_2")
    )
    assert before == after


@pytest.mark.parametrize("run", ["loss-stop", "loss-skip", "gradient-stop"])
def test_a_nan_on_one_rank_leaves_the_batch_of_both(run, ended):
    shares = read_dump(ended[0] / run / "dumps" / "step_2")
    assert [(share.rank, share.world_size, share.step) for share in shares] == [(0, 2, 2), (1, 2, 2)]
    named = re.search(r"rank 1: prompts ([^)]*)\)", shares[0].reason).group(1).split(", ")
    assert named == [scored.group.prompt.row.id for scored in shares[1].batch.groups]
    assert set(named).isdisjoint(scored.group.prompt.row.id for scored in shares[0].batch.groups)


def test_a_skipped_nan_is_counted_and_the_run_goes_on(ended):
    folder, answers = ended
    answer = answers["loss-skip"]
    assert answer["codes"] == [0, 0], answer["stderr"]
    rows = [json.loads(line) for line in (folder / "loss-skip" / "metrics.jsonl").read_text().splitlines()]
    assert [row["num_skipped_updates"] for row in rows] == [0, 1, 0]
    assert "step 2: the loss or gradient was not finite (rank 1: prompts" in answer["stdout"][0]


def test_a_checkpoint_that_cannot_be_written_ends_both_ranks_in_one_sentence(ended):
    answer = ended[1]["unsaved"]
    assert answer["codes"] == [4, 4], answer["stderr"]
    for rank, text in enumerate(answer["stderr"]):
        named = "rank 0: " if rank else ""
        assert re.search(rf"error: {named}step 1 could not be saved: .*; older checkpoints are intact\n$", text)
