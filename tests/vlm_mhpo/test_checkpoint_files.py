"""The file layer of checkpoints: whole or absent, damage is named, older ones are used, loading runs no code.

Not covered here: DeepSpeed's own shards and several ranks (see tests/system).
"""

import json
import pickle
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.vlm_mhpo.checkpoint_cases import DATA_FILES, save
from vlm_mhpo import checkpoint
from vlm_mhpo.errors import CheckpointError, SaveError


def damaged(file: Path, kind: str) -> None:
    content = file.read_bytes()
    middle = len(content) // 2
    changed = {
        "emptied": b"",
        "one byte short": content[:-1],
        "first byte flipped": bytes([content[0] ^ 1]) + content[1:],
        "middle byte flipped": content[:middle] + bytes([content[middle] ^ 0x80]) + content[middle + 1 :],
        "last byte flipped": content[:-1] + bytes([content[-1] ^ 1]),
        "one byte added": content + b"\0",
        "grown to a folder": None,
        "deleted": None,
    }[kind]
    if changed is not None:
        file.write_bytes(changed)
        return
    file.unlink()
    if kind == "grown to a folder":
        file.mkdir()


DAMAGE = (
    "deleted",
    "emptied",
    "one byte short",
    "first byte flipped",
    "middle byte flipped",
    "last byte flipped",
    "one byte added",
    "grown to a folder",
)


# ---- whole ones ------------------------------------------------------------------------------------------------


def test_a_saved_checkpoint_is_read_back(tmp_path):
    folder = save(tmp_path, 7, note="x")
    assert folder == tmp_path / "step_000007"
    assert checkpoint.read_state(folder) == {"seed": 3, "note": "x", "step": 7, "format_version": 2}
    assert checkpoint.newest_valid(tmp_path) == (7, checkpoint.read_state(folder))
    listed = json.loads((folder / "manifest.json").read_text())["files"]
    assert sorted(listed) == sorted(DATA_FILES)
    # Nothing half-done stays, and a checkpoint holds no programs.
    assert [path.name for path in tmp_path.iterdir()] == ["step_000007"]
    assert not list(folder.rglob("*.py"))


def test_the_manifest_holds_what_sha256sum_says(tmp_path):
    import hashlib

    folder = save(tmp_path, 1)
    for name, entry in json.loads((folder / "manifest.json").read_text())["files"].items():
        content = (folder / name).read_bytes()
        assert entry == {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}


def test_there_never_was_one(tmp_path):
    assert checkpoint.newest_valid(tmp_path / "nowhere") is None
    (tmp_path / "step_12").mkdir()
    (tmp_path / "step_000003.bak").mkdir()
    (tmp_path / "step_000004").write_text("a file")
    (tmp_path / ".staging_step_000005").mkdir()
    assert checkpoint.newest_valid(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_only_the_newest_are_kept(tmp_path, keep):
    for step in (1, 2, 10, 9_999_999):
        save(tmp_path, step, keep=keep)
    assert checkpoint.steps_in(tmp_path) == [1, 2, 10, 9_999_999][-keep:]
    assert checkpoint.newest_valid(tmp_path)[0] == 9_999_999


def test_a_step_that_is_saved_again_replaces_the_old_one(tmp_path):
    save(tmp_path, 4, note="first")
    folder = save(tmp_path, 4, note="second")
    assert checkpoint.read_state(folder)["note"] == "second"


def test_what_a_killed_save_left_behind_does_not_stop_the_next(tmp_path):
    save(tmp_path, 2)
    left = tmp_path / ".staging_step_000004"
    (left / "engine").mkdir(parents=True)
    (left / "engine" / "torn.pt").write_bytes(b"torn")
    assert checkpoint.newest_valid(tmp_path)[0] == 2
    folder = save(tmp_path, 4)
    assert not (folder / "engine" / "torn.pt").exists()
    assert checkpoint.newest_valid(tmp_path)[0] == 4


def test_a_write_that_fails_leaves_the_older_one_and_says_so(tmp_path):
    save(tmp_path, 2)

    def full_disk(folder: Path, disk: checkpoint.Disk) -> None:
        (folder / "policy").mkdir()
        raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match=r"step 4 could not be saved: .*No space left.*older checkpoints are intact"):
        save(tmp_path, 4, extra=full_disk)
    assert checkpoint.newest_valid(tmp_path)[0] == 2
    save(tmp_path, 4)
    assert checkpoint.newest_valid(tmp_path)[0] == 4


