"""Who may write a run, what of a checkpoint is refused, and which one is the best."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
import signal
from pathlib import Path

import pytest
import torch

from tests.model_folders import change_tensors, copy_of
from tests.vlm_mhpo.checkpoint_cases import save
from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint.exporting import export
from vlm_mhpo.checkpoint.files import files_of, listing_of
from vlm_mhpo.checkpoint.policy_folder import find_policy
from vlm_mhpo.config import CheckpointConfig
from vlm_mhpo.errors import CheckpointError, ModelError
from vlm_mhpo.models.loading import load_policy
from vlm_mhpo.training import saving

# ---- one writer ------------------------------------------------------------------------------------------------


def hold(run_dir: Path) -> int:
    """The id of a process that holds the run folder's lock until it is killed."""
    read, write = os.pipe()
    process = os.fork()
    if process == 0:
        with checkpoint.only_writer(run_dir):
            os.write(write, b"held")
            signal.pause()
    assert os.read(read, 4) == b"held"
    os.close(read)
    os.close(write)
    return process


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path):
    holder = hold(tmp_path / "run")
    try:
        with (
            pytest.raises(CheckpointError, match=r"run is being written by another run: wait until .*") as caught,
            checkpoint.only_writer(tmp_path / "run"),
        ):
            pass
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert caught.value.exit_code == 3
    # The file is still there, the lock is not.
    assert (tmp_path / "run" / ".lock").exists()
    with checkpoint.only_writer(tmp_path / "run"):
        pass


def test_a_lock_is_free_after_its_block_and_one_folder_does_not_lock_another(tmp_path):
    with checkpoint.only_writer(tmp_path / "a"), checkpoint.only_writer(tmp_path / "b"):
        pass
    with checkpoint.only_writer(tmp_path / "a"):
        pass


def test_a_run_folder_that_cannot_be_made_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(CheckpointError, match=r"output_dir=.*/file/run cannot be written"),
        checkpoint.only_writer(tmp_path / "file" / "run"),
    ):
        pass


# ---- only our own folder ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["engine/zero_pp_rank_0.pt", "state.json", "policy", "manifest.json"])
def test_a_link_in_a_checkpoint_is_refused_even_to_the_same_bytes(tmp_path, name):
    root = tmp_path / "checkpoints"
    save(root, 2)
    folder = save(root, 4)
    (folder / name).rename(tmp_path / "elsewhere")
    (folder / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(CheckpointError, match=f"step_000004: {name} is a link"):
        checkpoint.read_state(folder)
    assert checkpoint.newest_valid(root)[0] == 2


def test_a_checkpoint_that_is_itself_a_link_is_refused(tmp_path):
    root = tmp_path / "checkpoints"
    save(tmp_path / "other", 4)
    root.mkdir()
    (root / "step_000004").symlink_to(tmp_path / "other" / "step_000004")
    with pytest.raises(CheckpointError, match="is a link"):
        checkpoint.read_state(root / "step_000004")


def test_a_pipe_in_a_checkpoint_is_refused_and_never_opened(tmp_path):
    folder = save(tmp_path, 4)
    os.mkfifo(folder / "engine" / "pipe")
    with pytest.raises(CheckpointError, match="engine/pipe is neither a file nor a folder"):
        checkpoint.read_state(folder)


def test_a_listed_name_cannot_point_outside(tmp_path):
    folder = save(tmp_path, 4)
    (tmp_path / "outside").write_bytes(b"")
    manifest = json.loads((folder / "manifest.json").read_text())
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    for name in ("../outside", str(tmp_path / "outside")):
        files = manifest["files"] | {name: {"bytes": 0, "sha256": empty}}
        (folder / "manifest.json").write_text(json.dumps({"files": files}))
        with pytest.raises(CheckpointError, match="is missing"):
            checkpoint.read_state(folder)


@pytest.mark.parametrize("name", [".", "engine", "engine/mp_rank_00_model_states.pt", "manifest.json", ".."])
def test_what_everybody_can_write_is_not_trusted(tmp_path, name):
    folder = save(tmp_path / "checkpoints", 4)
    checkpoint.refuse_strangers(folder)
    path = folder / name
    path.chmod(path.stat().st_mode | 0o002)
    with pytest.raises(CheckpointError, match=r"can be written by everybody \(chmod -R o-w .*trust_folder=true"):
        checkpoint.refuse_strangers(folder)


def test_what_another_user_owns_is_not_trusted(tmp_path, monkeypatch):
    folder = save(tmp_path, 4)
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)
    with pytest.raises(CheckpointError, match=r"belongs to user \d+, and this process is user \d+: set checkpoint"):
        checkpoint.refuse_strangers(folder)


def test_our_own_checkpoint_is_trusted_whatever_the_umask(tmp_path):
    before = os.umask(0)
    try:
        # The policy's files are written by a library, which follows the umask: they are left out here.
        folder = save(tmp_path / "checkpoints", 4, extra=lambda folder, disk: None)
    finally:
        os.umask(before)
    checkpoint.refuse_strangers(folder)


