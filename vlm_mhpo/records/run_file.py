"""run.json and config.yaml: what a run was made of."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vlm_mhpo import __version__
from vlm_mhpo.runtime.secrets import without_secrets

PACKAGES = ("torch", "transformers", "deepspeed", "datasets", "pillow", "math-verify", "qwen-vl-utils", "trl")


def write_run_file(
    run_dir: Path, config: Mapping[str, Any], model: dict[str, Any], changes: Sequence[Mapping[str, Any]] = ()
) -> None:
    """run.json and config.yaml: the resolved configuration (secrets as ***), versions, commit, seed, model.

    Args:
        run_dir: folder of the run.
        config: as it is now.
        model: family, size and commit.
        changes: step (after which), key, from and to of each value that a continuation changed.
    """
    from omegaconf import OmegaConf

    values = without_secrets(dict(config))
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.create(values), run_dir / "config.yaml")
    record = {
        "config": values,
        "versions": versions(),
        "git_commit": git_commit(),
        "seed": config["seed"],
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "model": model,
        "changes": list(changes),
    }
    (run_dir / "run.json").write_text(json.dumps(record, indent=1))


def versions() -> dict[str, str]:
    """Versions of what a result depends on; packages that are not installed are left out."""
    found = {"vlm-mhpo": __version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """Commit of this source tree, with "-dirty" if it was changed; None outside git."""
    here = Path(__file__).parent
    try:
        answer = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() or None