# ---- damage ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("name", DATA_FILES)
def test_damage_is_refused_by_name_and_the_one_before_is_used(tmp_path, capsys, name, kind):
    save(tmp_path, 2)
    folder = save(tmp_path, 4)
    damaged(folder / name, kind)
    with pytest.raises(CheckpointError, match=f"step_000004: {name} ") as caught:
        checkpoint.read_state(folder)
    assert "manifest" in str(caught.value) or "missing" in str(caught.value)
    step, state = checkpoint.newest_valid(tmp_path)
    assert (step, state["step"]) == (2, 2)
    assert f"ERROR: {folder}: {name}" in capsys.readouterr().out


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_manifest_is_refused_and_the_one_before_is_used(tmp_path, kind):
    save(tmp_path, 2)
    folder = save(tmp_path, 4)
    damaged(folder / "manifest.json", kind)
    with pytest.raises(CheckpointError, match="step_000004: "):
        checkpoint.read_state(folder)
    assert checkpoint.newest_valid(tmp_path)[0] == 2


def test_no_flipped_bit_of_the_manifest_changes_what_is_read(tmp_path):
    """Refused, or (white space) the same state; never another error, which would end the run instead of going back."""
    folder = save(tmp_path, 4)
    expected = checkpoint.read_state(folder)
    file = folder / "manifest.json"
    content = file.read_bytes()
    wrong = []
    for index in range(len(content)):
        for bit in (0x01, 0x20, 0x80):
            file.write_bytes(content[:index] + bytes([content[index] ^ bit]) + content[index + 1 :])
            try:
                if checkpoint.read_state(folder) != expected:
                    wrong.append((index, bit, "another state"))
            except CheckpointError:
                continue
            except Exception as error:  # any other type is the finding
                wrong.append((index, bit, repr(error)))
    assert wrong == []


@pytest.mark.parametrize(
    "manifest",
    [
        "null",
        "[]",
        "7",
        "{}",
        '{"files": null}',
        '{"files": []}',
        '{"files": {"state.json": 5}}',
        '{"files": {"state.json": {}}}',
    ],
)
def test_a_manifest_of_another_shape_is_refused(tmp_path, manifest):
    folder = save(tmp_path, 4)
    (folder / "manifest.json").write_text(manifest)
    with pytest.raises(CheckpointError, match="step_000004"):
        checkpoint.read_state(folder)


def test_a_checkpoint_without_a_state_is_refused(tmp_path):
    folder = save(tmp_path, 4)
    (folder / "state.json").unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    del manifest["files"]["state.json"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match="step_000004"):
        checkpoint.read_state(folder)


@pytest.mark.parametrize("name", ["stranger.pt", "engine/stranger.pt", "engine/.hidden", "a/b/c/stranger"])
def test_a_file_that_nobody_listed_is_refused_by_name(tmp_path, name):
    save(tmp_path, 2)
    folder = save(tmp_path, 4)
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match=f"step_000004: {name} is not in the manifest"):
        checkpoint.read_state(folder)
    assert checkpoint.newest_valid(tmp_path)[0] == 2


