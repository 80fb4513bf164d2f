"""Interpreter, packages, devices and threads of this machine against what the project was tested with."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import Version

from vlm_mhpo.commands.doctor.check import Check, in_gib
from vlm_mhpo.config import Config

PACKAGE = "vlm-mhpo"
SOURCE_TREE = Path(__file__).resolve().parents[3]
# What decides the numbers of a run; the tested versions are those of constraints.txt.
NAMED = ("torch", "transformers", "deepspeed")


def examine_environment(config: Config) -> Iterator[Check]:
    """All of it."""
    yield from examine_versions(_requirements(), _installed_versions(), _tested_versions())
    yield from _examine_devices(config)


def _requirements() -> list[Requirement]:
    """What the package asks for: of the source tree if there is one (it may be newer), else of the installation."""
    file = SOURCE_TREE / "pyproject.toml"
    if file.is_file():
        lines = tomllib.loads(file.read_text())["project"]["dependencies"]
    else:
        lines = importlib.metadata.requires(PACKAGE) or []
    return [each for each in map(Requirement, lines) if each.marker is None]


def _installed_versions() -> dict[str, str]:
    """Version of every installed package by its normalised name."""
    found = ((each.name, each.version) for each in importlib.metadata.distributions() if each.name)
    return {name.lower().replace("_", "-"): version for name, version in found}


def _tested_versions() -> dict[str, str]:
    """The exact versions of constraints.txt; {} where the program was installed without it."""
    file = SOURCE_TREE / "constraints.txt"
    lines = file.read_text().splitlines() if file.is_file() else []
    pairs = (line.split("==") for line in lines if "==" in line)
    return {name.strip().lower(): version.strip() for name, version in pairs}


def examine_versions(
    wanted: list[Requirement], installed: Mapping[str, str], tested: Mapping[str, str]
) -> Iterator[Check]:
    """Packages that are missing, outside the bounds, or of another minor version than the tested one."""
    named = ", ".join(f"{name} {installed.get(name, 'missing')}" for name in NAMED)
    yield Check("ok", "versions", f"python {platform.python_version()}, {named}")
    for each in wanted:
        version = installed.get(each.name)
        if version is None:
            yield Check("error", each.name, f"not installed: pip install '{each}'")
        elif not each.specifier.contains(version, prereleases=True):
            text = f"{version} is outside the tested bounds {each.specifier}: pip install '{each}'"
            yield Check("warning", each.name, text)
    for name in NAMED:
        if name in installed and name in tested and minor(installed[name]) != minor(tested[name]):
            text = f"{installed[name]}; the tests ran with {tested[name]}: pip install -c constraints.txt {name}"
            yield Check("warning", name, text)


def minor(version: str) -> tuple[int, ...]:
    """Major and minor number."""
    return Version(version).release[:2]


def _examine_devices(config: Config) -> Iterator[Check]:
    """GPUs with their memory, and whether the threads of a process fit the cores."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        names = ", ".join(f"{each.name} ({in_gib(each.total_memory)})" for each in properties)
        yield Check("ok", "devices", f"CUDA {torch.version.cuda}, {len(properties)} GPU(s): {names}")
    else:
        yield Check("ok", "devices", f"no GPU; torch is built for CUDA {torch.version.cuda or 'no version'}")
        if config.model.dtype == "bfloat16":
            cure = "model.dtype=bfloat16 is slow without a GPU: set float32 for a run on this machine"
            yield Check("warning", "devices", cure)
    threads = config.num_threads
    if threads > cores:
        yield Check("warning", "threads", f"num_threads={threads} on {cores} cores: lower it, or set 0")
    else:
        yield Check("ok", "threads", f"{threads or 'cores / local ranks'} a process, {cores} cores")
