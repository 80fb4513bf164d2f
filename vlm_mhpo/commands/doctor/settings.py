"""The settings by themselves: do model, rows, rewards and packages exist, do batches divide, can the ratio move."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.config import Config
from vlm_mhpo.errors import ModelError
from vlm_mhpo.models.families import family_for
from vlm_mhpo.models.folder import read_config

HUB_NAME_PARTS = 2


def examine_settings(config: Config) -> list[Check]:
    """All checks, in the order of the configuration's sections."""
    parts = (_examine_model, _examine_data, _examine_batches, _examine_objective, _examine_rewards, _examine_packages)
    return [check for examine in parts for check in examine(config)]


def _examine_model(config: Config) -> Iterator[Check]:
    """Is there something to load?"""
    path = config.model.path
    if path.startswith("tiny:"):
        yield Check("ok", "model", f"{path}: built from a config at the start")
    elif Path(path).exists():
        try:
            family_for(read_config(path, offline=True))
            yield Check("ok", "model", path)
        except ModelError as error:
            yield Check.refusal("model", error)
    elif _looks_like_hub_name(path):
        pinned = config.model.revision or "not pinned: set model.revision to a commit hash for a repeatable run"
        yield Check("ok" if config.model.revision else "warning", "model", f"{path} from the hub, revision {pinned}")
    else:
        yield Check("error", "model", f"no model at {path!r}: neither a folder nor a hub name", ModelError.exit_code)


def _examine_data(config: Config) -> Iterator[Check]:
    """Do the row sources exist?"""
    for name, source in (("data.train", config.data.train), ("data.eval", config.data.eval)):
        for one in [source] if isinstance(source, str) else source or []:
            place = one.partition("@")[0]
            if one.startswith("synthetic:"):
                yield Check("ok", name, f"{one}: drawn")
            elif Path(place).exists():
                yield Check("ok", name, place)
            elif _looks_like_hub_name(place):
                yield Check("ok", name, f"{one} from the hub")
            else:
                yield Check("error", name, f"{place} does not exist")
    if not config.data.eval:
        yield Check("warning", "data.eval", "not set: nothing will be evaluated")


def _examine_batches(config: Config) -> Iterator[Check]:
    """Batch arithmetic."""
    train, rollout = config.train, config.rollout
    per_update = train.num_prompts_per_step // train.num_minibatches
    batch = f"{train.num_prompts_per_step} prompts x {rollout.num_generations} completions per rollout batch"
    updates = f"{config.updates_per_step} updates of {per_update * rollout.num_generations} completions each"
    yield Check("ok", "batch", f"{batch}, {updates}")
    worlds = ", ".join(str(n) for n in range(1, per_update + 1) if per_update % n == 0)
    yield Check("ok", "ranks", f"runs on {worlds} ranks (divisors of {per_update} prompts a minibatch)")
    longest = config.data.max_prompt_length + rollout.num_generations * rollout.max_completion_length
    if longest > train.max_tokens_per_micro_batch:
        sizes = f"{longest} tokens and train.max_tokens_per_micro_batch is {train.max_tokens_per_micro_batch}"
        text = f"a full group may have {sizes}: such a group is split and its prompt computed more than once"
        yield Check("warning", "micro-batch", text)


def _examine_objective(config: Config) -> Iterator[Check]:
    """Can the ratio leave 1, and what does the weight at ratio 1 do?"""
    if config.updates_per_step == 1:
        still = "one update a rollout batch keeps every ratio at 1: modulator, hazard and clipping never act"
        yield Check("warning", "ratio", f"{still}; set train.num_minibatches to 4 or more")
    else:
        yield Check("ok", "ratio", f"moves from 1 over the {config.updates_per_step} updates of a rollout batch")
    from vlm_mhpo.objectives import build_objective
    from vlm_mhpo.objectives.multipliers import on_policy_multiplier

    weight = on_policy_multiplier(build_objective(config.objective, config.rollout.max_completion_length))
    if weight < 0.99:
        times = f"{1 / weight:.1f} times"
        text = f"{weight:.4f}: beside GRPO a KL term counts {times} more and max_grad_norm clips {times} later"
        yield Check("ok", "on-policy weight", text)


def _examine_rewards(config: Config) -> Iterator[Check]:
    """Can every reward be found?"""
    from vlm_mhpo.scoring import RewardError
    from vlm_mhpo.scoring.scorer import start_scorer

    try:
        with start_scorer(config.rewards, max_completion_length=config.rollout.max_completion_length) as scorer:
            yield Check("ok", "rewards", ", ".join(scorer.names))
    except RewardError as error:
        yield Check("error", "rewards", str(error))


def _examine_packages(config: Config) -> Iterator[Check]:
    """Optional packages that this configuration needs."""
    if config.logging.wandb and importlib.util.find_spec("wandb") is None:
        yield Check("error", "wandb", "logging.wandb=true needs: pip install 'vlm-mhpo[wandb]'")
    needed = {f"model.quantization={config.model.quantization}": config.model.quantization}
    needed["train.optimizer=adamw_8bit"] = config.train.optimizer == "adamw_8bit"
    for setting in (setting for setting, is_set in needed.items() if is_set):
        if importlib.util.find_spec("bitsandbytes") is None:
            yield Check("error", "bitsandbytes", f"{setting} needs: pip install 'vlm-mhpo[quantization]'")
    if config.deepspeed.config and not Path(config.deepspeed.config).is_file():
        yield Check("error", "deepspeed.config", f"{config.deepspeed.config} does not exist")


def _looks_like_hub_name(text: str) -> bool:
    """`org/name`, and not something that a file system would have."""
    parts = text.split("/")
    return len(parts) == HUB_NAME_PARTS and all(parts) and not text.startswith((".", "~"))