def test_none_left_is_an_error_and_never_a_new_start(tmp_path):
    for step in (2, 4):
        damaged(save(tmp_path, step) / "state.json", "emptied")
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* can be used \(") as caught:
        checkpoint.newest_valid(tmp_path)
    assert caught.value.exit_code == 3


def test_a_checkpoint_of_another_format_is_refused(tmp_path):
    staging = tmp_path / "staging"
    staging.mkdir()
    checkpoint.commit(staging, tmp_path / "step_000001", {"format_version": 99})
    with pytest.raises(CheckpointError, match=r"is whole, but of format 99, .*; this one reads 2"):
        checkpoint.read_state(tmp_path / "step_000001")


@pytest.mark.parametrize(
    ("num_bytes", "told"), [(None, r"rank_1\.pt is not there"), (9, r"rank_1\.pt has 9 of 10 bytes")]
)
def test_a_commit_needs_every_listed_file_with_its_size(num_bytes, told, tmp_path):
    """A listing comes from all ranks, and another's file may be on another disk, or not whole yet."""
    staging = tmp_path / "staging"
    staging.mkdir()
    (staging / "rank_0.pt").write_bytes(b"0" * 10)
    if num_bytes:
        (staging / "rank_1.pt").write_bytes(b"1" * num_bytes)
    listing = {f"rank_{rank}.pt": {"bytes": 10, "sha256": "0" * 64} for rank in (0, 1)}
    with pytest.raises(OSError, match=f"{told}.*put output_dir on a file system that all nodes share"):
        checkpoint.commit(staging, tmp_path / "step_000001", {"format_version": 1}, listing=listing)
    assert not (tmp_path / "step_000001").exists()
    (staging / "rank_1.pt").write_bytes(b"1" * 10)
    checkpoint.commit(staging, tmp_path / "step_000001", {"format_version": 1}, listing=listing)
    assert (tmp_path / "step_000001" / "rank_1.pt").is_file()


def test_going_back_and_saving_never_leaves_only_the_damaged_one(tmp_path):
    """After a fall back from step 4 to step 2 the run saves step 3: pruning must not take the good for the old."""
    save(tmp_path, 2, keep=2)
    damaged(save(tmp_path, 4, keep=2) / "state.json", "emptied")
    assert checkpoint.newest_valid(tmp_path)[0] == 2
    save(tmp_path, 3, keep=1)
    assert checkpoint.newest_valid(tmp_path)[0] == 3


# ---- settings --------------------------------------------------------------------------------------------------


def test_another_setting_is_refused_naming_every_value(tmp_path):
    state = {"seed": 3, "world_size": 2, "train.learning_rate": 1e-6, "step": 4}
    checkpoint.check_state(state, {"seed": 3, "world_size": 2}, tmp_path)
    with pytest.raises(CheckpointError) as caught:
        checkpoint.check_state(
            state, {"seed": 4, "world_size": 1, "train.learning_rate": 1e-6, "new": None, "key": "x"}, tmp_path
        )
    text = str(caught.value)
    assert "seed was 3 and is now 4" in text
    assert "world_size was 2 and is now 1" in text
    assert "key was None and is now 'x'" in text
    assert "learning_rate" not in text


# ---- no code ---------------------------------------------------------------------------------------------------


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self):
        return (open, (str(self.canary), "w"))


def planted(kind: str, file: Path, canary: Path) -> None:
    bomb = Bomb(canary)
    if kind == "plain":
        torch.save(bomb, file)
    elif kind == "nested":
        torch.save({"module": {"weight": torch.zeros(2), "extra": [1, {"deep": bomb}]}}, file)
    elif kind == "beside tensors":
        torch.save({"a": torch.zeros(3), "b": bomb}, file)
    elif kind == "legacy format":
        torch.save({"a": bomb}, file, _use_new_zipfile_serialization=False)
    elif kind == "bare pickle":
        file.write_bytes(pickle.dumps(bomb))
    elif kind == "protocol 0":
        file.write_bytes(pickle.dumps({"x": bomb}, protocol=0))
    elif kind == "os.system":
        file.write_bytes(f"cos\nsystem\n(S'touch {canary}'\ntR.".encode())
    elif kind == "partial":
        torch.save({"a": __import__("functools").partial(open, str(canary), "w")}, file)


# What the refusal must name; the two bare pickles are none that torch's reader understands so far.
PLANTED = {
    "plain": "io.open",
    "nested": "io.open",
    "beside tensors": "io.open",
    "legacy format": "io.open",
    "bare pickle": None,
    "protocol 0": None,
    "os.system": "os.system",
    "partial": "functools.partial",
}


@pytest.mark.parametrize("mmap", [False, True], ids=["read", "mapped"])
@pytest.mark.parametrize("kind", PLANTED)
def test_a_planted_pickle_is_refused_by_name_and_never_runs(tmp_path, kind, mmap):
    file, canary = tmp_path / "shard.pt", tmp_path / "canary"
    planted(kind, file, canary)
    name = PLANTED[kind]
    what = f"{name}, which may run code" if name else "more than tensors and plain values"
    with pytest.raises(CheckpointError, match=f"/shard.pt holds {re.escape(what)}, and is not read"):
        checkpoint.safe_load(str(file), "cpu", mmap=mmap)
    assert not canary.exists()


