"""Nodes on one machine: the source as a user has it, and for each node disks and a network of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.system.ranks import REPOSITORY, environment

# Inside: the place $1 is the disk $0.
MOUNT = 'mount --bind "$0" "$1" && shift && exec "$@"'
NETWORK = "10.231.77."
DEVICE = "net0"


def source_at(root: Path) -> Path:
    """The source with an environment in which everything is installed, so that the scripts install nothing."""
    root.mkdir()
    for entry in REPOSITORY.iterdir():
        if entry.name not in (".venv", ".git"):
            (root / entry.name).symlink_to(entry)
    venv = root / ".venv"
    venv.mkdir()
    for entry in Path(sys.prefix).iterdir():
        if not entry.name.startswith("."):
            (venv / entry.name).symlink_to(entry)
    wanted = "cat pyproject.toml constraints.txt | sha256sum | cut -d' ' -f1 > .venv/.installed"
    subprocess.run(["bash", "-c", wanted], cwd=root, check=True)
    return root


def node_environment(**more: str) -> dict[str, str]:
    """What a node's launcher is started with: one rank a node."""
    return environment(0, 1, "", {"NPROC": "1", "PYTHON": sys.executable, **more})


def own_disks(place: Path, disks: Sequence[Path], probe: Path) -> list[list[str]]:
    """For each node the beginning of a command line in which the folder `place` is its own disk; or skip the test."""
    for folder in (place, *disks, probe):
        folder.mkdir(parents=True, exist_ok=True)
    for options in (["--mount"], ["--user", "--map-root-user", "--mount"]):
        command = ["unshare", *options, "sh", "-c", MOUNT]
        if works([*command, str(disks[0]), str(probe), "true"]):
            return [[*command, str(disk), str(place)] for disk in disks]
    pytest.skip("this machine gives no mount namespaces (unshare --mount); tests/system/test_folders.py needs none")


@contextmanager
def own_networks() -> Iterator[list[tuple[list[str], str]]]:
    """For each of two nodes the beginning of a command line in a network of its own, and its address; or skip the test.

    A cable joins the two; nothing else can be reached.
    """
    names = [f"vlm-mhpo-{os.getpid()}-{index}" for index in (0, 1)]
    try:
        if not works(["ip", "netns", "add", names[0]]):
            pytest.skip(
                "this machine gives no network namespaces (ip netns add); tests/system/test_slurm.py needs none"
            )
        run_all(
            ["ip", "netns", "add", names[1]],
            ["ip", "-n", names[0], "link", "add", DEVICE, "type", "veth", "peer", "name", DEVICE, "netns", names[1]],
        )
        for index, name in enumerate(names):
            run_all(["ip", "-n", name, "address", "add", f"{NETWORK}{index + 1}/24", "dev", DEVICE])
            run_all(*(["ip", "-n", name, "link", "set", device, "up"] for device in ("lo", DEVICE)))
        yield [(["ip", "netns", "exec", name], f"{NETWORK}{index + 1}") for index, name in enumerate(names)]
    finally:
        for name in names:
            works(["ip", "netns", "delete", name])


def run_all(*commands: Sequence[str]) -> None:
    """Run commands that must succeed."""
    for command in commands:
        subprocess.run(command, check=True, capture_output=True)


def works(command: Sequence[str]) -> bool:
    """Whether a command is there and ends with 0."""
    try:
        return subprocess.run(command, capture_output=True, timeout=20).returncode == 0
    except OSError:
        return False
