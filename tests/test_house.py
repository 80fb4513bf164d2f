"""The house rules that a program can check: import directions, sizes, docstrings, broad excepts, forbidden calls."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Each package with those that it may import from.
ALLOWED = {
    "vlm_mhpo": {"vlm_mhpo", "data_prep", "rewards"},
    "data_prep": {"data_prep", "rewards"},
    "rewards": {"rewards"},
}
# The floors of vlm_mhpo, from the ground up: a room imports from lower floors only, never from its own or a higher one.
FLOORS = (
    ("__init__", "errors"),
    ("config", "runtime"),
    ("objectives", "types"),
    ("models", "scoring", "records"),
    ("prompts", "engine", "faults", "pages"),
    ("rollout", "checkpoint"),
    ("evaluation",),
    ("training",),
    ("commands",),
    ("cli",),
)
# Outside of it the rewards package is seen only here, and only through its doors: what their `__all__` names.
# The last one is the loader of a user's function, which rewards and objectives share.
REWARD_DOORS = ("rewards", "rewards.answers", "rewards.response", "rewards.functions.loading")
SEES_REWARDS = {"scoring", "evaluation", "objectives"}
# One word for one idea: the names that were given up.
OLD_WORDS = {"Batch", "Chosen", "Examiner", "Finding", "Tools", "batches_of", "build_batches"}
# Still to be renamed; it can only shrink.
PENDING_WORDS: set[str] = set()
MAX_FILE_LINES, MAX_FUNCTION_LINES = 400, 60
TENSOR_LIBRARIES = {"torch", "transformers", "deepspeed", "numpy"}
FORBIDDEN_CALLS = {
    *("eval", "exec", "compile", "__import__", "os.system", "os.popen"),
    *("pickle.load", "pickle.loads", "pickle.Unpickler", "yaml.load", "sympy.sympify"),
}
# Keywords that must keep their harmless value wherever they are written out.
HARMLESS = {"shell": "False", "trust_remote_code": "False", "weights_only": "True"}


def sources(*folders: str) -> list[Path]:
    """The Python files of some folders of the source tree."""
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def tree_of(path: Path) -> ast.Module:
    """The parsed file."""
    return ast.parse(path.read_text(), filename=str(path))


def nodes(*folders: str) -> Iterator[tuple[str, ast.AST]]:
    """(file:line, node) of everything in some folders."""
    for path in sources(*folders):
        for node in ast.walk(tree_of(path)):
            yield f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports anywhere, as `a.b`; `from a import b` gives `a.b` too, b may be a module."""
    package = list(path.relative_to(ROOT).parts[:-1])
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            start = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*start, *([node.module] if node.module else [])])
            yield from (f"{module}.{alias.name}" for alias in node.names)


def room_of(module: str) -> str:
    """The folder or file of vlm_mhpo that `vlm_mhpo.ROOM...` lies in."""
    names = module.split(".")
    rooms = {name for floor in FLOORS for name in floor}
    inside = names[1] if len(names) > 1 else "__init__"
    # `from vlm_mhpo import __version__` imports a name of the package itself.
    return inside if inside in rooms or (ROOT / "vlm_mhpo" / inside).is_dir() else "__init__"


def test_packages_import_in_one_direction():
    wrong = [
        f"{path.relative_to(ROOT)} imports {module}"
        for package, allowed in ALLOWED.items()
        for path in sources(package)
        for module in imported(path)
        if module.split(".")[0] in set(ALLOWED) - allowed
    ]
    assert wrong == []
    # The walk sees what it is meant to see.
    assert any(module.startswith("rewards") for path in sources("data_prep") for module in imported(path))


def test_every_room_stands_on_a_floor():
    rooms = {path.relative_to(ROOT / "vlm_mhpo").parts[0].removesuffix(".py") for path in sources("vlm_mhpo")}
    assert sorted(rooms) == sorted(name for floor in FLOORS for name in floor)


