"""Which step of a run a model folder is of."""

from __future__ import annotations

import pytest

from vlm_mhpo.checkpoint import step_of


@pytest.mark.parametrize(
    ("place", "step"),
    [
        ("run/checkpoints/step_000012/policy", 12),
        ("run/checkpoints/step_000012", 12),
        ("run/checkpoints/../checkpoints/step_000007/policy", 7),
        ("run/policy", None),
        ("other/checkpoints/step_000012/policy", None),
        ("org/name", None),
    ],
)
def test_only_a_checkpoint_of_the_run_itself_has_a_step(place, step, tmp_path):
    for folder in ("run/checkpoints/step_000007/policy", "run/checkpoints/step_000012/policy", "run/policy"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "other" / "checkpoints" / "step_000012" / "policy").mkdir(parents=True)
    assert step_of(tmp_path / place, tmp_path / "run" / "checkpoints") == step
