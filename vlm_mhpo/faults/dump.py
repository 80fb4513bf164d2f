"""Keep the batch of a bad step: one JSON and one safetensors file a rank, enough to repeat the step elsewhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from data_prep import DataError, Row, Turn, read_image
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.secrets import without_secrets
from vlm_mhpo.types import Completion, Group, Media, Minibatch, Prompt, ScoredGroup

FORMAT_VERSION = 3
POLICY_FOLDER = "policy"


@dataclass(frozen=True, slots=True)
class Dump:
    """The batch of one rank as it was when the step went wrong.

    Attributes:
        step: 1-based training step.
        rank, world_size: whose share it is.
        reason: what went wrong.
        values: the configuration of the run.
        checkpoint: newest checkpoint of the run at that time; "" = none.
        batch: the minibatch at fault, or the whole step's when none was at fault alone.
    """

    step: int
    rank: int
    world_size: int
    reason: str
    values: dict[str, Any]
    checkpoint: str
    batch: Minibatch


def dump_folder(run_dir: Path, step: int) -> Path:
    """Where the dump of training step `step` (1-based) lies."""
    return run_dir / "dumps" / f"step_{step}"


def whole_step(batches: Sequence[Minibatch]) -> Minibatch:
    """The minibatches of a step as one."""
    offsets = [sum(len(batch.advantages) for batch in batches[:index]) for index in range(len(batches))]
    frozen = [batch.reference_log_probs for batch in batches]
    return Minibatch(
        groups=[group for batch in batches for group in batch.groups],
        advantages=tuple(value for batch in batches for value in batch.advantages),
        old_log_probs=tuple(row for batch in batches for row in batch.old_log_probs),
        reference_log_probs=None if None in frozen else tuple(row for rows in frozen for row in rows or ()),
        masked=frozenset(
            offset + flat for offset, batch in zip(offsets, batches, strict=True) for flat in batch.masked
        ),
        fresh=frozenset(offset + flat for offset, batch in zip(offsets, batches, strict=True) for flat in batch.fresh),
    )


def unscored(groups: Sequence[Group]) -> Minibatch:
    """Groups that could not be scored, with advantages of 0 and the sampler's log-probs."""
    scored = [
        ScoredGroup(group, (0.0,) * size, {}, ("not_verified",) * size, (None,) * size)
        for group in groups
        for size in [len(group.completions)]
    ]
    completions = [completion for group in groups for completion in group.completions]
    return Minibatch(scored, (0.0,) * len(completions), tuple(completion.log_probs for completion in completions))


def write_dump(
    run_dir: Path, step: int, batch: Minibatch, values: Mapping[str, Any], reason: str, details: str = ""
) -> Path:
    """Write this rank's share of a bad step; needs no other rank. A full disk costs the dump and not the message.

    Args:
        details: what a message has no place for, such as a traceback.

    Returns:
        The folder, the same on all ranks.
    """
    from safetensors.torch import save_file

    folder = dump_folder(run_dir, step)
    checkpoints = sorted((run_dir / "checkpoints").glob("step_*"))
    record = {
        "format_version": FORMAT_VERSION,
        "step": step,
        "rank": ranks.rank(),
        "world_size": ranks.world_size(),
        "reason": without_secrets(reason),
        "details": without_secrets(details),
        "checkpoint": str(checkpoints[-1].resolve()) if checkpoints else "",
        "masked": sorted(batch.masked),
        "fresh": sorted(batch.fresh),
        "groups": [_group_record(scored) for scored in batch.groups],
        # A replay scores nothing, so it can do without the keys of a reward.
        "config": without_secrets(values),
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors_of(batch), folder / f"rank_{ranks.rank()}.safetensors")
        (folder / f"rank_{ranks.rank()}.json").write_text(json.dumps(record, indent=1))
    except (OSError, DataError) as problem:
        print(f"WARNING: the batch of step {step} could not be written to {folder} ({problem})", flush=True)
    return folder


def _group_record(scored: ScoredGroup) -> dict[str, Any]:
    """A scored group without its tensors; of videos those of the prompt are kept, and not the files."""
    row = scored.group.prompt.row
    fields = {name: getattr(row, name) for name in Row.__slots__ if name not in ("images", "videos", "metadata")}
    return {
        "row": fields | {"metadata": dict(row.metadata)},
        "prompt_text": scored.group.prompt.text,
        "opens": scored.group.prompt.opens,
        "num_images": len(row.images),
        "completions": [
            {"token_ids": one.token_ids, "text": one.text, "truncated": one.truncated}
            for one in scored.group.completions
        ],
        "rewards": scored.rewards,
        "rewards_by_name": scored.rewards_by_name,
        "verdicts": scored.verdicts,
        "extracted": scored.extracted,
        "num_by_worker": scored.num_by_worker,
    }