def test_a_room_imports_from_lower_floors_only():
    floor_of = {name: index for index, floor in enumerate(FLOORS) for name in floor}
    wrong = []
    for path in sources("vlm_mhpo"):
        own = path.relative_to(ROOT / "vlm_mhpo").parts[0].removesuffix(".py")
        for module in imported(path):
            target = room_of(module) if module.split(".")[0] == "vlm_mhpo" else own
            if target != own and floor_of[target] >= floor_of[own]:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
    assert wrong == []


def test_only_families_know_what_images_are_as_tensors():
    words = ("image_grid_thw", "pixel_values", "image_features_IKD", "merge_size", "model.visual", "image_pad")
    families = ROOT / "vlm_mhpo" / "models" / "families"
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for path in sources(*ALLOWED, "scripts", "measurements")
        if not path.is_relative_to(families)
        for word in words
        if word in path.read_text()
    ]
    assert found == []


def test_the_rewards_package_is_entered_through_its_doors():
    open_names = {f"{door}.{name}" for door in REWARD_DOORS for name in importlib.import_module(door).__all__}
    used = {
        f"{path.relative_to(ROOT)} imports {module}": module
        for path in sources("vlm_mhpo", "data_prep", "measurements")
        for module in imported(path)
        if module.split(".")[0] == "rewards"
    }
    assert [line for line, module in used.items() if module not in open_names | {"rewards"}] == []
    assert {"rewards.Verifier", "rewards.answers.parse_expression", "rewards.response.extract"} <= set(used.values())


def test_only_rooms_that_judge_answers_see_the_rewards_package():
    seeing = {
        path.relative_to(ROOT / "vlm_mhpo").parts[0]
        for path in sources("vlm_mhpo")
        if any(module.split(".")[0] == "rewards" for module in imported(path))
    }
    assert seeing == SEES_REWARDS


def test_no_room_uses_the_private_names_of_another():
    wrong = []
    for path in sources(*ALLOWED):
        own = path.relative_to(ROOT).with_suffix("").parts[:2]
        for module in imported(path):
            names = tuple(module.split("."))
            private = any(name.startswith("_") and not name.startswith("__") for name in names)
            if names[0] in ALLOWED and private and names[:2] != own:
                wrong.append(f"{path.relative_to(ROOT)} imports {module}")
        modules = set(module_names(path))
        wrong += [
            f"{path.relative_to(ROOT)}:{node.lineno} uses {ast.unparse(node)}"
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id in modules
            and node.attr.startswith("_")
            and not node.attr.startswith("__")
        ]
    assert wrong == []


def module_names(path: Path) -> Iterator[str]:
    """The names under which a file holds modules of other rooms."""
    own = path.relative_to(ROOT).with_suffix("").parts[:2]
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                place = (ROOT / Path(*node.module.split(".")) / alias.name).resolve()
                is_module = place.is_dir() or place.with_suffix(".py").is_file()
                if is_module and tuple([*node.module.split("."), alias.name][:2]) != own:
                    yield alias.asname or alias.name


def test_one_word_stands_for_one_idea():
    found = {word for _, node in nodes(*ALLOWED, "measurements") for word in words_of(node)} & OLD_WORDS
    assert found <= PENDING_WORDS


def words_of(node: ast.AST) -> Iterator[str]:
    """The identifiers that a node writes: a definition's name, a variable, an attribute, an argument, an import."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Name):
        yield node.id
    elif isinstance(node, ast.Attribute):
        yield node.attr
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.alias):
        yield from (node.name.rpartition(".")[2], node.asname or "")


def test_few_see_data_prep_beyond_its_door():
    may = ("prompts/", "records/images.py", "commands/", "cli/")
    doors = set(ast.literal_eval(assigned(ROOT / "data_prep/__init__.py", "__all__")))
    beyond = {
        f"{inside} imports {module}"
        for path in sources("vlm_mhpo")
        if not (inside := path.relative_to(ROOT / "vlm_mhpo").as_posix()).startswith(may)
        for module in imported(path)
        if module.split(".")[0] == "data_prep" and module.removeprefix("data_prep.") not in {"data_prep", *doors}
    }
    assert beyond == set()
    # Every name of the door is there, and those loaded late are what their modules hold.
    import data_prep

    assert all(getattr(data_prep, name) is not None for name in doors)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        data_prep.nothing_like_it  # noqa: B018


def assigned(path: Path, name: str) -> ast.expr:
    """What a module's top level assigns to `name`."""
    return next(
        node.value
        for node in tree_of(path).body
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and node.targets[0].id == name
    )


