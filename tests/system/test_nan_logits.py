"""A model whose logits are NaN ends every command that samples it with exit code 4, naming prompts and evidence."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.model_folders import change_tensors
from tests.system.outcomes import assert_one_sentence
from tests.system.ranks import CLI, run_commands, run_ranks
from vlm_mhpo.models.tiny import build_tiny

pytestmark = [pytest.mark.full, pytest.mark.timeout(180)]

BASE = Path(__file__).with_name("base.yaml")
BAD, NUM_ROWS = "What is red plus blue?", 8


def rows_file(folder: Path) -> Path:
    """Every other row asks what the model cannot read without a NaN."""
    problems = [(f"b{n}", BAD) if n % 2 else (f"a{n}", "1 + 2") for n in range(NUM_ROWS)]
    file = folder / "rows.jsonl"
    file.write_text("".join(json.dumps({"id": i, "problem": text, "answer": "3"}) + "\n" for i, text in problems))
    return file


def poison(folder: Path) -> Path:
    """A tiny model that has a NaN in the embedding of one token of the bad problem, and of no other."""
    from transformers import AutoTokenizer

    build_tiny(folder, "qwen2", hidden_size=64)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    bad, good = (set(tokenizer(text)["input_ids"]) for text in (BAD, "1 + 2"))
    token = max(bad - good)

    def spoil(held: dict) -> dict:
        held["model.embed_tokens.weight"][token, 0] = torch.nan
        return held

    return change_tensors(folder, spoil)


# One token each, so that no good prompt samples the bad one and goes on from it.
SHORT = ("rollout.max_completion_length=1", "eval.before=false", "train.num_prompts_per_step=8", "data.eval=null")
SAMPLED = ("eval.num_samples=2", "eval.temperature=1")


@pytest.fixture(scope="module")
def ended(tmp_path_factory) -> tuple[Path, dict[str, dict[str, Any]]]:
    """What each command made of the model."""
    root = tmp_path_factory.mktemp("nan")
    model, rows = poison(root / "model"), rows_file(root)
    common = [f"model.path={model}", f"data.train={rows}", *SHORT]
    held_out = [f"data.eval={rows}", "eval.before=true"]
    commands = {
        "train": ["train", BASE, *common, f"output_dir={root}/train"],
        "before": ["train", BASE, *common, *held_out, f"output_dir={root}/before"],
        "greedy": ["evaluate", BASE, *common, *held_out, f"output_dir={root}/greedy"],
        "sampled": ["evaluate", BASE, *common, *held_out, *SAMPLED, f"output_dir={root}/sampled"],
        "parity": ["doctor", BASE, *common, "--parity", "--quick"],
        "replay": ["replay", root / "train/dumps/step_1", "--model", model],
        "again": ["replay", root / "greedy/eval/dumps/step_0", "--model", model],
    }
    done = run_commands(list(commands.values()), root / "commands")
    return root, dict(zip(commands, done, strict=True))


@pytest.mark.parametrize(
    "name,beginning,dump",
    [
        ("train", "step 1: ", "train/dumps/step_1"),
        ("before", "step 0: ", "before/dumps/step_0"),
        ("greedy", "", "greedy/eval/dumps/step_0"),
        ("sampled", "", "sampled/eval/dumps/step_0"),
    ],
)
def test_a_run_and_an_evaluation_name_step_rank_prompts_and_dump(ended, name, beginning, dump):
    root, outcomes = ended
    outcome = outcomes[name]
    told = rf"{beginning}the model's logits were not finite while it was sampled \(rank 0: prompts ([^)]*)\).*"
    assert_one_sentence(outcome["code"], outcome["stderr"], told + re.escape(str(root / dump)) + ".*")
    assert outcome["code"] == 4
    (named,) = re.search(told, outcome["stderr"]).groups()
    assert {one.rpartition("/")[2] for one in named.split(", ")} == {f"b{n}" for n in range(1, NUM_ROWS, 2)}
    assert (root / dump / "rank_0.json").is_file()
    assert not list(root.glob(f"{name}/checkpoints/step_*"))


def test_parity_says_it_with_the_same_exit_code(ended):
    outcome = ended[1]["parity"]
    text = " ".join(outcome["stdout"].split())
    assert outcome["code"] == 4 and "logits were not finite" in text


@pytest.mark.parametrize("name", ["replay", "again"])
def test_the_dump_can_be_replayed_and_names_the_completions_at_fault(ended, name):
    outcome = ended[1][name]
    assert outcome["code"] == 1
    listed = outcome["stdout"].partition("not finite:")[2].partition("rewards that")[0]
    at_fault = set(re.findall(r"prompt \S*?([ab]\d)\b", listed))
    assert at_fault == {f"b{n}" for n in range(1, NUM_ROWS, 2)}


def test_two_ranks_end_alike_and_keep_what_each_sampled(tmp_path):
    model, rows = poison(tmp_path / "model"), rows_file(tmp_path)
    arguments = ["train", BASE, f"model.path={model}", f"data.train={rows}", *SHORT, f"output_dir={tmp_path}/run"]
    told = set()
    for one in run_ranks([*CLI, *arguments], tmp_path / "ranks", num_ranks=2):
        assert one.code == 4, one.stderr[-2000:]
        (line,) = [line for line in one.stderr.splitlines() if line.startswith("error: ")]
        told.add(line)
    assert len(told) == 1
    assert set(re.findall(r"b\d", told.pop())) == {f"b{n}" for n in range(1, NUM_ROWS, 2)}
    assert {file.name for file in (tmp_path / "run/dumps/step_1").glob("*.json")} == {"rank_0.json", "rank_1.json"}
