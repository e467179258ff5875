"""The rule of the house: a room imports from rooms above it alone, and megatron-core is imported in one of them."""

import ast
import graphlib
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOMS = (
    "recipe", "vocabulary", "audio", "pages", "songs", "documents", "corpus", "engine", "training", "conversion",
    "generation", "evaluation", "cluster", "scaling", "cli",
)  # fmt: skip
"""From top to bottom. What stands beside them in the package (errors, files, progress, ...) is above all of them."""
ENTRY = "__main__"
"""The one module beside them that is below."""


@pytest.fixture(scope="module")
def modules(repository) -> dict[str, ast.Module]:
    """Every module of the package by its name below it, ``songs.lyrics``; a room's own by the room's."""
    package = repository / "megatron_music"
    return {_name(path.relative_to(package)): ast.parse(path.read_text()) for path in sorted(package.rglob("*.py"))}


def _name(path: Path) -> str:
    parts = path.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST, when_loaded: bool = False) -> Iterator[str]:
    """Names of what a module imports; when it is loaded alone: in no function, and not for types."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name the whole path"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif not when_loaded or not (isinstance(node, ast.FunctionDef) or is_for_types(node)):
            yield from imported(node, when_loaded)


def is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


def own(names: Iterator[str], modules: dict[str, ast.Module]) -> set[str]:
    """Those that are modules of the package, by their names in it."""
    return {name.removeprefix("megatron_music.") for name in names} & modules.keys()


def place(name: str) -> int:
    """0 for what is above all rooms, and then the room's number."""
    room = name.partition(".")[0]
    return len(ROOMS) + 1 if room == ENTRY else ROOMS.index(room) + 1 if room in ROOMS else 0


def test_the_rooms_are_those_that_there_are(repository):
    package = repository / "megatron_music"
    assert sorted(ROOMS) == sorted(path.parent.name for path in package.glob("*/__init__.py"))
    assert {path.name for path in package.iterdir() if path.is_dir()} <= {*ROOMS, "__pycache__"}


def test_no_room_imports_from_one_below_it(modules):
    upward = [
        f"{name} imports {other}"
        for name, tree in modules.items()
        for other in own(imported(tree), modules)
        if place(other) > place(name)
    ]
    assert upward == []


def test_no_modules_load_each_other_in_a_circle(modules):
    graph = {name: own(imported(tree, when_loaded=True), modules) - {name} for name, tree in modules.items()}
    list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


def test_megatron_core_is_imported_by_the_engine_alone(modules):
    importers = [name for name, tree in modules.items() if any(re.match(r"megatron\b", one) for one in imported(tree))]
    assert importers and {name.partition(".")[0] for name in importers} == {"engine"}


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_the_pages_name_the_rooms_in_their_order(repository, page):
    text = (repository / page).read_text()
    named = re.findall(r"`(\w+)/?`", text[text.index("top to bottom") :])
    assert tuple(dict.fromkeys(name for name in named if name in ROOMS)) == ROOMS