def test_few_files_know_the_whole_configuration():
    knowing = {
        path.relative_to(ROOT).as_posix()
        for path in sources("vlm_mhpo")
        if path.relative_to(ROOT / "vlm_mhpo").parts[0] not in ("config", "cli", "commands")
        if {"vlm_mhpo.config.Config", "vlm_mhpo.config.run.Config"} & set(imported(path))
    }
    assert len(knowing) <= 5, knowing


def test_a_model_is_loaded_and_a_sampler_built_in_one_place():
    called = defaultdict(set)
    for path in sources("vlm_mhpo"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call):
                called[getattr(node.func, "id", "")].add(path.relative_to(ROOT / "vlm_mhpo").as_posix())
    assert called["load_policy"] == {"checkpoint/opening.py"}
    assert called["HfSampler"] == {"rollout/build.py"}


def test_the_loop_is_as_short_as_the_line_that_it_reads_like():
    (run,) = [
        node
        for node in ast.walk(tree_of(ROOT / "vlm_mhpo" / "training" / "loop.py"))
        if isinstance(node, ast.FunctionDef) and node.name == "run"
    ]
    assert run.end_lineno - run.lineno + 1 <= 25


def test_rewards_import_no_tensor_library():
    found = {module.split(".")[0] for path in sources("rewards") for module in imported(path)}
    assert found & TENSOR_LIBRARIES == set()


@pytest.mark.parametrize("module", ["vlm_mhpo.config", "vlm_mhpo.cli", "rewards", "data_prep"])
def test_importing_it_loads_nothing_heavy(module):
    heavy = {"torch", "sympy", "transformers", "datasets"}
    program = f"import sys, {module}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout.strip()) == (0, ""), done.stderr


def test_files_and_functions_are_short():
    folders = (*ALLOWED, "scripts", "measurements")
    long_files = [path for path in sources(*folders) if len(path.read_text().splitlines()) > MAX_FILE_LINES]
    long_functions = [
        f"{place} {node.name}"
        for place, node in nodes(*folders)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.end_lineno - node.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert (long_files, long_functions) == ([], [])


def test_files_and_public_functions_and_classes_say_what_they_do():
    silent = []
    for path in sources(*ALLOWED):
        named = [
            node
            for node in tree_of(path).body
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
        ]
        silent += [
            f"{path.relative_to(ROOT)}: {node}" for node in [tree_of(path), *named] if not ast.get_docstring(node)
        ]
    assert silent == []


def test_a_broad_except_gives_its_reason():
    without = []
    for path in sources(*ALLOWED):
        lines = path.read_text().splitlines()
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler) and is_broad(node.type):
                here, above = lines[node.lineno - 1], lines[node.lineno - 2].strip()
                if "#" not in here and not above.startswith("#"):
                    without.append(f"{path.relative_to(ROOT)}:{node.lineno}")
    assert without == []


def is_broad(caught: ast.expr | None) -> bool:
    """Whether an except clause catches everything."""
    names = caught.elts if isinstance(caught, ast.Tuple) else [caught]
    return any(
        name is None or (isinstance(name, ast.Name) and name.id in ("Exception", "BaseException")) for name in names
    )


def test_text_is_never_run_and_pickles_are_never_read():
    wrong = []
    for place, node in nodes(*ALLOWED, "scripts", "measurements"):
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
        unsafe_load = called == "torch.load" and "weights_only" not in keywords
        harmful = any(keywords.get(name, value) != value for name, value in HARMLESS.items())
        if called in FORBIDDEN_CALLS or unsafe_load or harmful:
            wrong.append(f"{place} {called}")
    assert wrong == []


@pytest.mark.parametrize("command", [("check",), ("format", "--check")], ids=["rules", "form"])
def test_ruff_has_nothing_to_say(command):
    pytest.importorskip("ruff", reason="ruff comes with the dev extra")
    found = subprocess.run([sys.executable, "-m", "ruff", *command, "."], cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout
