"""Task none in several processes, and after kill -9: the rules of every other task."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from distill.commands.train import run
from distill.config import DataConfig, DistillConfig, StudentConfig
from distill.evaluation.embedding import HEAD
from tests.conftest import ROOT, RunTwo
from tests.distill.conftest import MakeConfig
from tests.distill.resume import elsewhere
from tests.distill.student.test_factory import small

pytestmark = pytest.mark.slow

KILLED = """
import os, signal, sys
sys.path.insert(0, sys.argv[2])
from pathlib import Path
from distill import register
from distill.commands import train
from distill.config import DistillConfig
from distill.training import loop
from featstore.cli.recipe import parse
config = parse(DistillConfig, default_recipe=Path(sys.argv[1]), argv=[], extend=register.kinds)
kill = lambda step: os.kill(os.getpid(), signal.SIGKILL) if step == 7 else None
run = loop.run
loop.run = lambda *given, **named: run(*given, **{**named, "on_step": kill})
train.run(config)
"""


def backbone(make_config: MakeConfig, **changes: Any) -> DistillConfig:
    """A run without labels; written to a recipe, a setting counts as said also where it is the default."""
    return make_config(task="none", data=DataConfig(test=[]), methods=["fitnet"], **changes)


def folder(config: DistillConfig) -> Path:
    return Path(config.out) / "fitnet" / "seed0"


def write_recipe(path: Path, config: DistillConfig) -> Path:
    path.write_text(yaml.safe_dump(config.plain()))
    return path


@pytest.mark.parametrize(
    "student",
    [
        StudentConfig(name="test_convnext", image_size=32),
        small("Still"),  # with layers that get no gradient
    ],
    ids=lambda student: student.title,
)
def test_two_processes_give_the_losses_of_one(
    make_config: MakeConfig, tmp_path: Path, run_two: RunTwo, student: StudentConfig
) -> None:
    """Every logged number agrees up to rounding, and so do the measures; without batch norm."""
    config = backbone(make_config, student=student)
    run(config)
    two = dataclasses.replace(config, out=config.out + "-two")
    recipe = write_recipe(tmp_path / "r.yaml", two)
    done = run_two(["pipelines/distill.py", "--config", str(recipe)])
    assert done.returncode == 0, done.stderr
    ones, twos = (
        [json.loads(line) for line in (folder(item) / "metrics.jsonl").read_text().splitlines()]
        for item in (config, two)
    )
    assert len(ones) == len(twos) > 4
    for a, b in zip(ones, twos, strict=True):
        numbers = {key: value for key, value in a.items() if not isinstance(value, str)}
        assert {key: b[key] for key in numbers} == pytest.approx(numbers, rel=1e-3, abs=1e-5)
    records = [json.loads((folder(item) / "run.json").read_text()) for item in (config, two)]
    assert records[1]["num_processes"] == 2
    assert records[1]["score"]["value"] == pytest.approx(records[0]["score"]["value"], abs=0.02)


def test_kill_9_then_the_same_command(make_config: MakeConfig, tmp_path: Path) -> None:
    """SIGKILL in the middle of an epoch; started again, every file has the bytes of an uninterrupted run."""
    student = StudentConfig(name="test_efficientnet", image_size=32)
    straight = backbone(
        make_config,
        student=student,
        train__checkpoint_every=3,
        train__epochs=3,
        train__keep_best=True,
    )
    killed = elsewhere(straight)
    run(straight)
    recipe = write_recipe(tmp_path / "recipe.yaml", killed)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(recipe), str(ROOT)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not (folder(killed) / "student.safetensors").exists()
    run(killed)
    for name in ("student.safetensors", HEAD, "evaluation.json", "metrics.jsonl"):
        assert (folder(straight) / name).read_bytes() == (folder(killed) / name).read_bytes(), name
