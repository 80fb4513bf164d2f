"""A configuration made small enough to prove things on: a tiny model of its family, short batches, same sections."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from data_prep import DataError
from vlm_mhpo.commands.doctor.check import Check
from vlm_mhpo.commands.doctor.rows import build_prompts, unlimited_builder
from vlm_mhpo.commands.doctor.shapes import transformers_config
from vlm_mhpo.config import Config, parse_config
from vlm_mhpo.engine.settings import deepspeed_settings
from vlm_mhpo.errors import ModelError, VlmMhpoError
from vlm_mhpo.models.families import FAMILIES, family_of
from vlm_mhpo.models.tiny import SCHEME, tiny_families
from vlm_mhpo.prompts.rows import read_rows

MOST_ROWS = 48
MOST_PROMPT_TOKENS = 1024
MOST_GENERATIONS, MOST_COMPLETION_TOKENS, MOST_MINIBATCHES = 4, 12, 4
# 16 image tokens; Qwen3-VL's are 32 x 32 pixels.
MOST_PIXELS = 16 * 32 * 32
NUM_SUMS = 32
VARIETY = Path(__file__).with_name("variety.py")


def shrink(config: Config, folder: Path, *, num_ranks: int, family: str | None) -> tuple[Config, list[Check]]:
    """The small configuration, and what it has in common with the one that was given.

    Args:
        config: of the run that is asked about.
        folder: for the files that the small one needs.
        num_ranks: processes that share its batches.
        family: of the tiny model; None = that of `model.path`.

    Raises:
        ModelError: the family cannot be told, or has no tiny model.
    """
    family = family or tiny_family(config)
    values = _small_values(config, family, num_ranks)
    values["deepspeed"] |= {"config": str(every_weight_partitioned(config, folder))}
    values["output_dir"] = str(folder / "run")
    small, rows = with_rows(parse_config(values), folder, family)
    kept = (
        f"tiny:{family} for {config.model.path}; {config.objective.name}, {small.train.num_prompts_per_step} prompts x "
        f"{small.rollout.num_generations} completions, {small.updates_per_step} updates per step, {config.model.dtype}"
    )
    return small, [Check("ok", "model", kept), rows]


def tiny_family(config: Config) -> str:
    """The tiny family that stands for the configuration's model; by its name where it is not on this machine."""
    families = tiny_families()
    path = config.model.path
    if path.startswith(SCHEME):
        name = path.removeprefix(SCHEME)
    else:
        try:
            name = transformers_config(config.model).model_type
        except ModelError:
            plain = re.sub(r"[^a-z0-9]+", "_", path.lower())
            named = (each for each in families if re.search(family_of(each).hub_name, plain))
            name = next(named, "") or next((each for each in families if each.endswith("_vl") and each in plain), "")
            if not name and "vl" not in plain.split("_"):
                name = "qwen2"
    if name in families:
        return name
    # Every text family goes the same way through our code.
    if name in FAMILIES and not family_of(name).has_vision:
        return "qwen2"
    raise ModelError(f"{path}: its family cannot be told on this machine: give --family, one of {', '.join(families)}")


