"""What is installed from the wheel is whole: both phases run without a checkout, from an empty folder."""

import os
import shutil
import site
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

SOURCES = ("featstore", "distill", "pyproject.toml", "README.md", "LICENSE")


def run(*command: object, cwd: Path) -> str:
    """Run a program that knows nothing of this checkout; returns its output."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=1800,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the sources, so that nothing is left in the checkout."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
            shutil.copytree(ROOT / name, copy / name, ignore=ignored)
        else:
            shutil.copy(ROOT / name, copy / name)
    options = ["--no-deps", "--no-build-isolation", "--no-index", "--quiet"]
    run(sys.executable, "-m", "pip", "wheel", ".", *options, "--wheel-dir", "wheels", cwd=copy)
    (found,) = (copy / "wheels").glob("*.whl")
    return found


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Programs of a new environment that holds the wheel, and sees the dependencies of this one."""
    folder = tmp_path_factory.mktemp("environment") / "venv"
    run(sys.executable, "-m", "venv", "--without-pip", folder, cwd=wheel.parent)
    (packages,) = folder.glob("lib/python*/site-packages")
    options = ["--no-deps", "--no-index", "--quiet", "--disable-pip-version-check"]
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--python", python, "install", *options, wheel]
    run(*command, cwd=wheel.parent)
    # A plain path does not bring the .pth files there, so an editable install of the checkout stays out.
    (packages / "dependencies.pth").write_text("\n".join(site.getsitepackages()))
    return folder / "bin"


@pytest.mark.slow
def test_files_of_the_wheel(wheel: Path) -> None:
    """It has every module, the recipes with the small teacher, templates, types, and nothing else."""
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in ("featstore", "distill")
        for path in (ROOT / package).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    assert names == expected
    assert "featstore/extraction/recipes/digits/teacher.safetensors" in names


@pytest.mark.slow
def test_both_phases_from_the_wheel(programs: Path, tmp_path: Path) -> None:
    """``featstore extract`` and ``distill`` with the recipes of the package; messages name commands that exist."""
    folder = tmp_path / "an empty folder"
    folder.mkdir()
    where = run(
        programs / "python",
        "-c",
        "import featstore, distill; print(featstore.__file__, distill.__file__)",
        cwd=folder,
    )
    assert str(ROOT) not in where

    said = run(
        programs / "featstore", "extract", "--views.seeded", "1", "--workers", "0", cwd=folder
    )
    assert "next: distill run" in said
    assert "pipelines/" not in said
    few = ["--methods", "[labels]", "--seeds", "[0]", "--train.epochs", "2"]
    said = run(programs / "distill", "run", *few, cwd=folder)
    assert "pipelines/" not in said
    assert (folder / "outputs/digits/distill/labels/seed0/student.safetensors").is_file()
    assert {path.name for path in folder.iterdir()} == {"outputs"}

    launch = [programs / "python", "-m", "accelerate.commands.launch", "--cpu", "-m"]
    dry = ["--dry_run", "--store.path", "elsewhere"]
    assert "dry run" in run(*launch, "featstore", "extract", *dry, cwd=folder)
    assert "sound" in run(
        programs / "python", "-m", "featstore", "verify", "outputs/digits/store", cwd=folder
    )
