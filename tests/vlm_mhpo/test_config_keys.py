"""Every key is listed with its text, default and range: for a terminal, as a page, as a schema for editors."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import yaml

from tests.vlm_mhpo.config_cases import minimal
from vlm_mhpo import cli
from vlm_mhpo.config import known_keys, parse_config
from vlm_mhpo.config.keys import all_keys, as_text, keys_under, markdown, published_schema
from vlm_mhpo.config.reading import flatten
from vlm_mhpo.errors import ConfigError

DOCS = Path(__file__).resolve().parents[2] / "docs"


def plain(name: str) -> str:
    """The key as a file has it: objective.c for objective[mhpo].c, and without a place in a list."""
    return name.replace(".N", "").partition("[")[0] + name.replace(".N", "").partition("]")[2]


def test_the_published_page_and_schema_are_those_of_the_program():
    # To publish them anew: python -m vlm_mhpo.config.keys [--schema] > docs/configuration{.md,_schema.json}
    assert (DOCS / "configuration.md").read_text() == markdown()
    assert json.loads((DOCS / "configuration_schema.json").read_text()) == published_schema()


def test_every_key_that_a_file_may_hold_is_listed_with_a_text():
    listed = {plain(key.name) for key in all_keys()}
    assert set(known_keys()) - listed <= {"objective"}
    assert [key.name for key in all_keys() if not key.text and not key.name.endswith("].name")] == []


def test_defaults_are_those_that_a_run_gets():
    used = flatten(parse_config(minimal()).model_dump())
    shown = {plain(key.name): key.default for key in all_keys() if "[" not in key.name or "[mhpo]" in key.name}
    left_out = set(flatten(minimal()))
    for name, value in used.items():
        if name not in left_out and isinstance(value, bool | int | float | str | None):
            # YAML 1.1 takes 1e-06 for a text.
            found = float(shown[name]) if isinstance(value, float) else yaml.safe_load(shown.get(name) or "null")
            assert found == value, name


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("train.learning_rate", "train.learning_rate = 1e-06  (number > 0)"),
        ("data.template", "data.template = think_answer  (think_answer, think_boxed, boxed)"),
        ("rollout.num_generations", "rollout.num_generations = 8  (integer >= 2)"),
        ("model", "model.path  (text, required)"),
        ("objective.lambda_neg", "objective[mhpo].lambda_neg = 0.8  (number > 0)"),
        ("rewards.functions", "rewards.functions.N.weight = 1.0  (number)"),
        ("eval.early_stop", "eval.early_stop.patience  (integer > 0, required)"),
    ],
)
def test_a_key_or_section_is_found_by_its_name(name, line):
    assert line in as_text(keys_under(name)).splitlines()


def test_an_unknown_key_names_its_neighbour(monkeypatch, capsys):
    with pytest.raises(ConfigError, match=r"no key 'train.learning_rat'; did you mean train.learning_rate\?"):
        keys_under("train.learning_rat")
    monkeypatch.setattr(sys, "argv", ["vlm-mhpo", "config", "nothing_like_it_at_all"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 2
    assert "error: no key 'nothing_like_it_at_all'" in capsys.readouterr().err
