"""What a continued run may change of a key, what it must be told, and what tells rows and models apart."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from data_prep import load_rows
from tests.builders import picture
from tests.vlm_mhpo.test_config import SECTIONS, leaves
from vlm_mhpo.config import parse_config
from vlm_mhpo.config.resuming import on_resume
from vlm_mhpo.errors import CheckpointError, ConfigError
from vlm_mhpo.models.digest import digest_of_model
from vlm_mhpo.models.tiny import build_tiny
from vlm_mhpo.prompts.content import digest_of_rows
from vlm_mhpo.training.identity import identity_of, settle

# Written out here: a key that somebody marks as free must be thought of twice. How the work is cut, where it is held,
# limits on the machine's time and memory; `check-invariance` and test_resume_changed prove the first two kinds.
FREE = {
    *("output_dir", "num_threads", "data.eval", "data.eval_split", "data.max_eval_rows", "data.prefetch"),
    *("model.gradient_checkpointing", "rollout.max_batch_tokens"),
    *("rewards.num_workers", "rewards.timeout_s", "rewards.memory_limit_mib"),
    *("rewards.max_timeout_share", "rewards.max_zero_accuracy_steps"),
    *("train.max_tokens_per_micro_batch", "train.logits_chunk_size"),
    *("sft.max_tokens_per_micro_batch", "sft.logits_chunk_size"),
    *("deepspeed.offload_optimizer", "deepspeed.offload_param"),
}
FREE_SECTIONS = ("eval", "checkpoint", "faults", "logging", "rollout.vllm")
BY_CONTENT = {
    *("model.path", "model.revision", "data.train", "data.format", "data.train_split", "data.image_root"),
    *("data.max_rows", "data.max_prompt_length", "data.overlong_prompts"),
    *("data.columns", "data.ignore_columns", "data.answer_lists", "data.on_bad_row", "data.max_bad_share"),
    "data.video.timeout",
}
NEVER = {"model.dtype", "model.freeze_vision_tower", "model.freeze_projector", "model.lora", "model.quantization"}
NEVER |= {"train.optimizer", "sft.optimizer"}
VALUES = {
    "output_dir": "run",
    "model": {"path": "nowhere"},
    "data": {"train": "nowhere.jsonl"},
    "train": {"max_steps": 4, "num_prompts_per_step": 4},
}


@pytest.mark.parametrize(("section", "key"), leaves())
def test_every_key_says_what_a_continuation_may_do_with_it(section, key):
    name = f"{section}.{key}".lstrip(".")
    if name in FREE or section in FREE_SECTIONS:
        assert on_resume(name) == "free"
    elif name in BY_CONTENT:
        assert on_resume(name) == "by content"
    else:
        assert on_resume(name) == ("never" if name in NEVER else "allowed")


def test_the_lists_name_keys_only():
    names = {f"{section}.{key}".lstrip(".") for section, key in leaves()}
    assert names >= FREE | BY_CONTENT | NEVER and set(FREE_SECTIONS) <= set(SECTIONS)


def identity(**sections) -> dict:
    """That of an RL run without rows."""
    values = {
        name: {**part, **sections.get(name, {})} if isinstance(part, dict) else part for name, part in VALUES.items()
    }
    config = parse_config({**sections, **values})
    return identity_of("rl", config.model_dump(), [], 2, "nowhere")


def test_free_keys_are_no_part_of_the_identity_and_all_others_are():
    keys = set(identity())
    for section, key in leaves():
        name = f"{section}.{key}".lstrip(".")
        if section not in ("sft", "objective", "rewards"):
            assert (name in keys) == (on_resume(name) != "free"), name
    assert "objective.c" in keys and "sft.learning_rate" not in keys


def test_a_change_is_refused_by_key_both_values_and_the_words_that_allow_it(tmp_path):
    state = {**identity(), "step": 3}
    now = identity(train={"learning_rate": 5e-4, "on_nonfinite": "skip"})
    with pytest.raises(CheckpointError) as caught:
        settle(state, now, [], tmp_path)
    text = str(caught.value)
    assert "train.learning_rate was 1e-06 and is now 0.0005" in text
    assert "'checkpoint.allow_change=[train.learning_rate, train.on_nonfinite]'" in text
    # One of two is not enough.
    with pytest.raises(CheckpointError, match=r"'checkpoint.allow_change=\[train.on_nonfinite\]'"):
        settle(state, now, ["train.learning_rate"], tmp_path)


@pytest.mark.parametrize("now", [{}, {"clip": 0.2}, {"clip": 0.1, "more": 1}])
def test_an_entry_of_a_mapping_that_is_gone_changed_or_new_is_seen(tmp_path, now):
    custom = {"name": "custom", "path": "loss.py:f", "kwargs": {"clip": 0.1}}
    state = {**identity(objective=custom), "step": 3}
    with pytest.raises(CheckpointError, match=r"'checkpoint.allow_change=\[objective.kwargs\]'"):
        settle(state, identity(objective=custom | {"kwargs": now}), [], tmp_path)
    settle(state, identity(objective=custom | {"kwargs": now}), ["objective.kwargs"], tmp_path)
    parse_config(VALUES | {"checkpoint": {"allow_change": ["objective.kwargs", "data.columns"]}})


def test_an_allowed_change_is_recorded_with_step_and_both_values_after_those_before(tmp_path):
    earlier = {"step": 1, "key": "train.weight_decay", "from": 0.1, "to": 0.0}
    state = {**identity(), "step": 3, "changes": [earlier]}
    recut, changes = settle(state, identity(train={"learning_rate": 5e-4}), ["train.learning_rate"], tmp_path)
    assert recut == []
    assert changes == [earlier, {"step": 3, "key": "train.learning_rate", "from": 1e-6, "to": 5e-4}]


def test_a_constant_rate_may_run_longer_and_a_falling_one_must_be_told(tmp_path):
    falling = {"lr_scheduler_type": "linear"}
    assert settle({**identity(), "step": 3}, identity(train={"max_steps": 9}), [], tmp_path) == ([], [])
    with pytest.raises(CheckpointError, match=r"train.max_steps was 4 and is now 9.*\[train.max_steps\]"):
        settle({**identity(train=falling), "step": 3}, identity(train={**falling, "max_steps": 9}), [], tmp_path)
    # Its warm-up would be longer.
    warm = {"warmup_ratio": 0.5}
    with pytest.raises(CheckpointError, match=r"train.max_steps was 4 and is now 9.*\[train.max_steps\]"):
        settle({**identity(train=warm), "step": 3}, identity(train={**warm, "max_steps": 9}), [], tmp_path)


@pytest.mark.parametrize("lora", [None, {"r": 8}, {"r": 4, "target_modules": "all"}])
def test_other_adapters_cannot_be_allowed(tmp_path, lora):
    model = {"path": "nowhere"}
    state = {**identity(model=model | {"lora": {"r": 4}}), "step": 3}
    with pytest.raises(CheckpointError, match=r"model\.lora"):
        settle(state, identity(model=model | {"lora": lora}), ["model.lora", "model.lora.r"], tmp_path)


def test_the_type_of_the_weights_cannot_be_allowed(tmp_path):
    with pytest.raises(CheckpointError, match=r"model.dtype was 'bfloat16' and is now 'float32'.*output_dir$"):
        settle({**identity(), "step": 3}, identity(model={"dtype": "float32"}), ["model.dtype"], tmp_path)


def test_rows_and_model_may_move_and_may_not_change(tmp_path):
    before = {**identity(), "step": 3}
    moved = identity(model={"path": "elsewhere"}, data={"train": "there.jsonl", "max_rows": 7})
    moved["model files"] = before["model files"]
    assert settle(before, moved, [], tmp_path) == ([], [])
    others = {**moved, "training rows": "0 rows, else"}
    with pytest.raises(CheckpointError, match=r"training rows was .*'checkpoint.allow_change=\[data.train\]'"):
        settle(before, others, [], tmp_path)
    assert {change["key"] for change in settle(before, others, ["data.train"], tmp_path)[1]} >= {"training rows"}


def test_a_key_to_allow_that_does_not_exist_is_named_with_its_neighbour():
    with pytest.raises(ConfigError, match=r"train.learning_rat, which is no key. Did you mean train.learning_rate"):
        parse_config({**VALUES, "checkpoint": {"allow_change": ["train.learning_rat"]}})


# ---- digests ---------------------------------------------------------------------------------------------------


def test_rows_are_known_wherever_they_lie_and_an_image_of_equal_size_is_not_another(tmp_path):
    first, second = tmp_path / "one" / "rows", tmp_path / "two" / "rows"
    first.mkdir(parents=True)
    (first / "a.png").write_bytes(picture(560, 560))
    row = {"problem": "<image>What is 3 + 4 ?", "answer": "7", "images": ["a.png"]}
    (first / "rows.jsonl").write_text(json.dumps(row) + "\n")
    shutil.copytree(first, second)
    digests = [digest_of_rows(list(load_rows(str(folder / "rows.jsonl")))) for folder in (first, second)]
    assert digests[0] == digests[1] and digests[0].startswith("1 rows, ")
    content = bytearray((second / "a.png").read_bytes())
    content[len(content) // 2] ^= 1
    (second / "a.png").write_bytes(content)
    assert digest_of_rows(list(load_rows(str(second / "rows.jsonl")))) != digests[0]
    (second / "a.png").write_bytes((first / "a.png").read_bytes())
    (second / "rows.jsonl").write_text(json.dumps({**row, "answer": "8"}) + "\n")
    assert digest_of_rows(list(load_rows(str(second / "rows.jsonl")))) != digests[0]


def test_a_model_is_known_wherever_it_lies_and_any_trained_tensor_makes_it_another(tmp_path):
    first, second = build_tiny(tmp_path / "one", "qwen2", hidden_size=64), tmp_path / "two"
    shutil.copytree(first, second)
    (second / "README.md").write_text("a card")
    digest = digest_of_model(str(first))
    assert digest_of_model(str(second)) == digest
    weights = load_file(second / "model.safetensors")
    for name in (min(weights), max(weights)):
        changed = {**weights, name: weights[name] + 1e-3}
        save_file(changed, second / "model.safetensors", {"format": "pt"})
        assert digest_of_model(str(second)) != digest, name
    save_file(weights, second / "model.safetensors", {"format": "pt"})
    (second / "generation_config.json").write_text("{}")
    assert digest_of_model(str(second)) != digest
