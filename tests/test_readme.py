"""README.md shows what is there: the tree of the folders, links, and commands that exist."""

import re

import pytest

from featstore.cli.main import COMMANDS
from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
MOST_LINES = 40


def tree() -> dict[str, set[str]]:
    """Names in the tree of README.md, by folder of the top."""
    block = re.search(r"^## The tree\n\n```\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
    assert block is not None
    lines = block[1].splitlines()
    assert len(lines) <= MOST_LINES
    found: dict[str, set[str]] = {}
    folder = ""
    for line in lines:
        names = re.split(r" {2,}", line.strip())[0].split()
        if line.startswith(" "):
            found[folder] |= set(names)
        else:
            folder = names[0].rstrip("/")
            found[folder] = set()
    return found


def test_the_tree_names_what_is_there() -> None:
    """Every name in the tree exists."""
    missing = [
        f"{folder}/{name}"
        for folder, names in tree().items()
        for name in ["", *names]
        if not (ROOT / folder / name).exists()
    ]
    assert missing == []


def test_the_tree_names_all_folders() -> None:
    """Every folder of the two packages, and every folder of the repository, is in the tree."""
    found = tree()
    for package in ("featstore", "distill"):
        folders = {path.parent.name for path in (ROOT / package).glob("*/*")} - {"__pycache__"}
        assert folders <= {name.rstrip("/") for name in found[package]}
    tracked = {path.parent.name for path in ROOT.glob("[a-z]*/*.*")} - {"outputs", "site", "build"}
    assert {name for name in tracked if not name.endswith(".egg-info")} <= found.keys()


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_and_paths_exist(page: object) -> None:
    """Relative links of the guides, and files of the repository that they name, exist."""
    path = ROOT / str(page)
    text = path.read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    missing = [
        link for link in links if link and "://" not in link and not (path.parent / link).exists()
    ]
    folders = "featstore|distill|pipelines|docs|tests|benchmarks|scripts"
    named = re.findall(rf"\b((?:{folders})/[\w/.-]+\.(?:py|md|yaml|json|ipynb))\b", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_commands_exist(page: object) -> None:
    """Every ``featstore NAME`` in a guide is a command."""
    text = (ROOT / str(page)).read_text(encoding="utf-8")
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL) + re.findall(r"`([^`\n]+)`", text)
    used = {name for block in blocks for name in re.findall(r"^featstore ([a-z-]+)", block, re.M)}
    assert used <= COMMANDS.keys()
