"""The structure of the product in figures, counted from the source: rooms, floors, arrows, sizes.

    python measurements/house.py

A room is a folder or module directly under vlm_mhpo, or one of the packages data_prep and rewards; an arrow is an
import, also inside a function, of anything in one room by anything in another; a floor is the longest way down.
`tests/test_house.py` holds the directions.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("vlm_mhpo", "data_prep", "rewards")
# Where the whole configuration may be known.
CONFIG_ROOMS = {"config", "cli", "commands"}


def main() -> None:
    """Print every figure on a line."""
    trees = {module_of(path): ast.parse(path.read_text()) for path in sources()}
    arrows = {(room_of(a), room_of(b)) for a, tree in trees.items() for b in imports(tree, trees) if in_product(b)}
    below = defaultdict(set)
    for upper, lower in arrows:
        if upper != lower:
            below[upper].add(lower)
    floors: dict[str, int] = {}
    # Raises CycleError when two rooms import each other, however far round.
    for room in TopologicalSorter(below).static_order():
        floors[room] = 1 + max((floors[lower] for lower in below[room]), default=0)
    figures = {
        "modules directly under vlm_mhpo": sum(path.parent == ROOT / "vlm_mhpo" for path in sources()),
        "rooms": len({room_of(module) for module in trees}),
        "floors of imports": max(floors.values()),
        "arrows between rooms": sum(len(lower) for lower in below.values()),
        "files outside config, cli and commands that import the whole Config": len(config_readers(trees)),
        "places that load a model by hand": sum(calls(tree, "load_policy") for tree in trees.values()),
        "places that build a sampler": sum(calls(tree, "HfSampler") for tree in trees.values()),
        "lines of the loop": lines_of(trees["vlm_mhpo.training.loop"], "run"),
        "lines of product code": sum(len(path.read_text().splitlines()) for path in sources()),
        "lines of the longest file": max(len(path.read_text().splitlines()) for path in sources()),
        "lines of the longest function": max(sizes(trees)),
    }
    for name, value in figures.items():
        print(f"{value:>7,}  {name}")
    for floor in range(max(floors.values()), 0, -1):
        print(f"floor {floor:>2}: {', '.join(sorted(room for room, at in floors.items() if at == floor))}")


def sources() -> list[Path]:
    """The Python files of the product."""
    return sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_of(path: Path) -> str:
    """The dotted name of a file; that of a package is its folder's."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def in_product(module: str) -> bool:
    """Whether a module is ours."""
    return module.split(".")[0] in PACKAGES


def room_of(module: str) -> str:
    """The room of one of our modules."""
    package, *inside = module.split(".")
    return (inside[0] if inside else "__init__") if package == "vlm_mhpo" else package


def imports(tree: ast.Module, known: dict[str, ast.Module]) -> Iterator[str]:
    """The modules that a file imports; `from a import b` means a.b where that is a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            inside = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in known else node.module for name in inside)


def config_readers(trees: dict[str, ast.Module]) -> list[str]:
    """Modules that import the name Config."""
    return [
        module
        for module, tree in trees.items()
        if room_of(module) not in CONFIG_ROOMS
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("vlm_mhpo.config")
        if any(alias.name == "Config" for alias in node.names)
    ]


def calls(tree: ast.Module, name: str) -> int:
    """How often a file calls the function or class of this name."""
    found = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(getattr(function, "id", getattr(function, "attr", "")) == name for function in found)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """The functions and methods of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def lines_of(tree: ast.Module, name: str) -> int:
    """Lines of the function of this name."""
    return next(node.end_lineno - node.lineno + 1 for node in functions(tree) if node.name == name)


def sizes(trees: dict[str, ast.Module]) -> Iterator[int]:
    """Lines of every function."""
    return (node.end_lineno - node.lineno + 1 for tree in trees.values() for node in functions(tree))


if __name__ == "__main__":
    main()
