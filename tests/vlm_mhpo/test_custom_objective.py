"""A user's own objective from a file: used as given, refused in one sentence when it cannot be."""

import pytest
import torch

from vlm_mhpo.config import parse_config
from vlm_mhpo.errors import ConfigError
from vlm_mhpo.objectives import build_objective

SOURCE = """
def mine(log_probs, old_log_probs, advantages, mask, *, num_completions, num_tokens, aggregate, factor=1.0):
    values = factor * advantages[:, None] * log_probs
    return -aggregate(values, mask, num_completions=num_completions, num_tokens=num_tokens), {}
"""


def objective_of(path: str, **more):
    values = {
        "output_dir": "x",
        "model": {"path": "m"},
        "data": {"train": "d"},
        "train": {"max_steps": 1, "num_prompts_per_step": 4},
        "objective": {"name": "custom", "path": path, **more},
    }
    return build_objective(parse_config(values).objective, 8)


def test_the_function_is_called_with_its_constants_and_the_chosen_mean(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(SOURCE)
    objective = objective_of(f"{file}:mine", kwargs={"factor": 3.0}, aggregation="token_mean")
    log_probs = torch.tensor([[-1.0, -2.0], [-4.0, 0.0]])
    mask = torch.tensor([[True, True], [True, False]])
    loss, metrics = objective.loss(
        log_probs, log_probs, torch.tensor([1.0, 2.0]), mask, num_completions=2, num_tokens=3
    )
    # -(3 * (-1 - 2) + 3 * 2 * -4) / 3 tokens
    assert loss.item() == pytest.approx(11.0)
    assert metrics == {}


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("mine.py", "not of the form file.py:function"),
        ("{folder}/none.py:f", "there is no file"),
        ("{folder}/mine.py:other", "has no function other"),
        ("{folder}/broken.py:f", "does not load: RuntimeError: no"),
        ("{folder}/text.txt:f", "is not a Python file"),
    ],
)
def test_what_cannot_be_loaded_is_refused_in_one_sentence(tmp_path, path, sentence):
    (tmp_path / "mine.py").write_text(SOURCE)
    (tmp_path / "broken.py").write_text("raise RuntimeError('no')")
    (tmp_path / "text.txt").write_text("hello")
    with pytest.raises(ConfigError, match=sentence):
        objective_of(path.format(folder=tmp_path))
