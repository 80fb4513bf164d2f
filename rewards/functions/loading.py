"""The one loader of a user's function from `file.py:function`: rewards and objectives.

It stands here because `rewards` may not import vlm_mhpo, which may import it: the lowest place that both reach. Each
caller turns FunctionError into the error of its own package.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["FunctionError", "load_function"]


class FunctionError(ValueError):
    """A user's function cannot be had; the text says why, to go on from "reward 'mine': "."""


def load_function(path: str) -> Callable[..., Any]:
    """The function that `file.py:function` names; the file is executed.

    Raises:
        FunctionError: the form is wrong, the file or function is missing, or the file fails.
    """
    name, _, function_name = path.rpartition(":")
    if not name or not function_name:
        raise FunctionError(f"{path!r} is not of the form file.py:function")
    file = Path(name).expanduser()
    if not file.is_file():
        raise FunctionError(f"there is no file {file}")
    spec = importlib.util.spec_from_file_location(f"user_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise FunctionError(f"{file} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may fail in any way
        raise FunctionError(f"{file} does not load: {type(error).__name__}: {error}") from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise FunctionError(f"{file} has no function {function_name}")
    return function
