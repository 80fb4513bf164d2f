"""What a continuation shares with the run that it continues, what it may change, and what it must say of a change."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from data_prep import Row
from vlm_mhpo import checkpoint
from vlm_mhpo.config.reading import flatten
from vlm_mhpo.config.resuming import on_resume
from vlm_mhpo.errors import CheckpointError
from vlm_mhpo.models.digest import digest_of_model
from vlm_mhpo.prompts.content import digest_of_rows
from vlm_mhpo.runtime import ranks
from vlm_mhpo.runtime.secrets import without_secrets

# What the other kind of run reads.
WARM_START_KEYS, RL_KEYS = ("sft.",), ("train.", "rollout.", "rewards.", "objective.")
# What may change because a checkpoint can be cut anew.
LAYOUT_KEYS = ("world_size", "deepspeed.zero_stage")
# What is found at a place, and the key that names the place; `checkpoint.allow_change` takes that key for both.
CONTENTS = {"training rows": "data.train", "model files": "model.path"}
# Changes of the run so far, in a checkpoint's state.
CHANGES = "changes"


def identity_of(
    job: str, values: Mapping[str, Any], rows: Sequence[Row], zero_stage: int, model_path: str
) -> dict[str, Any]:
    """What a continuation must share with the run that it continues, but for what `settle` lets pass.

    Args:
        job: "rl" or "warm start".
        values: the whole configuration.
        rows: training rows.
        zero_stage: in use; a user's own DeepSpeed file may decide it.
        model_path: folder or hub name that was loaded.
    """
    other = WARM_START_KEYS if job == "rl" else RL_KEYS
    fixed = {
        key: value
        for key, value in flatten(without_secrets(dict(values))).items()
        if on_resume(key) != "free" and not key.startswith(other)
    }
    return fixed | {
        "job": job,
        # Its keys are gone where it is null.
        "model.lora": bool(values["model"]["lora"]) or None,
        "deepspeed.zero_stage": zero_stage,
        "world_size": ranks.world_size(),
        **_contents(rows, model_path, values["model"]["revision"]),
    }


def _contents(rows: Sequence[Row], model_path: str, revision: str | None) -> dict[str, str]:
    """The digests of CONTENTS, taken by the main rank for all."""
    digests, error = {}, None
    if ranks.is_main():
        try:
            found = digest_of_rows(rows), digest_of_model(model_path, revision)
            digests = dict(zip(CONTENTS, found, strict=True))
        except (OSError, ValueError) as problem:
            error = CheckpointError(f"the training rows or the model cannot be read: {problem}")
    ranks.raise_together(error)
    return ranks.gather_objects(digests)[0]


def settle(
    state: Mapping[str, Any], identity: Mapping[str, Any], allowed: Sequence[str], folder: Path
) -> tuple[list[str], list[dict[str, Any]]]:
    """Compare a checkpoint with the run that wants to go on from it.

    Args:
        state: of the checkpoint.
        identity: of the run.
        allowed: `checkpoint.allow_change`.
        folder: of the checkpoint, for messages.

    Returns:
        What must be cut anew, one phrase each, and all changes of the run up to now: step, key and both values.

    Raises:
        CheckpointError: something else differs, and is not allowed to; names it and the way out.
    """
    passing = {key for key in identity if _passes(key, state, identity, allowed)}
    refused = [key for key, value in identity.items() if state.get(key) != value and key not in passing]
    phrases = checkpoint.check_state(state, identity, folder, free=tuple(passing), advice=_advice(refused))
    news = [
        {"step": state["step"], "key": key, "from": state.get(key), "to": identity[key]}
        for key in phrases
        if not _is_free(key, state, identity)
    ]
    return [phrases[key] for key in LAYOUT_KEYS if key in phrases], [*state.get(CHANGES, ()), *news]


def _is_free(key: str, state: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether another value of a key leaves what is learnt as it was."""
    if key in LAYOUT_KEYS:
        return True
    if key.endswith(".max_steps"):
        # A longer run with a constant rate is the same run, only longer.
        section = key.removesuffix("max_steps")
        return identity[f"{section}lr_scheduler_type"] == "constant" and not identity[f"{section}warmup_ratio"]
    content = next((content for content, place in CONTENTS.items() if place == _place_of(key)), None)
    return content is not None and content != key and state.get(content) == identity[content]


def _passes(key: str, state: Mapping[str, Any], identity: Mapping[str, Any], allowed: Sequence[str]) -> bool:
    """Whether a run may go on with another value of a key."""
    granted = key in allowed or _place_of(key) in allowed
    return _is_free(key, state, identity) or (granted and on_resume(key) != "never")


def _place_of(key: str) -> str | None:
    """The key that names where rows or model are found, for a key that has a say in it, and for what is found."""
    if key in CONTENTS:
        return CONTENTS[key]
    if on_resume(key) != "by content":
        return None
    return next(place for place in CONTENTS.values() if place.partition(".")[0] == key.partition(".")[0])


def _advice(refused: Sequence[str]) -> str:
    """What to do about keys that differ and may not."""
    plain = "Use the same values, or another output_dir"
    if any(key == "job" or on_resume(key) == "never" for key in refused):
        return plain
    keys = dict.fromkeys(_place_of(key) or key for key in refused)
    return f"{plain}; or go on with the new ones: 'checkpoint.allow_change=[{', '.join(keys)}]'"
