"""Tiny model folders as other programs leave them, and what their files hold, read by safetensors alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

Tensors = dict[str, Tensor]


def copy_of(source: Path, target: Path) -> Path:
    """A copy of a model folder, to be changed."""
    return Path(shutil.copytree(source, target))


def change_tensors(folder: Path, change: Callable[[Tensors], Tensors]) -> Path:
    """Write the tensors that `change` makes of those of a folder."""
    file = folder / "model.safetensors"
    tensors = change(load_file(file))
    save_file({name: value.contiguous() for name, value in tensors.items()}, file, {"format": "pt"})
    return folder


def change_json(folder: Path, name: str, change: Callable[[dict[str, Any]], Any]) -> Path:
    """Let `change` change the values of one of a folder's JSON files, which may not exist yet."""
    file = folder / name
    values = json.loads(file.read_text()) if file.exists() else {}
    change(values)
    file.write_text(json.dumps(values))
    return folder


def tie_head(folder: Path) -> Path:
    """The same model with its embedding as the head: one tensor fewer, as transformers writes such models."""

    def tie(values: dict[str, Any]) -> None:
        values["tie_word_embeddings"] = True
        if "text_config" in values:
            values["text_config"]["tie_word_embeddings"] = True

    change_json(folder, "config.json", tie)
    return change_tensors(
        folder, lambda held: {name: value for name, value in held.items() if not name.endswith("lm_head.weight")}
    )


def split_in_shards(folder: Path, num_shards: int = 3) -> Path:
    """The same weights in several files with an index."""
    held = load_file(folder / "model.safetensors")
    names = [f"model-{number:05}-of-{num_shards:05}.safetensors" for number in range(1, num_shards + 1)]
    place = {name: names[index * num_shards // len(held)] for index, name in enumerate(sorted(held))}
    for file in names:
        save_file({name: held[name] for name in held if place[name] == file}, folder / file, {"format": "pt"})
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": place}))
    return folder


def listing(folder: Path) -> dict[str, tuple[list[int], str]]:
    """Name, shape and dtype of every tensor in the files of a folder."""
    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            parts = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118
            found |= {name: (part.get_shape(), part.get_dtype()) for name, part in parts.items()}
    return found
