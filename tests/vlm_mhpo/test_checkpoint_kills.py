"""A save that is killed, loses power or meets a full disk at any of its operations leaves whole checkpoints only."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.vlm_mhpo.checkpoint_cases import FakeDeepSpeed, save, saved_step, write_policy
from tests.vlm_mhpo.unreliable_disk import IO_ERROR, NO_SPACE, Killed, UnreliableDisk
from vlm_mhpo import checkpoint
from vlm_mhpo.checkpoint import writing
from vlm_mhpo.checkpoint.files import DISK, Disk, files_of, folders_of, listing_of, remove_tree, write_json
from vlm_mhpo.errors import CheckpointError, SaveError
from vlm_mhpo.training import saving

Save = Callable[..., None]
AFTERMATHS = ("killed", "power cut", "power cut, names lost")


def ours(root: Path, step: int, keep: int, disk: Disk) -> None:
    save(root, step, keep=keep, disk=disk)


def problems_of(save_with: Save, folder: Path, keep: int, earlier: int) -> tuple[int, list[str]]:
    """Kill a save before and inside each of its operations; (scenarios, what went wrong in which).

    Args:
        keep: checkpoints kept.
        earlier: saves that ended well before it, at steps 2, 4, ...
    """
    before = folder / "before"
    before.mkdir(parents=True)
    for index in range(earlier):
        save_with(before / "checkpoints", 2 * index + 2, keep, UnreliableDisk())
    step, wrong, number = 2 * earlier + 2, [], 0
    whole = UnreliableDisk()
    save_with(Path(shutil.copytree(before, folder / "whole")) / "checkpoints", step, keep, whole)
    for kill_at in range(len(whole.operations) + 1):
        torn = [False, True] if whole.operations[kill_at : kill_at + 1][:1] and is_write(whole, kill_at) else [False]
        for aftermath in AFTERMATHS:
            for tear in torn:
                number += 1
                place = f"{'inside' if tear else 'before'} {[*whole.operations, 'nothing'][kill_at]}, {aftermath}"
                root = Path(shutil.copytree(before, folder / str(number))) / "checkpoints"
                disk = UnreliableDisk(kill_at, torn=tear)
                finished = kill_at == len(whole.operations)
                try:
                    save_with(root, step, keep, disk)
                    assert finished, place
                except Killed:
                    assert not finished, place
                if aftermath != "killed":
                    disk.cut_power(names_too="names" in aftermath)
                wrong += [f"{place}: {problem}" for problem in left_wrong(root, step, finished, save_with, keep)]
                shutil.rmtree(root.parent)
    return number, wrong


def is_write(disk: UnreliableDisk, index: int) -> bool:
    return disk.operations[index].startswith("write")


def left_wrong(root: Path, step: int, finished: bool, save_with: Save, keep: int) -> Iterator[str]:
    """What is not as it must be after a save of `step` that ended somewhere."""
    for each in checkpoint.steps_in(root):
        try:
            checkpoint.read_state(checkpoint.folder_of(root, each))
        except CheckpointError as error:
            yield f"a checkpoint is not whole ({error})"
    allowed = {step} if finished else {step, step - 2}
    if found := newest(root):
        if found not in allowed or saved_step(checkpoint.folder_of(root, found)) != found:
            yield f"resumes at {found}"
    elif 0 not in allowed:
        yield "nothing to resume from"
    save_with(root, step + 2, keep, DISK)
    if newest(root) != step + 2 or any(path.name.startswith(".") for path in root.iterdir()):
        yield "the next save went wrong"


def newest(root: Path) -> int:
    """The step to resume at, 0 for none."""
    try:
        found = checkpoint.newest_valid(root)
    except CheckpointError:
        return 0
    return found[0] if found else 0


@pytest.fixture(autouse=True)
def no_real_fsync(monkeypatch):
    # Thousands of real ones would take minutes on a slow disk and show nothing: the model decides what is lost.
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.mark.parametrize("earlier", [0, 1, 2])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_save_that_ends_at_any_operation_is_survived(tmp_path, keep, earlier):
    number, wrong = problems_of(ours, tmp_path, keep, earlier)
    assert wrong == []
    # A sweep over nothing would pass too.
    assert number >= 70
    print(f"{number} kills survived (keep {keep}, after {earlier} saves)")


@pytest.mark.parametrize("keep", [1, 2])
def test_the_best_checkpoint_survives_a_save_that_ends_at_any_operation(tmp_path, keep):
    best = checkpoint.Best("accuracy")

    def with_best(root: Path, step: int, keep: int, disk: Disk) -> None:
        # The first one is the best.
        save(root, step, keep=keep, disk=disk, best=best, scores={"accuracy": 1.0 / step})
        assert checkpoint.read_best(root) == 2

    _, wrong = problems_of(with_best, tmp_path, keep, 2)
    assert wrong == []


# ---- the sweep itself ------------------------------------------------------------------------------------------

RIGHT = ("shards", "fsync", "manifest", "names", "commit", "prune")


def protocol(steps: tuple[str, ...] = RIGHT, *, into_final: bool = False) -> Save:
    """A small save of its own, with its parts in a given order."""

    def save_with(root: Path, step: int, keep: int, disk: Disk) -> None:
        final = checkpoint.folder_of(root, step)
        folder = final if into_final else root / f".staging_{final.name}"
        disk.make_folder(root)
        disk.fsync(root.parent)
        for left in (path for path in root.iterdir() if path.name.startswith(".")):
            remove_tree(disk, left)
        if folder.exists():
            remove_tree(disk, folder)
        disk.make_folder(folder / "engine")
        write_json(disk, folder / "state.json", {"format_version": 2, "step": step})
        for part in steps:
            at = final if final.exists() else folder
            shard = at / "engine" / "mp_rank_00_model_states.pt"
            if part == "shards":
                weights = {"module": torch.full((4,), float(step))}
                disk.write(shard, lambda stream, weights=weights: torch.save(weights, stream))
            elif part == "fsync":
                disk.fsync(shard)
            elif part == "manifest":
                write_json(disk, at / "manifest.json", {"files": listing_of(files_of(at), at)})
            elif part == "names":
                for each in folders_of(at):
                    disk.fsync(each)
            elif part == "commit" and not into_final:
                disk.rename(folder, final)
            elif part == "prune":
                disk.fsync(root)
                for old in checkpoint.steps_in(root)[: None if "commit" not in steps[: steps.index(part)] else -keep]:
                    removed = root / f".removed_{old}"
                    disk.rename(checkpoint.folder_of(root, old), removed)
                    disk.fsync(root)
                    remove_tree(disk, removed)
        disk.fsync(root)

    return save_with


def without(*parts: str) -> tuple[str, ...]:
    return tuple(part for part in RIGHT if part not in parts)


def test_the_sweep_accepts_a_right_protocol_of_other_hands(tmp_path):
    assert problems_of(protocol(), tmp_path, 1, 1)[1] == []


@pytest.mark.parametrize(
    "wrong,seen",
    [
        (protocol(into_final=True), "not whole"),
        (protocol(("shards", "fsync", "manifest", "names", "prune", "commit")), "nothing to resume from"),
        (protocol(without("manifest")), "unreadable manifest"),
        (protocol(("manifest", "shards", "fsync", "names", "commit", "prune")), "is not in the manifest"),
        (protocol(("shards", "manifest", "names", "commit", "fsync", "prune")), "differs from the manifest"),
        (protocol(without("fsync")), "differs from the manifest"),
        (protocol(without("names")), "not whole"),
    ],
    ids=[
        "into the final folder",
        "prune before commit",
        "no manifest",
        "manifest before shards",
        "rename before fsync",
        "no fsync of files",
        "no fsync of folders",
    ],
)
def test_the_sweep_rejects_a_wrong_protocol(tmp_path, wrong, seen):
    _, problems = problems_of(wrong, tmp_path, 1, 1)
    assert any(seen in problem for problem in problems), problems[:3]


# ---- full and broken disks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize("code", [NO_SPACE, IO_ERROR], ids=["ENOSPC", "EIO"])
@pytest.mark.parametrize("keep", [1, 2])
def test_a_disk_that_refuses_any_operation_costs_no_older_checkpoint(tmp_path, capsys, keep, code, lasting):
    before = tmp_path / "before"
    for step in (2, 4):
        save(before, step, keep=keep)
    whole = UnreliableDisk()
    save(Path(shutil.copytree(before, tmp_path / "whole")), 6, keep=keep, disk=whole)
    refused = 0
    for index, operation in enumerate(whole.operations):
        root = Path(shutil.copytree(before, tmp_path / str(index)))

        def fail(number: int, kind: str, index: int = index) -> int:
            # A full disk still removes.
            hit = number == index or (lasting and number > index and not kind.startswith("remove"))
            return code if hit else 0

        try:
            save(root, 6, keep=keep, disk=UnreliableDisk(fail=fail))
            assert "WARNING: step 6 is saved, but" in capsys.readouterr().out, operation
            assert newest(root) == 6
        except SaveError as error:
            refused += 1
            assert os.strerror(code) in str(error) and "step 6 could not be saved" in str(error), operation
            assert error.exit_code == 4
            assert newest(root) in (4, 6), operation
            assert set(checkpoint.steps_in(before)) <= set(checkpoint.steps_in(root)), operation
            assert not list(root.glob(".staging_*")) or operation.startswith("remove"), operation
        save(root, 8, keep=keep)
        assert newest(root) == 8
        assert not list(root.glob(".*"))
    assert refused >= 15


def test_a_full_disk_is_reported_as_such_where_torch_hides_it():
    with pytest.raises(OSError, match="No space left on device"):
        DISK.write(Path("/dev/full"), lambda stream: torch.save(torch.zeros(100_000), stream))


@pytest.fixture
def due(tmp_path, monkeypatch):
    """`Checkpoints.if_due` of a run whose disk is full, by what it is told to do."""
    from vlm_mhpo.config import CheckpointConfig

    def full(*args: object, **options: object) -> None:
        raise SaveError("step 2 could not be saved: No space left on device")

    monkeypatch.setattr(saving.checkpoint, "begin", full)

    def run(on_error: str, step: int) -> None:
        settings = CheckpointConfig(save_steps=2, on_error=on_error)
        saving.Checkpoints(None, None, tmp_path, settings, {}, max_steps=6).if_due(step)

    return run


def test_a_refused_checkpoint_stops_the_run_or_is_left_out_as_configured(due, capsys):
    with pytest.raises(SaveError):
        due("stop", 2)
    due("continue", 2)
    assert "WARNING: step 2 could not be saved: No space left on device; going on without it" in capsys.readouterr().out
    # What was learnt would be lost.
    with pytest.raises(SaveError):
        due("continue", 6)


# ---- in the background -----------------------------------------------------------------------------------------


class SlowDisk(Disk):
    """Forces nothing to the disk before it is told to."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def fsync(self, path: Path) -> None:
        if not self.go.wait(timeout=30):
            raise TimeoutError("nobody let the disk go on")
        super().fsync(path)