def tensors_of(batch: Minibatch) -> dict[str, Tensor]:
    """What a batch holds in numbers, by name."""
    tensors = {
        "advantages_B": torch.tensor(batch.advantages, dtype=torch.float64),
        "old_log_probs": flat(batch.old_log_probs),
    }
    if batch.reference_log_probs is not None:
        tensors["reference_log_probs"] = flat(batch.reference_log_probs)
    for index, scored in enumerate(batch.groups):
        prompt = scored.group.prompt
        tensors[f"{index}/log_probs"] = torch.cat([one.log_probs for one in scored.group.completions])
        present = {"input_ids_S": prompt.input_ids_S, "token_types_S": prompt.token_types_S}
        present |= {f"media/{name}": value for name, value in prompt.media.tensors.items()} if prompt.media else {}
        tensors |= {f"{index}/{name}": value.contiguous() for name, value in present.items()}
        for number, image in enumerate(prompt.row.images):
            tensors[f"{index}/images/{number}"] = torch.frombuffer(bytearray(read_image(image)), dtype=torch.uint8)
    return tensors


def flat(rows: Sequence[Tensor]) -> Tensor:
    """All values of rows behind one another, float64."""
    return torch.cat([row.cpu() for row in rows]).double() if rows else torch.zeros(0, dtype=torch.float64)


def read_dump(folder: Path) -> list[Dump]:
    """Every rank's share of a dump, in rank order.

    Raises:
        ConfigError: the folder holds no readable dump.
    """
    files = sorted(folder.glob("rank_*.json"), key=lambda file: int(file.stem.removeprefix("rank_")))
    if not files:
        raise ConfigError(f"{folder}: no rank_N.json; give the folder of one step, such as RUN/dumps/step_3")
    try:
        return [_read_rank(file) for file in files]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder}: not a readable dump ({type(error).__name__}: {error})") from error


def _read_rank(file: Path) -> Dump:
    """One rank's share."""
    from safetensors.torch import load_file

    record, tensors = json.loads(file.read_text()), load_file(file.with_suffix(".safetensors"))
    if record["format_version"] != FORMAT_VERSION:
        raise ValueError(f"format {record['format_version']}, this program reads {FORMAT_VERSION}")
    groups = [_read_group(values, tensors, index) for index, values in enumerate(record["groups"])]
    lengths = [len(completion.token_ids) for scored in groups for completion in scored.group.completions]
    frozen = tensors.get("reference_log_probs")
    return Dump(
        step=record["step"],
        rank=record["rank"],
        world_size=record["world_size"],
        reason=record["reason"],
        values=record["config"],
        checkpoint=record["checkpoint"],
        batch=Minibatch(
            groups=groups,
            advantages=tuple(tensors["advantages_B"].tolist()),
            old_log_probs=tensors["old_log_probs"].split(lengths),
            reference_log_probs=None if frozen is None else frozen.split(lengths),
            masked=frozenset(record["masked"]),
            fresh=frozenset(record["fresh"]),
        ),
    )


def _read_group(values: Mapping[str, Any], tensors: Mapping[str, Tensor], index: int) -> ScoredGroup:
    """The scored group with this number."""
    images = [tensors[f"{index}/images/{number}"] for number in range(values["num_images"])]
    row = values["row"]
    row["equivalent_answers"] = tuple(row.get("equivalent_answers", ()))
    row["earlier_turns"] = tuple(Turn(*turn) for turn in row.get("earlier_turns", ()))
    row["choices"] = None if row["choices"] is None else tuple(row["choices"])
    row["metadata"] = MappingProxyType(
        {name: tuple(value) if isinstance(value, list) else value for name, value in row["metadata"].items()}
    )
    prefix = f"{index}/media/"
    media = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    prompt = Prompt(
        row=Row(**row, images=tuple(bytes(image.tolist()) for image in images)),
        text=values["prompt_text"],
        input_ids_S=tensors[f"{index}/input_ids_S"],
        token_types_S=tensors[f"{index}/token_types_S"],
        media=Media(media) if media else None,
        opens=values["opens"],
    )
    sampled = tensors[f"{index}/log_probs"].split([len(c["token_ids"]) for c in values["completions"]])
    completions = tuple(
        Completion(tuple(c["token_ids"]), log_probs, c["text"], c["truncated"])
        for c, log_probs in zip(values["completions"], sampled, strict=True)
    )
    return ScoredGroup(
        group=Group(prompt, completions),
        rewards=tuple(values["rewards"]),
        rewards_by_name={name: tuple(each) for name, each in values["rewards_by_name"].items()},
        verdicts=tuple(values["verdicts"]),
        extracted=tuple(values["extracted"]),
        num_by_worker=values["num_by_worker"],
    )
