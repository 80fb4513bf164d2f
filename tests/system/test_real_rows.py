"""configs/tiny_geometry3k.yaml from training to an exported model: real images, LaTeX and answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.builders import plain_log_probs
from tests.system.batches import load_tiny, scored_groups
from tests.system.ranks import REPOSITORY, run_commands, run_ranks

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

CONFIG = REPOSITORY / "configs" / "tiny_geometry3k.yaml"


RUNS = ("one_rank_zero2", "two_ranks_zero2", "two_ranks_zero3")


def overrides(name: str) -> list[str]:
    """What a run changes in the recipe."""
    return [
        f"deepspeed.zero_stage={name[-1]}",
        "train.max_steps=2",
        "train.learning_rate=1.0e-3",
        "rollout.max_completion_length=12",
        # An untrained model earns nothing for its answers, and would not move.
        "rewards.functions=[{name: accuracy}, {name: even, path: 'tests/system/user_rewards.py:even_tokens'}]",
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The three runs, each evaluated again and exported by the command line."""
    root = tmp_path_factory.mktemp("real_rows")
    for num_ranks, names in ((1, RUNS[:1]), (2, RUNS[1:])):
        requests = [
            {
                "config": str(CONFIG),
                "overrides": overrides(name),
                "output_dir": str(root / name),
                "probe": str(root / f"{name}.json"),
            }
            for name in names
        ]
        (root / "requests.json").write_text(json.dumps(requests))
        driver = ("-m", "tests.system.drive_runs", root / "requests.json")
        assert_ended_well(run_ranks(driver, root / f"train{num_ranks}", num_ranks=num_ranks, timeout_s=120))
    commands: list[list[object]] = []
    for name in RUNS:
        run_dir = root / name
        evaluate = [
            "evaluate",
            CONFIG,
            *overrides(name),
            f"output_dir={run_dir}",
            "--model",
            run_dir,
            "--name",
            "again",
        ]
        commands += [evaluate, ["export", run_dir, "--out", root / f"exported_{name}"]]
    for done in run_commands(commands, root / "commands"):
        assert done["code"] == 0, done["stderr"][-3000:]
    return root


@pytest.mark.parametrize("name", RUNS)
def test_the_recipe_evaluates_before_and_after_and_writes_a_page_with_pictures(name, folder):
    for record in ("before", "after"):
        assert json.loads((folder / name / "eval" / f"{record}.json").read_text())["num_rows"] == 8
    assert (folder / name / "report.html").read_text().count("data:image") >= 8


@pytest.mark.parametrize("name", RUNS)
def test_evaluating_the_run_again_gives_the_completions_of_its_own_evaluation(name, folder):
    own, again = (json.loads((folder / name / "eval" / f"{each}.json").read_text()) for each in ("after", "again"))
    assert [item["completions"] for item in again["items"]] == [item["completions"] for item in own["items"]]
    # Else a report would take the trained model for the one before training.
    assert again["step"] == own["step"] == 2


@pytest.mark.parametrize("name", RUNS)
def test_the_exported_folder_is_the_trained_policy_for_transformers(name, folder):
    exported, by_the_engine = folder / f"exported_{name}", json.loads((folder / f"{name}.json").read_text())
    files = [path for path in exported.rglob("*") if not path.is_dir()]
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".jinja"}
    assert not any(path.is_symlink() for path in files)
    found = log_probs_under(exported)
    assert found == pytest.approx([value for row in by_the_engine for value in row], abs=1e-4)
    # The comparison could fail: training has moved the policy.
    before = log_probs_under(folder / name / "tiny_model")
    assert max(abs(a - b) for a, b in zip(found, before, strict=True)) > 1e-2


def assert_ended_well(ended: list) -> None:
    """Every rank exited with 0."""
    assert [process.code for process in ended] == [0] * len(ended), "\n".join(p.stderr[-3000:] for p in ended)


def log_probs_under(folder: Path) -> list[float]:
    """Log-probs of fixed completions under the stock transformers model of a folder."""
    model = load_tiny(folder)
    with torch.no_grad():
        return [
            value
            for group in scored_groups(model, "mixed")
            for completion in group.group.completions
            for value in plain_log_probs(model, group.group.prompt, completion.token_ids).tolist()
        ]
