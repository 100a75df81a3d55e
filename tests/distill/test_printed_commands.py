"""The commands that a run prints as next, run exactly as printed, in folders whose names have spaces."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.conftest import ROOT
from tests.distill.stores import draw_images, write_store


def shell(command: str, folder: Path) -> str:
    """Standard output of a command line in a folder."""
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=500,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def printed(output: str) -> list[str]:
    """Commands after ``next:``."""
    lines = [line.strip() for line in output.splitlines() if line.strip().startswith("next:")]
    return [line.removeprefix("next:").strip() for line in lines]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("task", "score"), [("none", "same 10 nearest neighbours"), ("classify", "top-1")]
)
def test_printed_commands_run(tmp_path: Path, task: str, score: str) -> None:
    """Train in one folder with relative paths, then run what is printed from another one."""
    home, elsewhere = tmp_path / "my photos", tmp_path / "some where"
    elsewhere.mkdir()
    images = draw_images(home / "all of them", per_class=12, test_per_class=4)
    source = open_source(SourceConfig(kind="folder", path=str(images)))
    write_store(home / "the store", source)
    recipe = home / "recipe.yaml"
    recipe.write_text(
        "student: {name: test_convnext, image_size: 32}\n"
        "train: {epochs: 1, warmup_epochs: 0, labelled_batch: 8, unlabelled_batch: 8, workers: 0}\n"
        "methods: [fitnet]\nseeds: [0]\ntrackers: []\n"
    )
    out = shell(
        f"{sys.executable} {ROOT / 'pipelines' / 'distill.py'} --config recipe.yaml --store 'the store' "
        f"--source.kind folder --source.path 'all of them' --out 'my runs' --task {task}",
        home,
    )
    assert score in out
    commands = printed(out)
    assert commands
    for command in commands:
        again = shell(command, elsewhere)
        assert "images measured" in again
    assert list((home / "my runs").rglob("reevaluation.json"))