def begin(root: Path, step: int, disk: Disk, keep: int = 2) -> checkpoint.Saving:
    root.mkdir(parents=True, exist_ok=True)
    return checkpoint.begin(
        SimpleNamespace(deepspeed=FakeDeepSpeed(step), policy=SimpleNamespace(has_adapters=False)),
        root,
        step,
        {"seed": 3},
        keep=keep,
        extra=write_policy,
        disk=disk,
        background=True,
    )


def in_the_background(root: Path, step: int, keep: int, disk: Disk) -> None:
    """Begin and finish apart, with all that the thread does in between."""
    saving = begin(root, step, disk, keep)
    # A kill ends both threads: what it stops in the one, the other does not finish.
    if stopped := saving.settled.exception(timeout=30):
        raise stopped
    checkpoint.finish(saving)


@pytest.mark.parametrize("keep", [1, 2])
def test_a_background_save_that_ends_at_any_operation_is_survived(tmp_path, keep):
    number, wrong = problems_of(in_the_background, tmp_path, keep, 2)
    assert wrong == []
    assert number >= 70


def test_the_sweep_rejects_a_background_save_that_counts_before_the_disk_is_through(tmp_path, monkeypatch):
    # As if `finish` took the files for settled: nobody has forced the shards to the disk.
    monkeypatch.setattr(writing, "settle_files", lambda saving, files: saving.settled.set_result(listed(saving, files)))
    _, wrong = problems_of(in_the_background, tmp_path, 1, 1)
    assert any("differs from the manifest" in problem for problem in wrong), wrong[:3]


