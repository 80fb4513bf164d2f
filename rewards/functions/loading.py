"""The one loader of a user's function from `file.py:function` or `package.module:function`: rewards and objectives.

It stands here because `rewards` may not import vlm_mhpo, which may import it: the lowest place that both reach. Each
caller turns FunctionError into the error of its own package.

A user's file sees the modules beside it, as if it were run as a program. One that is named like a package of ours
(`rewards.py` is common) is its own: inside that file `import rewards` means the neighbour, everywhere else ours.
"""

from __future__ import annotations

import builtins
import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

__all__ = ["FunctionError", "load_function"]

_OURS = ("data_prep", "rewards", "vlm_mhpo")
_SWAPPING = threading.RLock()


class FunctionError(ValueError):
    """A user's function cannot be had; the text says why, to go on from "reward 'mine': "."""


def load_function(path: str) -> Callable[..., Any]:
    """The function that `file.py:function` or `package.module:function` names; a file is executed.

    Raises:
        FunctionError: the form is wrong, the file, module or function is missing, or it fails.
    """
    name, _, function_name = path.rpartition(":")
    if not name or not function_name:
        raise FunctionError(f"{path!r} is not of the form file.py:function")
    is_module = "/" not in name and not name.endswith(".py") and not Path(name).expanduser().is_file()
    module = _import(name) if is_module else _execute(Path(name).expanduser())
    function = getattr(module, function_name, None)
    if not callable(function):
        raise FunctionError(f"{name} has no function {function_name}")
    return function


def _import(name: str) -> ModuleType:
    """An installed module."""
    try:
        return importlib.import_module(name)
    except Exception as error:  # any module may fail in any way
        raise FunctionError(f"there is no file {name}, and no module: {type(error).__name__}: {error}") from error


def _execute(file: Path) -> ModuleType:
    """A file as a module of its own."""
    if not file.is_file():
        raise FunctionError(f"there is no file {file}")
    folder = str(file.resolve().parent)
    spec = importlib.util.spec_from_file_location(f"user_file_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise FunctionError(f"{file} is not a Python file")
    if folder not in sys.path:
        # Last, so that it can shadow nothing.
        sys.path.append(folder)
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__builtins__"] = vars(builtins) | {"__import__": _importer_for(folder)}
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # the user's file may fail in any way
        raise FunctionError(f"{file} does not load: {type(error).__name__}: {error}") from error
    return module


def _importer_for(folder: str) -> Callable[..., ModuleType]:
    """`__import__` of a user's file: also in its functions, a neighbour goes before a package of ours."""
    own: dict[str, dict[str, ModuleType]] = {top: {} for top in _OURS}

    def import_(name: str, globals: Any = None, locals: Any = None, fromlist: Any = (), level: int = 0) -> ModuleType:
        top = name.partition(".")[0]
        if level or top not in _OURS or _neighbour(top, folder) is None:
            return builtins.__import__(name, globals, locals, fromlist, level)
        with _swapped(top, folder, own[top]):
            return builtins.__import__(name, globals, locals, fromlist, level)

    return import_


def _neighbour(top: str, folder: str) -> ModuleSpec | None:
    """The module of that name in a folder, unless it is ours: the folder may be the root of a clone."""
    spec = PathFinder.find_spec(top, [folder])
    root = Path(__file__).resolve().parents[2]
    return None if spec and spec.origin and Path(spec.origin).resolve().is_relative_to(root / top) else spec


@contextmanager
def _swapped(top: str, folder: str, own: dict[str, ModuleType]) -> Iterator[None]:
    """Inside, the modules named `top` are those of `folder`, which `own` keeps; afterwards ours again."""
    with _SWAPPING:
        ours = _taken_out(top)
        sys.modules.update(own)
        try:
            if top not in sys.modules:
                spec = _neighbour(top, folder)
                sys.modules[top] = importlib.util.module_from_spec(spec)
                spec.loader.exec_module(sys.modules[top])
            yield
            own.update({name: module for name, module in sys.modules.items() if _is_in(name, top)})
        finally:
            # Also what a neighbour that failed has left half made.
            _taken_out(top)
            sys.modules.update(ours)


def _taken_out(top: str) -> dict[str, ModuleType]:
    """Take a package and what is in it out of sys.modules."""
    return {name: sys.modules.pop(name) for name in list(sys.modules) if _is_in(name, top)}


def _is_in(name: str, top: str) -> bool:
    return name == top or name.startswith(f"{top}.")
