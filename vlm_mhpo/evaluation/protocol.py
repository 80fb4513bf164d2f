"""The protocol of an evaluation: what is pinned, its hash, and in which fields two of them differ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from data_prep import Row, read_image, read_video
from vlm_mhpo.errors import EvaluationError
from vlm_mhpo.records.evaluation import BenchmarkProtocol, Protocol, State

HASH_DIGITS = 12
# The configuration keys behind the fields of a protocol, for whoever must make two of them alike.
KEYS = {
    "prompt": "eval.prompt",
    "system_prompt": "data.system_prompt",
    "min_pixels": "model.min_pixels",
    "max_pixels": "model.max_pixels",
    "num_samples": "eval.num_samples",
    "temperature": "eval.temperature",
    "top_p": "eval.top_p",
    "top_k": "eval.top_k",
    "max_tokens": "eval.max_completion_length",
    "seed": "eval.seed",
}
ALLOW_ADVICE = "evaluate both in the same way, or add --allow-protocol-difference to compare them all the same"


def benchmark_protocol(rows: Sequence[Row], asked: Sequence[Row], *, split: str, instruction: str) -> BenchmarkProtocol:
    """What pins one benchmark.

    Args:
        rows: as they are judged.
        asked: the same rows with the text of their questions as the problem.
        split, instruction: of the benchmark.
    """
    return BenchmarkProtocol(
        split=split,
        num_rows=len(rows),
        instruction=instruction,
        prompts=digest([row.problem, list(row.choices or ()) if row.kind == "choice" else []] for row in asked),
        data=digest(identity(row) for row in rows),
    )


def identity(row: Row) -> list[Any]:
    """What makes a row this row; images and videos by the digest of their files."""
    pictures = [hashlib.sha256(read_image(image)).hexdigest() for image in row.images]
    texts = [row.id, row.problem, row.gold, row.kind, row.choices, row.precision, row.unit]
    videos = [read_video(video) for video in row.videos]
    clips = [hashlib.sha256(data if isinstance(data, bytes) else b"".join(data)).hexdigest() for data in videos]
    return [*texts, pictures, *row.earlier_turns, *([clips] if clips else [])]


def digest(parts: Iterable[Any]) -> str:
    """First hex digits of the SHA-256 of JSON values, one a line."""
    found = hashlib.sha256()
    for part in parts:
        found.update(json.dumps(part, sort_keys=True).encode() + b"\n")
    return found.hexdigest()[:HASH_DIGITS]


def protocol_hash(protocol: Protocol, name: str | None = None) -> str:
    """The hash of a protocol, or of its part that decides benchmark `name`."""
    values = protocol.model_dump(mode="json")
    if name is not None:
        values["benchmarks"] = {name: values["benchmarks"][name]}
    for one in values["benchmarks"].values():
        # So that a report by rules alone keeps the hash that it had before there were judges.
        if one["judge"] is None:
            del one["judge"]
    return digest([values])


def differences(ours: Protocol, theirs: Protocol, *, judges: bool = True) -> list[str]:
    """Every field in which two protocols differ, by its configuration key if it has one, with both values.

    Benchmarks that only one has are left out, and without `judges` also who judged beside the rules.
    """
    left, right = ours.model_dump(mode="json"), theirs.model_dump(mode="json")
    ours_by_name, theirs_by_name = left.pop("benchmarks"), right.pop("benchmarks")
    for name in [name for name in ours_by_name if name in theirs_by_name]:
        left |= {f"benchmarks.{name}.{key}": value for key, value in ours_by_name[name].items()}
        right |= {f"benchmarks.{name}.{key}": value for key, value in theirs_by_name[name].items()}
    return [
        f"{KEYS.get(key, key)}: {shown(left[key])} and {shown(right[key])}"
        for key in left
        if left[key] != right[key] and (judges or not key.endswith(".judge"))
    ]


def shown(value: Any) -> str:
    """A value in a message, long texts cut."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 80 else f"{text[:77]}..."


def weights_digest(model: str) -> str | None:
    """Digest of the weight files of a model folder; None for a name on the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return None
    found = hashlib.sha256()
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as stream:
            found.update(file.name.encode() + hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()[:HASH_DIGITS]


def check_same(
    ours: Protocol, theirs: Protocol, *, what: str, allowed: bool, advice: str = ALLOW_ADVICE, judges: bool = True
) -> tuple[str, ...]:
    """The differences (see there for `judges`), which only `allowed` lets pass.

    Raises:
        EvaluationError: names `what` is compared, every field that differs, and what to do.
    """
    found = differences(ours, theirs, judges=judges)
    if found and not allowed:
        listed = "".join(f"\n  {difference}" for difference in found)
        raise EvaluationError(f"{what} have different protocols, so their scores do not compare:{listed}\n{advice}")
    return tuple(found)


def check_model(old: State, new: State, out: Path) -> None:
    """EvaluationError when a folder's evaluation was begun with other weights."""
    if (old.model_digest or old.model) != (new.model_digest or new.model):
        raise EvaluationError(
            f"{out} holds an evaluation of {old.model} (weights {old.model_digest}), not of {new.model} (weights "
            f"{new.model_digest}): choose another --out"
        )
