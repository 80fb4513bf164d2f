"""Ranks that are not set up alike do not begin, and the difference is named."""

from pathlib import Path

import pytest

from tests.vlm_mhpo.config_cases import minimal, with_values
from vlm_mhpo.config import parse_config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.faults import agreement
from vlm_mhpo.runtime import ranks


def test_a_single_rank_agrees_with_itself(tmp_path):
    agreement.check_same_setting(parse_config(minimal()).model_dump(), tmp_path)


def test_a_single_rank_shares_no_folder_and_writes_none(tmp_path):
    agreement.check_same_folder("output_dir", tmp_path / "run", "checkpoints")
    assert not (tmp_path / "run").exists()


def test_every_value_that_differs_is_named_with_its_rank(monkeypatch):
    others = [{"a": "1", "b": "2"}, {"a": "1", "b": "2"}, {"a": "9", "b": "2", "c": "3"}]
    monkeypatch.setattr(ranks, "gather_objects", lambda value: others)
    with pytest.raises(ConfigError) as caught:
        agreement.require_same(others[0])
    assert "a is 1 on rank 0 and 9 on rank 2; c is None on rank 0 and 3 on rank 2" in str(caught.value)
    assert "b is" not in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "name"), [({"seed": 1}, "seed is 0 on rank 0 and 1"), ({"output_dir": "elsewhere"}, "run folder is ")]
)
def test_another_configuration_or_folder_on_one_rank_is_named(monkeypatch, changes, name):
    seen = []
    monkeypatch.setattr(ranks, "gather_objects", lambda value: seen.append(value) or [value])
    for values in (minimal(), with_values(minimal(), changes)):
        config = parse_config(values)
        agreement.check_same_setting(config.model_dump(), Path(config.output_dir))
    monkeypatch.setattr(ranks, "gather_objects", lambda value: seen)
    with pytest.raises(ConfigError) as caught:
        agreement.require_same({})
    assert name in str(caught.value)
