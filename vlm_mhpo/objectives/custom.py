"""A user's own objective: a function of a file named in the configuration, with the signature of the others."""

from __future__ import annotations

from collections.abc import Callable

from rewards.functions.loading import FunctionError, load_function
from vlm_mhpo.errors import ConfigError


def load_loss(path: str) -> Callable[..., tuple]:
    """The function that `file.py:function` names.

    It is called as f(log_probs, old_log_probs, advantages, mask, *, num_completions, num_tokens, aggregate, **kwargs)
    and returns (loss, metrics); see `objectives.mhpo.mhpo_loss`. The file is executed. With an attribute
    `scales_with_advantage = True` it says that a completion with advantage 0 adds exactly nothing to loss and gradient;
    the trainer then leaves such completions out.

    Raises:
        ConfigError: the form is wrong, the file or function is missing, or the file fails.
    """
    try:
        return load_function(path)
    except FunctionError as error:
        raise ConfigError(f"objective.path: {error}") from error
