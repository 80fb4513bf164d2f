"""Reinforcement learning of vision-language models on visual math with the MHPO objective."""

import sys
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parents[1]
_NEIGHBOURS = ("data_prep", "rewards")


class _NeighbourFinder:
    """Finds `data_prep` and `rewards` beside this package, whatever else is called so on the path.

    Users keep a rewards.py where they start their runs, and `python -m` puts that folder first.
    """

    @staticmethod
    def find_spec(name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        """The package of that name; None for any other module."""
        return PathFinder.find_spec(name, [str(_ROOT)]) if path is None and name in _NEIGHBOURS else None


def _refuse_other_neighbours() -> None:
    """ImportError when a stranger was imported under the name of a neighbour before this package."""
    for name in _NEIGHBOURS:
        file = getattr(sys.modules.get(name), "__file__", None)
        if file and not Path(file).resolve().is_relative_to(_ROOT / name):
            raise ImportError(f"{file} is loaded as {name!r}, which vlm_mhpo needs: import vlm_mhpo before it")


_refuse_other_neighbours()
sys.meta_path.insert(0, _NeighbourFinder)