def _small_values(config: Config, family: str, num_ranks: int) -> dict[str, Any]:
    """The nested values of the small configuration; every section stays, lengths and sizes shrink."""
    values = config.model_dump(mode="json")
    minibatches = min(MOST_MINIBATCHES, config.train.num_minibatches)
    has_vision, has_limits = family_of(family).has_vision, family_of(family).has_pixel_limits
    values["num_threads"] = 1
    values["model"] |= {"path": SCHEME + family, "revision": None, "min_pixels": None}
    values["model"]["max_pixels"] = MOST_PIXELS if has_vision and has_limits else None
    if not has_vision:
        values["model"] |= {"freeze_vision_tower": False, "freeze_projector": False}
    values["data"] |= {"eval": None, "max_prompt_length": MOST_PROMPT_TOKENS, "overlong_prompts": "filter"}
    values["data"]["max_rows"] = min(MOST_ROWS, config.data.max_rows or MOST_ROWS)
    values["rollout"] |= {
        "num_generations": min(MOST_GENERATIONS, config.rollout.num_generations),
        "max_completion_length": min(MOST_COMPLETION_TOKENS, config.rollout.max_completion_length),
        "max_resample_times": min(2, config.rollout.max_resample_times),
    }
    # A tiny model's answers are all wrong, and equal rewards teach nothing: a check of nothing would pass.
    functions = [each for each in values["rewards"]["functions"] if each["name"] != "check_variety"]
    variety = {"name": "check_variety", "weight": 1.0, "path": f"{VARIETY}:variety", "kwargs": {}}
    values["rewards"] |= {"functions": [*functions, variety], "num_workers": 1}
    values["train"] |= {
        "num_minibatches": minibatches,
        "num_prompts_per_step": minibatches * num_ranks,
        "num_iterations": min(2, config.train.num_iterations),
        "warmup_steps": min(1, config.train.warmup_steps),
        "warmup_ratio": 0.0,
        "learning_rate": 1e-3,
        # The budget cuts nearly every completion of a tiny model.
        "mask_truncated_completions": False,
    }
    values["sft"]["num_prompts_per_step"] = num_ranks
    values["eval"] |= {"every": 0, "before": False}
    values["logging"] |= {"tensorboard": False, "wandb": False, "report": False, "sample_steps": 0}
    return values


def every_weight_partitioned(config: Config, folder: Path) -> Path:
    """The DeepSpeed file of the run, or an empty one, under which ZeRO-3 cuts weights of any size."""
    settings: dict[str, Any] = {}
    if config.deepspeed.config:
        # Refuses what a user's file may not hold.
        deepspeed_settings(config.deepspeed, dtype=config.model.dtype, max_grad_norm=config.train.max_grad_norm)
        settings = json.loads(Path(config.deepspeed.config).read_text())
    settings.setdefault("zero_optimization", {})["stage3_param_persistence_threshold"] = 0
    file = folder / "deepspeed.json"
    file.write_text(json.dumps(settings))
    return file


def with_rows(config: Config, folder: Path, family: str) -> tuple[Config, Check]:
    """The configuration with the user's own rows if a tiny model can read enough of them, else with made ones."""
    data = config.data
    try:
        rows = read_rows(data.train, data, data.train_split, data.max_rows)
        prompts, problems = build_prompts(rows, unlimited_builder(config), "the check's")
        fitting = sum(prompt.num_tokens <= MOST_PROMPT_TOKENS for prompt in prompts)
        if problems:
            reason = problems[0]
        elif fitting < config.train.num_prompts_per_step:
            reason = f"{fitting} of {len(rows)} fit {MOST_PROMPT_TOKENS} tokens"
        else:
            return config, Check("ok", "rows", f"{fitting} of {data.train}")
    except (DataError, VlmMhpoError) as error:
        reason = str(error)
    made = _made_rows(folder, family)
    plain = {"train": made, "format": "auto", "train_split": None, "image_root": None, "max_rows": None}
    changed = config.model_copy(update={"data": data.model_copy(update=plain)})
    return changed, Check("warning", "rows", f"{made} in the place of {data.train}: {reason}")


def _made_rows(folder: Path, family: str) -> str:
    """Drawn images, or sums in words for a text family."""
    if family != "qwen2":
        return f"synthetic:shapes?seed=0&num_rows={NUM_SUMS}@train"
    file = folder / "sums.jsonl"
    lines = [json.dumps({"problem": f"What is {n} + 1 ?", "answer": str(n + 1)}) for n in range(NUM_SUMS)]
    file.write_text("\n".join(lines))
    return str(file)


def write_config(config: Config, file: Path) -> Path:
    """Write a configuration in a form that `load_config` reads."""
    file.write_text(json.dumps(config.model_dump(mode="json")))
    return file
