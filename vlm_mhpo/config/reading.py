"""Read a configuration file: YAML, overrides, and errors that name the key and its nearest neighbour."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from pydantic import BaseModel, ValidationError

from vlm_mhpo.config.objectives import OBJECTIVES, CustomConfig
from vlm_mhpo.config.rewards import RewardConfig
from vlm_mhpo.config.run import Config
from vlm_mhpo.errors import ConfigError


def load_config(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML file, apply `key.sub=value` overrides, validate.

    Raises:
        ConfigError: the file is missing or not YAML, an override has no `=`, or a value is refused; the message names
            the key and, for an unknown one, its nearest neighbour.
    """
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    file = Path(path)
    if not file.is_file():
        raise ConfigError(
            f"no configuration file at {file}: give the path of a YAML file, such as configs/quickstart.yaml"
        )
    for override in overrides:
        if "=" not in override:
            raise ConfigError(f"override {override!r} is not of the form key.sub=value")
    try:
        loaded = OmegaConf.load(file)
        # A list takes no overrides; it is refused below.
        changes = OmegaConf.from_dotlist(list(overrides))
        drop_other_constants(loaded, changes)
        merged = OmegaConf.merge(loaded, changes) if OmegaConf.is_dict(loaded) else loaded
        values = OmegaConf.to_container(merged, resolve=True)
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file}: not readable as YAML with these overrides: {_in_one_line(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file}: the top level must be a mapping of sections")
    return parse_config(values, where=str(file))


def _in_one_line(error: Exception) -> str:
    """What a YAML or override error says, with the line and column that it names in the file."""
    mark = getattr(error, "problem_mark", None)
    place = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
    return f"{place}{getattr(error, 'problem', None) or str(error).splitlines()[0]}"


def parse_config(values: dict, where: str = "configuration") -> Config:
    """Validate a nested mapping; see `load_config`."""
    try:
        config = Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {describe(problem)}" for problem in error.errors())) from error
    for key in config.checkpoint.allow_change:
        if key not in known_keys():
            raise ConfigError(f"{where}: checkpoint.allow_change names {key}, which is no key.{hint_for(key)}")
    return config


def drop_other_constants(loaded: Any, changes: Any) -> None:
    """Take the constants of a file's objective out of it when an override names another objective.

    So that `objective.name=grpo` alone compares GRPO with a recipe that spells out MHPO's constants. What both
    objectives have (beta, aggregation) stays, and a key that neither has is left to be refused.
    """
    if not OmegaConf.is_dict(loaded):
        return
    named, wanted = (OmegaConf.select(part, "objective.name") for part in (loaded, changes))
    old, new = SECTIONS.get(named or "mhpo"), SECTIONS.get(wanted)
    if old and new and OmegaConf.is_dict(loaded.get("objective")):
        for key in set(old.model_fields) - set(new.model_fields):
            loaded.objective.pop(key, None)


SECTIONS = {objective.model_fields["name"].default: objective for objective in (*OBJECTIVES, CustomConfig)}


def describe(problem: dict) -> str:
    """One pydantic error as a sentence that names the key and, if it is unknown, its nearest neighbour."""
    # pydantic names the branch of a union as if it were a key: objective.mhpo.c, data.train.str.
    branches = {("objective", 1, name) for name in SECTIONS} | {("data", 2, "str"), ("data", 2, "list[str]")}
    loc = problem["loc"]
    key = ".".join(str(part) for index, part in enumerate(loc) if (loc[0], index, part) not in branches)
    if problem["type"] == "extra_forbidden":
        return f"unknown key {key}.{hint_for(key)}"
    if problem["type"] == "missing":
        return f"{key} is required"
    message = problem["msg"].removeprefix("Value error, ")
    return f"{key}: {message} (got {problem['input']!r})" if key and problem["type"] != "value_error" else message


# Keys whose value is a mapping of the user's own names.
MAPPINGS = ("data.columns", "objective.kwargs")
REMOVED_KEYS = {
    "per_device_train_batch_size": "Batches are given by train.num_prompts_per_step and train.num_minibatches; "
    "train.max_tokens_per_micro_batch bounds the memory of a forward.",
    "gradient_accumulation_steps": "Micro-batches follow from train.max_tokens_per_micro_batch.",
    "steps_per_generation": "Use train.num_minibatches: updates for each rollout batch.",
    "num_train_epochs": "Use train.max_steps.",
}


def hint_for(key: str) -> str:
    """What an unknown key was probably meant to be: the same name elsewhere, else the nearest in its section."""
    # A place in a list is no name: rewards.functions.0.weight.
    key = ".".join(part for part in key.split(".") if not part.isdigit())
    section, _, leaf = key.rpartition(".")
    if leaf in REMOVED_KEYS:
        return f" {REMOVED_KEYS[leaf]}"
    known = known_keys()
    if key in known:
        return " It belongs to another objective: set objective.name"
    same = [name for name in known if name.rpartition(".")[2] == leaf]
    siblings = [name for name in known if name.rpartition(".")[0] == section]
    near = same or difflib.get_close_matches(key, siblings, n=1) or difflib.get_close_matches(key, known, n=1)
    return f" Did you mean {near[0]}?" if near else ""


def known_keys() -> list[str]:
    """Every dotted key that a configuration file may hold."""
    keys: list[str] = []

    def visit(section: type[BaseModel], prefix: str) -> None:
        for name, field in section.model_fields.items():
            keys.append(prefix + name)
            if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
                visit(field.annotation, f"{prefix}{name}.")

    visit(Config, "")
    keys.extend(f"rewards.functions.{name}" for name in RewardConfig.model_fields)
    for objective in (*OBJECTIVES, CustomConfig):
        keys.extend(f"objective.{name}" for name in objective.model_fields)
    return list(dict.fromkeys(keys))


def flatten(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as dotted keys; a mapping that is a key's value stays whole."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        flat |= flatten(value, f"{name}.") if isinstance(value, dict) and name not in MAPPINGS else {name: value}
    return flat