def listed(saving: checkpoint.Saving, files: list[Path]) -> dict[str, dict[str, object]]:
    return listing_of(files, saving.staging)


def test_training_goes_on_while_the_disk_works_and_the_checkpoint_counts_when_it_is_through(tmp_path):
    save(tmp_path, 2)
    disk = SlowDisk()
    saving = begin(tmp_path, 4, disk)
    # Here the caller trains: it was not held up, and nothing half-finished counts.
    assert not saving.settled.done()
    assert newest(tmp_path) == 2
    disk.go.set()
    checkpoint.finish(saving)
    assert newest(tmp_path) == 4
    save(tmp_path, 6)
    assert newest(tmp_path) == 6


def test_a_run_that_dies_before_the_disk_is_through_goes_on_from_the_checkpoint_before(tmp_path):
    save(tmp_path, 2)
    disk = SlowDisk()
    saving = begin(tmp_path, 4, disk)
    disk.go.set()
    # Settled, and never finished: what a kill leaves.
    saving.settled.result(timeout=30)
    assert newest(tmp_path) == 2
    save(tmp_path, 4)
    assert newest(tmp_path) == 4
    assert not list(tmp_path.glob(".*"))


def test_a_disk_that_fails_in_the_background_is_reported_when_the_checkpoint_is_due(tmp_path):
    class Failing(Disk):
        def fsync(self, path: Path) -> None:
            if path.suffix == ".pt":
                raise OSError(5, "Input/output error")
            super().fsync(path)

    save(tmp_path, 2)
    saving = begin(tmp_path, 4, Failing())
    with pytest.raises(SaveError, match=r"step 4 could not be saved: .*Input/output error"):
        checkpoint.finish(saving)
    assert newest(tmp_path) == 2
    assert not list(tmp_path.glob(".*"))