@pytest.mark.parametrize("kind", PLANTED)
@pytest.mark.parametrize("shard", [name for name in DATA_FILES if name.startswith("engine/")])
def test_a_planted_pickle_in_any_shard_is_found_before_anything_is_loaded(tmp_path, shard, kind):
    folder, canary = save(tmp_path, 4), tmp_path / "canary"
    checkpoint.refuse_programs(folder)
    planted(kind, folder / shard, canary)
    with pytest.raises(CheckpointError, match=f"step_000004/{shard} holds "):
        checkpoint.refuse_programs(folder)
    assert not canary.exists()


@pytest.mark.parametrize("content", [b"", b"junk" * 10, b"PK\x03\x04" + b"\0" * 40, b"\x80\x02.", b"\x80\x02}"])
def test_a_shard_that_is_none_is_one_sentence(tmp_path, content):
    file = tmp_path / "shard.pt"
    file.write_bytes(content)
    for mmap in (False, True):
        with pytest.raises(CheckpointError, match=r"/shard.pt (cannot be read \(|holds more than tensors and plain)"):
            checkpoint.safe_load(str(file), "cpu", mmap=mmap)


def test_three_classes_may_be_loaded_and_no_fourth(tmp_path, monkeypatch):
    inside = set()

    def note(path: str, **options: object) -> None:
        assert options["weights_only"] is True
        inside.update(torch.serialization.get_safe_globals())

    monkeypatch.setattr(torch, "load", note)
    checkpoint.safe_load(str(tmp_path))
    # torch allows a few of its own in every load.
    ours = inside - set(torch.serialization.get_safe_globals())
    assert sorted(f"{each.__module__}.{each.__name__}" for each in ours) == [
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    ]


def test_the_planted_pickles_would_run_elsewhere(tmp_path):
    # Otherwise the test above could not fail.
    for kind in ("plain", "nested", "legacy format"):
        file, canary = tmp_path / f"{kind}.pt", tmp_path / f"canary {kind}"
        planted(kind, file, canary)
        torch.load(file, weights_only=False)
        assert canary.exists()


def test_what_deepspeed_saves_is_loaded(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    file = tmp_path / "shard.pt"
    saved = {
        "module": {"weight": torch.arange(6.0).reshape(2, 3).bfloat16()},
        "optimizer_state_dict": {"zero_stage": ZeroStageEnum.gradients, "loss_scaler": LossScaler(scale=1.0)},
        "fragments": {"weight": fragment_address(numel=6, start=0)},
        "plain": [1, 2.5, "x", None, True, (1, 2)],
    }
    torch.save(saved, file)
    loaded = checkpoint.safe_load(str(file), map_location="cpu")
    assert torch.equal(loaded["module"]["weight"], saved["module"]["weight"])
    assert loaded["optimizer_state_dict"]["zero_stage"] is ZeroStageEnum.gradients
    assert loaded["fragments"]["weight"] == saved["fragments"]["weight"]
    assert loaded["plain"] == saved["plain"]


def test_the_allow_list_is_gone_after_loading(tmp_path):
    from deepspeed.runtime.fp16.loss_scaler import LossScaler

    file = tmp_path / "shard.pt"
    torch.save({"loss_scaler": LossScaler(scale=1.0)}, file)
    checkpoint.safe_load(str(file))
    with pytest.raises(pickle.UnpicklingError):
        torch.load(file, weights_only=True)


def test_deepspeed_finding_nothing_is_an_error(tmp_path):
    calls = []

    class Empty:
        checkpoint_engine = SimpleNamespace(load=None)

        def load_checkpoint(self, folder, **options):
            calls.append((folder, options["tag"]))
            return None, None

    fake = Empty()
    with pytest.raises(CheckpointError, match="DeepSpeed found nothing to load"):
        checkpoint.load(SimpleNamespace(deepspeed=fake, policy=SimpleNamespace(has_adapters=False)), tmp_path)
    # Under an explicit name, and with the loader that runs no code.
    assert calls == [(str(tmp_path), "engine")]
    assert fake.checkpoint_engine.load is checkpoint.safe_load


def test_a_copy_elsewhere_is_still_whole(tmp_path):
    folder = save(tmp_path / "a", 4)
    copy = shutil.copytree(folder, tmp_path / "b" / "step_000004")
    assert checkpoint.read_state(copy) == checkpoint.read_state(folder)
