"""All ranks run the same program with the same configuration on the same rows in the same folder, or none begins."""

from __future__ import annotations

import hashlib
import os
import socket
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from data_prep import Row
from vlm_mhpo.config.reading import flatten
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.records.run_file import versions
from vlm_mhpo.runtime import ranks

SOURCE = Path(__file__).resolve().parent.parent
PACKAGES = ("vlm_mhpo", "data_prep", "rewards")
# How long a network file system may take to show on one node what another has written.
PATIENCE_S = 3.0
SHARE = "put it on a file system that all nodes share, under the same path"


def check_same_setting(config: Mapping[str, Any], run_dir: Path) -> None:
    """ConfigError on every rank, naming what differs, unless configuration, folder and program are everywhere alike."""
    values = {key: repr(value) for key, value in flatten(dict(config)).items()}
    values["run folder"] = str(run_dir.resolve())
    values["source code"] = _source_hash()
    values |= {f"version of {name}": version for name, version in versions().items()}
    require_same(values)


def check_same_folder(key: str, folder: Path, *inside: str) -> None:
    """ConfigError on every rank unless all see the same folder: each must read a word that the main rank writes there.

    The same path may be another disk on every node, and then each would keep a part of every checkpoint.

    Args:
        key: what chooses the folder, for the message.
        folder: made if it is not there.
        inside: folders in it that may be mounts or links of their own; looked at if the main rank has them.
    """
    if ranks.world_size() == 1:
        return
    word, written, error = uuid.uuid4().hex, [], None
    if ranks.is_main():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for place in (".", *(name for name in inside if (folder / name).is_dir())):
                written.append(f"{place}/.rank_0_{word}")
                _write_word(folder / written[-1], word)
        except OSError as problem:
            error = ConfigError(f"{key}={folder} cannot be written: {problem}")
    try:
        ranks.raise_together(error)
        word, names = ranks.gather_objects((word, written))[0]
        answers = ranks.gather_objects((socket.gethostname(), _unseen([folder / name for name in names], word)))
    finally:
        for name in written:
            (folder / name).unlink(missing_ok=True)
    for rank, (host, unseen) in enumerate(answers):
        if unseen:
            raise ConfigError(
                f"{key}: {unseen.parent} of rank {rank} on {host} is not the folder of rank 0 on {answers[0][0]}, and "
                f"every rank keeps a part of its work there: {SHARE}"
            )


def _write_word(file: Path, word: str) -> None:
    """Write a word, and wait until it is where others can see it."""
    with file.open("w") as stream:
        stream.write(word)
        stream.flush()
        os.fsync(stream.fileno())


def _unseen(files: Sequence[Path], word: str) -> Path | None:
    """The first file in which this rank does not read the word, or None."""
    deadline = time.monotonic() + PATIENCE_S
    for file in files:
        while not _reads(file, word):
            if time.monotonic() > deadline:
                return file
            time.sleep(0.2)
    return None


def _reads(file: Path, word: str) -> bool:
    """Whether a file is there and holds the word."""
    try:
        return file.read_text() == word
    except OSError:
        return False


def check_same_weights(model: str, policy: nn.Module) -> None:
    """ConfigError on every rank unless all have loaded the same weights from `model`; not for partitioned ones."""
    if ranks.world_size() == 1:
        return
    total = 0
    for index, weight in enumerate(policy.parameters()):
        # A sum of bits is the same in any order, so also on unlike devices.
        bits = weight.detach().reshape(-1).view(torch.int16).sum(dtype=torch.int64)
        total = (total * 31 + (index + 1) * int(bits)) % 2**61
    require_same({f"sum over the weights of {model}": f"{total:x}"})


def check_same_rows(rows: Sequence[Row], what: str = "training rows") -> None:
    """ConfigError on every rank unless all have read the same rows in the same order; `what` names them."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.id}\0{row.conversation}\0{row.gold}\0".encode())
    require_same({what: f"{len(rows)} rows, {digest.hexdigest()[:16]}"})


def require_same(values: Mapping[str, str]) -> None:
    """ConfigError on every rank, naming each value in which some rank differs from the first; called by all ranks."""
    everywhere = ranks.gather_objects(dict(values))
    first = everywhere[0]
    differences = [
        f"{name} is {first.get(name)} on rank 0 and {other.get(name)} on rank {rank}"
        for rank, other in enumerate(everywhere)
        for name in sorted(first.keys() | other.keys())
        if other.get(name) != first.get(name)
    ]
    if differences:
        raise ConfigError(
            f"the ranks are not set up alike: {'; '.join(differences)}. Start all of them from the same files"
        )


def _source_hash() -> str:
    """Digest of our own source files."""
    digest = hashlib.sha256()
    for package in PACKAGES:
        for file in sorted((SOURCE / package).rglob("*.py")):
            digest.update(f"{file.relative_to(SOURCE)}\0".encode() + file.read_bytes())
    return digest.hexdigest()[:16]
