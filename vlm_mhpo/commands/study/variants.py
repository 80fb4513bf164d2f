"""What is compared: objectives with their constants, and named ablations of MHPO."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vlm_mhpo.config.reading import SECTIONS
from vlm_mhpo.errors import ConfigError

# Settings that belong to an objective and are not constants of its loss.
COMPANIONS = {"dr_grpo": ("train.scale_rewards=none",)}

# Short names of MHPO's ablations.
ABLATIONS = {
    "mhpo_modulator_only": ("objective.name=mhpo", "objective.use_hazard=false"),
    "mhpo_hazard_only": ("objective.name=mhpo", "objective.use_modulator=false"),
    "mhpo_symmetric": ("objective.name=mhpo", "objective.k_neg=1.5", "objective.lambda_neg=1.0"),
    "mhpo_normalized": ("objective.name=mhpo", "objective.normalize_hazard=true"),
}


@dataclass(frozen=True, slots=True)
class Variant:
    """One competitor.

    Attributes:
        name: names its folder and its rows in the tables.
        overrides: configuration overrides that make it.
    """

    name: str
    overrides: tuple[str, ...]


def parse_variants(text: str) -> list[Variant]:
    """Variants of a comma-separated list: objective names, ablation names, or NAME:key=value:key=value.

    `custom` is the user's own objective that the configuration file names.

    `key` without a dot is a key of the objective, `train.learning_rate` any key.

    Raises:
        ConfigError: an unknown name, a doubled one, or no variant.
    """
    variants = [_parse_variant(part.strip()) for part in text.split(",") if part.strip()]
    names = [variant.name for variant in variants]
    if not variants:
        raise ConfigError("--objectives names nothing: give for example mhpo,grpo")
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"--objectives names {', '.join(sorted(doubled))} twice")
    return variants


def _parse_variant(text: str) -> Variant:
    """One variant of the list."""
    name, *constants = text.split(":")
    if name in ABLATIONS:
        base = ABLATIONS[name]
    elif name in SECTIONS:
        base = (f"objective.name={name}", *COMPANIONS.get(name, ()))
    else:
        raise ConfigError(f"unknown objective {name!r}; known: {', '.join([*sorted(SECTIONS), *ABLATIONS])}")
    more = []
    for constant in constants:
        key, equals, value = constant.partition("=")
        if not equals:
            raise ConfigError(f"{text!r}: {constant!r} is not of the form key=value")
        more.append(f"{key if '.' in key else f'objective.{key}'}={value}")
    return Variant(re.sub(r"[^\w.+=-]+", "_", text), (*base, *more))


def parse_seeds(text: str) -> list[int]:
    """Seeds of `0..7` (both ends in) or `0,3,5`; ConfigError for anything else."""
    if match := re.fullmatch(r"(\d+)\.\.(\d+)", text.strip()):
        first, last = int(match[1]), int(match[2])
        if first <= last:
            return list(range(first, last + 1))
    elif re.fullmatch(r"\d+(,\d+)*", text.strip()):
        seeds = [int(part) for part in text.split(",")]
        # Two runs of one seed would write to the same folder.
        if len(set(seeds)) == len(seeds):
            return seeds
    raise ConfigError(f"--seeds {text!r} is neither FIRST..LAST nor a list of different seeds such as 0,1,2")