@pytest.fixture
def resumed(tmp_path, monkeypatch):
    """`Checkpoints.resume` of a run with a checkpoint at step 4, which gives (its answer, whether it was loaded)."""
    save(tmp_path / "checkpoints", 4)
    loaded: list[Path] = []
    monkeypatch.setattr(checkpoint, "load", lambda engine, folder: loaded.append(folder))

    def run(trust: bool) -> tuple[int, bool]:
        settings = CheckpointConfig(trust_folder=trust)
        step = saving.Checkpoints(None, None, tmp_path, settings, {"seed": 3}, max_steps=6).resume()
        return step, loaded == [tmp_path / "checkpoints" / "step_000004"]

    return run


def open_to_everybody(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root.chmod(0o777)


def of_another_user(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: os.getuid() + 1)


@pytest.mark.parametrize("spoil", [open_to_everybody, of_another_user])
def test_a_run_goes_on_from_a_strangers_folder_only_when_told_to(resumed, tmp_path, monkeypatch, spoil):
    assert resumed(trust=False) == (4, True)
    spoil(tmp_path / "checkpoints", monkeypatch)
    with pytest.raises(CheckpointError, match=r"set checkpoint.trust_folder=true if you trust"):
        resumed(trust=False)
    assert resumed(trust=True)[0] == 4


def test_a_trusted_folder_runs_no_program_either(resumed, tmp_path):
    canary = tmp_path / "canary"
    shard = tmp_path / "checkpoints" / "step_000004" / "engine" / "zero_pp_rank_0.pt"
    torch.save({"optimizer": Bomb(canary)}, shard)
    commit_anew(shard.parents[1])
    with pytest.raises(CheckpointError, match=r"zero_pp_rank_0.pt holds io.open, which may run code"):
        resumed(trust=True)
    assert not canary.exists()


def commit_anew(folder: Path) -> None:
    """Write a manifest that agrees with the files."""
    files = [file for file in files_of(folder) if file.name != "manifest.json"]
    (folder / "manifest.json").write_text(json.dumps({"files": listing_of(files, folder)}))


# ---- policies are safetensors ----------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.pth"])
def test_a_policy_with_pickled_weights_is_neither_loaded_nor_exported(tmp_path, tiny, name):
    folder, canary = tmp_path / "model", tmp_path / "canary"
    folder.mkdir()
    for file in Path(tiny("qwen2").folder).iterdir():
        if file.suffix == ".json" or file.suffix == ".jinja":
            (folder / file.name).write_bytes(file.read_bytes())
    torch.save({"weight": Bomb(canary)}, folder / name)
    with pytest.raises(ModelError, match=r"the weights at .* cannot be loaded"):
        load_policy(str(folder))
    with pytest.raises(CheckpointError, match=f"{name} may run code when it is loaded: convert it to safetensors"):
        export(str(folder), tmp_path / "out")
    assert not canary.exists() and not (tmp_path / "out").exists()
    # It would have run: the claim can fail.
    with open(tmp_path / "bare", "wb") as stream:
        pickle.dump(Bomb(canary), stream)
    with open(tmp_path / "bare", "rb") as stream:
        pickle.load(stream).close()
    assert canary.exists()


def test_a_policy_with_a_link_or_no_weights_is_not_exported(tmp_path, tiny):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    with pytest.raises(CheckpointError, match="holds no weights as safetensors"):
        export(str(folder), tmp_path / "out")
    for name in ("config.json", "model.safetensors"):
        shutil.copy(tiny("qwen2").folder / name, folder)
    (folder / "linked.json").symlink_to("/etc/hostname")
    with pytest.raises(CheckpointError, match=r"linked.json is a link"):
        export(str(folder), tmp_path / "out")
    (folder / "linked.json").unlink()
    assert sorted(path.name for path in export(str(folder), tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


@pytest.mark.parametrize(
    "name", ["modeling.py", "MODELING.PY", "modeling.pyc", "a/kernel.so", "weights.npz", "tf_model.h5", "run.sh", "run"]
)
def test_a_policy_with_anything_but_data_is_not_exported(tmp_path, name):
    folder = tmp_path / "model"
    file = folder / name
    file.parent.mkdir(parents=True)
    for each in (folder / "config.json", folder / "model.safetensors", file):
        each.write_bytes(b"{}")
    with pytest.raises(CheckpointError, match=rf"{re.escape(name)} is no file of a policy \(.safetensors, .json, .*\)"):
        export(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("family", ["qwen2", "qwen2_5_vl", "qwen3_vl"])
def test_what_transformers_writes_of_a_policy_is_tensors_and_text(tmp_path, tiny, family):
    folder = shutil.copytree(tiny(family).folder, tmp_path / "model")
    (folder / "LICENSE").write_text("MIT")
    files = [path for path in export(str(folder), tmp_path / "out").rglob("*") if path.is_file()]
    files.remove(tmp_path / "out" / "LICENSE")
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".jinja"}
    for path in files:
        assert path.suffix == ".safetensors" or path.read_text()


def test_others_can_read_what_was_exported_as_far_as_the_umask_lets_them(tmp_path, tiny):
    folder = shutil.copytree(tiny("qwen2").folder, tmp_path / "model")
    (folder / "model.safetensors").chmod(0o600)
    (folder / "config.json").chmod(0o640)
    modes = {path.stat().st_mode & 0o777 for path in export(str(folder), tmp_path / "out").iterdir()}
    assert modes == {0o640}


def test_a_policy_that_lacks_weights_is_not_exported(tmp_path, tiny):
    folder = change_tensors(
        copy_of(tiny("qwen2_5_vl").folder, tmp_path / "model"),
        lambda held: {name: held[name] for name in held if "layers.1.mlp" not in name},
    )
    with pytest.raises(ModelError, match=r"missing \(.*layers.1.mlp"):
        export(str(folder), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def as_zero_3_once_saved(held: dict) -> dict:
    """What an earlier version wrote under ZeRO-3: transformers 5 reads it, transformers 4 does not."""
    return {re.sub(r"^model\.", "model.model.", name): value for name, value in held.items()}


def test_a_policy_with_other_names_than_its_run_loaded_is_not_exported(tmp_path, tiny):
    source = tiny("qwen2_5_vl")
    for place, step in (("run/policy", ""), ("run/checkpoints/step_000001/policy", "checkpoint")):
        copy_of(source.folder, tmp_path / place)
        assert export(str(tmp_path / place), tmp_path / f"out{step}").is_dir()
    (tmp_path / "run" / "run.json").write_text(json.dumps({"model": {"tensors": source.policy.weights.digest}}))
    for place, step in (("run/policy", "2"), ("run/checkpoints/step_000001/policy", "3")):
        assert export(str(tmp_path / place), tmp_path / f"out{step}").is_dir()
        change_tensors(tmp_path / place, as_zero_3_once_saved)
        with pytest.raises(CheckpointError, match=r"other names or shapes than those that .*run loaded"):
            export(str(tmp_path / place), tmp_path / "other")


# ---- the best one ----------------------------------------------------------------------------------------------


def save_scores(run_dir: Path, scores: list[float | None], *, keep: int = 1, highest: bool = True) -> Path:
    """Checkpoints at steps 1, 2, ... with these values of the metric; None = not measured."""
    root = run_dir / "checkpoints"
    for step, score in enumerate(scores, 1):
        measured = {} if score is None else {"eval/accuracy": score}
        save(root, step, keep=keep, best=checkpoint.Best("eval/accuracy", highest), scores=measured)
    return root


@pytest.mark.parametrize(
    "scores,keep,highest,kept,best",
    [
        ([0.5, 0.7, 0.6, 0.1], 1, True, [2, 4], 2),
        ([0.5, 0.7, 0.6, 0.1], 2, True, [2, 3, 4], 2),
        ([0.5, 0.7, 0.6, 0.1], 1, False, [4], 4),
        ([0.5, 0.5, 0.5], 1, True, [1, 3], 1),
        ([0.5, None, None], 1, True, [1, 3], 1),
        ([None, 0.2, 0.3], 1, True, [3], 3),
        ([0.5, float("nan"), 0.4], 1, True, [1, 3], 1),
    ],
)
def test_the_best_checkpoint_is_kept_and_named(tmp_path, scores, keep, highest, kept, best):
    root = save_scores(tmp_path, scores, keep=keep, highest=highest)
    assert checkpoint.steps_in(root) == kept
    assert checkpoint.read_best(root) == best
    named = json.loads((root / "best.json").read_text())
    value = scores[best - 1]
    assert named == {"metric": "eval/accuracy", "value": value, "step": best, "folder": f"step_{best:06d}"}
    assert find_policy(str(tmp_path), "best") == str(root / f"step_{best:06d}" / "policy")
    assert find_policy(str(tmp_path)) == str(root / f"step_{len(scores):06d}" / "policy")


def test_a_run_without_a_best_checkpoint_says_what_to_set(tmp_path):
    save(tmp_path / "checkpoints", 2)
    with pytest.raises(CheckpointError, match=r"names no best checkpoint: the run needs checkpoint.keep_best"):
        find_policy(str(tmp_path), "best")


def test_a_damaged_best_checkpoint_is_not_exported(tmp_path):
    root = save_scores(tmp_path, [0.9, 0.1])
    (root / "step_000001" / "policy" / "config.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"step_000001: policy/config.json differs"):
        export(str(tmp_path), tmp_path / "out", "best")


@pytest.mark.parametrize("content", ["", "{}", "[]", '{"step": null}', '{"step": "x"}'])
def test_an_unreadable_best_json_is_one_sentence(tmp_path, content):
    root = save_scores(tmp_path, [0.9])
    (root / "best.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"best.json: unreadable"):
        find_policy(str(tmp_path), "best")
