"""All ranks run the same program with the same configuration on the same rows in the same folder, or none begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep import Row
from vlm_mhpo.config.reading import flatten
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.records.run_file import versions
from vlm_mhpo.runtime import ranks

SOURCE = Path(__file__).resolve().parent.parent
PACKAGES = ("vlm_mhpo", "data_prep", "rewards")


def check_same_setting(config: Mapping[str, Any], run_dir: Path) -> None:
    """ConfigError on every rank, naming what differs, unless configuration, folder and program are everywhere alike."""
    values = {key: repr(value) for key, value in flatten(dict(config)).items()}
    values["run folder"] = str(run_dir.resolve())
    values["source code"] = _source_hash()
    values |= {f"version of {name}": version for name, version in versions().items()}
    require_same(values)


def check_same_rows(rows: Sequence[Row]) -> None:
    """ConfigError on every rank unless all have read the same training rows in the same order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(f"{row.id}\0{row.problem}\0{row.answer}\0".encode())
    require_same({"training rows": f"{len(rows)} rows, {digest.hexdigest()[:16]}"})


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
