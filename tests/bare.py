"""Commands of ``featstore`` as an environment runs them that has only what ``pip install featstore-distill`` brings.

    python -m tests.bare '[["pull", "s3://bucket/store", "store"], ["verify", "store"]]' [EXTRA...]

To make such an environment takes minutes; here everything that neither the core nor the named extras of pyproject.toml
ask for, themselves or through others, cannot be imported. Ends with the first exit status that is not 0.
"""

import importlib.metadata
import json
import re
import sys
import tomllib
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from importlib.metadata import Distribution, DistributionFinder
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from packaging.requirements import Requirement

ANY = DistributionFinder.Context()

ROOT = Path(__file__).resolve().parents[1]


def closure(extras: Sequence[str]) -> set[str]:
    """Names of the distributions that an installation with these extras has."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"]]
    for extra in extras:
        wanted += project["optional-dependencies"][extra]
    left = [Requirement(text) for text in wanted]
    done: set[tuple[str, str]] = set()
    while left:
        wish = left.pop()
        name = plain(wish.name)
        if name == plain(project["name"]):
            left += [
                Requirement(text)
                for extra in wish.extras
                for text in project["optional-dependencies"][extra]
            ]
            continue
        for extra in ("", *wish.extras):
            if (name, extra) in done:
                continue
            done.add((name, extra))
            try:
                asked = importlib.metadata.requires(name) or []
            except importlib.metadata.PackageNotFoundError:
                asked = []
            for text in asked:
                further = Requirement(text)
                if further.marker is None or further.marker.evaluate({"extra": extra}):
                    left.append(further)
    return {name for name, _ in done}


def plain(name: str) -> str:
    """A distribution's name as indexes compare it."""
    return re.sub(r"[-_.]+", "-", name).lower()


class Only(DistributionFinder):
    """Another finder, but only for some distributions and for what belongs to none."""

    def __init__(self, finder: Any, there: set[str], left_out: set[str]) -> None:
        self._finder = finder
        self._there = there
        self._left_out = left_out

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """See ``MetaPathFinder``."""
        if fullname.partition(".")[0] in self._left_out:
            return None
        found: ModuleSpec | None = self._finder.find_spec(fullname, path, target)
        return found

    def find_distributions(self, context: Any = ANY) -> Iterator[Distribution]:
        """See ``DistributionFinder``."""
        find = getattr(self._finder, "find_distributions", lambda context: ())
        return (found for found in find(context) if plain(found.name) in self._there)


def run(commands: Sequence[Sequence[str]], extras: Sequence[str]) -> int:
    """Run commands one after another, until one fails."""
    there = {*closure(extras), "featstore-distill"}
    owners = importlib.metadata.packages_distributions()
    left_out = {module for module, names in owners.items() if there.isdisjoint(map(plain, names))}
    sys.meta_path[:] = [Only(finder, there, left_out) for finder in sys.meta_path]
    for name in list(sys.modules):  # what this file itself needed
        if name.partition(".")[0] in left_out:
            del sys.modules[name]
    absent = [name for name in ("torch", "timm", "accelerate", "scipy") if find_spec(name) is None]
    assert len(absent) == 4, absent
    from featstore.cli.main import main

    for command in commands:
        print(f"$ featstore {' '.join(command)}", flush=True)
        if status := main(command):
            return status
    return 0


if __name__ == "__main__":
    sys.exit(run(json.loads(sys.argv[1]), sys.argv[2:]))
