"""Who may import whom: pipelines -> distill -> featstore, never back, and never in a circle.

The files are parsed, not imported, so that imports inside functions count too.
"""

import ast
import functools
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

LAYERS = ("featstore", "distill", "pipelines")
"""From the lowest; a package may import itself and lower ones."""


FLOORS = {
    package: [floor.split() for floor in floors.split("\n")][::-1]
    for package, floors in re.findall(
        r"^```text floors of (\w+)\n(.*?)\n```$",
        (ROOT / "CONTRIBUTING.md").read_text(),
        re.DOTALL | re.MULTILINE,
    )
}
"""Folders and files at the top of a package, floor by floor from the lowest, as CONTRIBUTING.md lists them."""

MOST_ROOMS = {"featstore": 22, "distill": 23}
"""Most folders and files at the top of a package; ``__init__`` and ``__main__`` do not count."""

FACES = ("hf", "torch", "webdataset")
"""Files at the top of featstore that are public names, as api/ is, and stand on its floor."""


def modules() -> dict[str, Path]:
    """Every module of the layers that exist, by dotted name."""
    found = {}
    for layer in LAYERS:
        for path in sorted((ROOT / layer).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


@functools.cache
def imports(name: str, path: Path) -> list[str]:
    """Dotted names of what a file imports, also under TYPE_CHECKING and inside functions."""
    return list(_walk(name, path))


def _walk(name: str, path: Path) -> Iterator[str]:
    """Dotted names of what a file imports, also under TYPE_CHECKING and inside functions."""
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = (
                package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            )
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            # `from package import module` imports the module as well.
            yield from (f"{module}.{alias.name}" for alias in node.names)


@functools.cache
def own_imports(name: str) -> set[str]:
    """Modules of the layers that a file imports itself."""
    return {item for item in imports(name, MODULES[name]) if item in MODULES and item != name}


def test_there_is_something_to_check() -> None:
    """The walk has found the packages, their parts and an import between two of them."""
    assert {
        "featstore.extraction.shards",
        "featstore.containers.zarr",
        "pipelines.extract",
    } <= MODULES.keys()
    assert "featstore.extraction.teachers" in own_imports("featstore.extraction.shards")
    assert "featstore.extraction.run" in own_imports("pipelines.extract")


@pytest.mark.parametrize("layer", LAYERS)
def test_layers_import_downwards_only(layer: str) -> None:
    """No module imports from a layer above its own."""
    above = set(LAYERS[LAYERS.index(layer) + 1 :]) | {"tests", "benchmarks"}
    wrong = [
        f"{name} imports {item}"
        for name, path in MODULES.items()
        if name.split(".")[0] == layer
        for item in imports(name, path)
        if item.split(".")[0] in above
    ]
    assert wrong == []


@pytest.mark.parametrize("package", FLOORS)
def test_rooms_import_downwards_only(package: str) -> None:
    """A drawing of which folder imports which has no arrow up, and every folder stands in it."""
    floors = {room: floor for floor, rooms in enumerate(FLOORS[package]) for room in rooms}
    inner = {name: name.split(".")[1] for name in MODULES if name.startswith(f"{package}.")}
    inner = {name: room for name, room in inner.items() if room != "__main__"}
    inner = {name: "api" if room in FACES else room for name, room in inner.items()}
    assert set(inner.values()) == floors.keys()
    top = {path.stem for path in (ROOT / package).glob("*.py")}
    top |= {path.parent.name for path in (ROOT / package).glob("*/*")}
    assert len([room for room in top if not room.startswith("__")]) <= MOST_ROOMS[package]
    wrong = [
        f"{name} imports {item}"
        for name, room in inner.items()
        for item in own_imports(name)
        if inner.get(item, room) != room and floors[inner[item]] >= floors[room]
    ]
    assert wrong == []


def test_no_two_files_import_each_other() -> None:
    """No pair of modules imports each other, be it at the top or inside a function."""
    graph = {name: own_imports(name) for name in MODULES}
    # A package's __init__ gathers names from its parts; a part that imports a sibling touches the package only.
    pairs = sorted(
        f"{name} <-> {item}"
        for name, items in graph.items()
        for item in items
        if name < item and name in graph[item]
    )
    assert pairs == []


def test_imports_run_in_no_circle() -> None:
    """Not through three or more files either."""
    graph = {name: own_imports(name) for name in MODULES}
    while leaves := [name for name, items in graph.items() if not items & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert sorted(graph) == []


def test_phase_two_names_no_teacher_code() -> None:
    """Nothing in distill imports a teacher, extraction or open_clip, by the text."""
    forbidden = ("featstore.extraction.teachers", "featstore.extraction.shards", "open_clip")
    wrong = [
        f"{name} imports {item}"
        for name, path in MODULES.items()
        if name.split(".")[0] == "distill"
        for item in imports(name, path)
        if item.startswith(forbidden)
    ]
    assert wrong == []


def loaded_after(code: str) -> set[str]:
    """Names in sys.modules of a fresh process that has run some code; warnings there are errors for us only."""
    code += "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def test_featstore_is_light() -> None:
    """``import featstore``, its command and the parsing of recipes and flags need numpy, zarr and pydantic only.

    So that a wrong flag fails at once, and that a team that wants rows of numbers needs no torch.
    """
    loaded = loaded_after(
        "import featstore, featstore.cli.main, featstore.extraction.config, distill.config, featstore.cli.recipe\n"
        "assert featstore.FeatureStore and featstore.read_manifest\n"
        "import featstore.maintenance.verify, featstore.cli.inspect, featstore.cli.plan, featstore.planning.doctor\n"
        "from pipelines import extract, distill\n"
        "from featstore.extraction.config import ExtractConfig\n"
        "assert featstore.cli.recipe.parse(ExtractConfig, default_recipe=extract.DEFAULT_RECIPE, argv=[]).workers"
    )
    heavy = {"torch", "webdataset", "timm", "open_clip", "PIL", "sklearn", "accelerate", "datasets"}
    assert loaded & heavy == set()
    assert "numpy" in loaded


@pytest.mark.slow
def test_phase_two_loads_no_teacher() -> None:
    """With the whole of distill imported, neither the teachers nor open_clip are in memory."""
    names = [name for name in MODULES if name.split(".")[0] == "distill"]
    assert len(names) > 10
    loaded = loaded_after("\n".join(f"import {name}" for name in names))
    assert "torch" in loaded
    assert (
        loaded & {"featstore.extraction.teachers", "featstore.extraction.shards", "open_clip"}
        == set()
    )


def test_a_class_has_a_name_of_its_own() -> None:
    """No two public classes share a name, but the settings of a teacher in each package."""
    places: dict[str, list[str]] = {}
    for name, path in MODULES.items():
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(name)
    shared = {name: found for name, found in places.items() if len(found) > 1}
    assert shared.keys() <= {"TeacherConfig"}, shared
