"""README.md shows what is there: the tree of the folders, links, and commands that exist."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.commands.config import EvaluateConfig, ReportConfig
from distill.config import RECIPES, DistillConfig
from distill.experiments import cli as experiments
from distill.export.config import ExportConfig
from distill.preferences.config import PreferConfig
from distill.register import kinds, schema
from distill.search.config import SearchConfig
from distill.students import cli as students
from featstore.cli.main import COMMANDS, _parser
from featstore.cli.recipe import parse
from featstore.extraction.config import DEFAULT_RECIPE, ExtractConfig
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
    used = {
        name for block in blocks for name in re.findall(r"^featstore ([a-z][a-z-]*)", block, re.M)
    }
    assert used <= COMMANDS.keys()


def command_lines(text: str) -> Iterator[list[str]]:
    """Every command of the packages in the blocks of a page: name of the command or script, then its arguments."""
    for block in re.findall(r"```bash\n(.*?)```", text, re.DOTALL):
        for line in re.sub(r"\\\n\s*", "", block).replace("&&", "\n").splitlines():
            words = [word for word in shlex.split(line, comments=True) if word != "..."]
            script = next(
                (n for n, word in enumerate(words) if word.startswith("pipelines/")), None
            )
            if script is not None and words[0] in ("accelerate", "python"):
                yield [Path(words[script]).stem, *words[script + 1 :]]
            elif words[:1] == ["featstore"]:
                yield words[1:] if words[1] == "extract" else words
            elif words[:1] == ["distill"]:
                yield ["distill" if words[1] == "run" else words[1], *words[2:]]


def check_command(name: str, words: list[str]) -> None:
    """Parse a command line without running it; files that only the reader has are left out."""
    for flag in ("--config", "--plugins"):
        if flag in words and not (ROOT / words[words.index(flag) + 1]).is_file():
            del words[words.index(flag) : words.index(flag) + 2]
    if name == "featstore":
        _parser(asked=words[0]).parse_args(words)
    elif name in ("experiments", "students"):
        command = experiments if name == "experiments" else students
        if "--config" not in words and name == "experiments":
            words = ["--config", "experiment.yaml", *words]
        assert command.parse(words)["flags"].keys() <= schema().leaves.keys()
    elif name == "extract":
        parse(ExtractConfig, default_recipe=DEFAULT_RECIPE, argv=words)
    elif name == "distill":
        parse(DistillConfig, default_recipe=RECIPES / "distill.yaml", argv=words, extend=kinds)
    else:
        kinds_of = {
            "evaluate": EvaluateConfig, "export": ExportConfig, "report": ReportConfig, "search": SearchConfig,
            "prefer": PreferConfig,
        }  # fmt: skip
        kind = kinds_of[name]
        recipe = None if name == "prefer" else RECIPES / f"{name}.yaml"
        parse(kind, default_recipe=recipe, argv=words)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_command_lines_parse(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every command line in a block has settings and values that its parser takes."""
    monkeypatch.chdir(ROOT)
    for name, *words in command_lines(page.read_text(encoding="utf-8")):
        if "--plugins" not in words:  # the reader's own method is not there
            try:
                check_command(name, list(words))
            except (Exception, SystemExit) as error:
                pytest.fail(f"{page.name}: {name} {shlex.join(words)}: {error}")


def test_a_wrong_setting_in_a_page_is_found() -> None:
    """The check above fails on a flag that does not exist, of either kind of command."""
    for line in ("featstore push STORE URL --nonsense", "distill run --train.epoch 3"):
        ((name, *words),) = command_lines(f"```bash\n{line}\n```")
        with pytest.raises((Exception, SystemExit)):
            check_command(name, words)
