"""A task of a user's own file: the one of docs/tasks.md trains, resumes, is measured again and reported."""

import csv
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import distill
from distill import register
from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run
from distill.config import DataConfig
from distill.methods import METHODS
from distill.register import config_of
from distill.tasks import TASKS
from featstore.errors import ConfigError
from tests.distill.conftest import MakeConfig
from tests.distill.resume import check_resume

DOCS = Path(__file__).resolve().parents[3] / "docs" / "tasks.md"


@pytest.fixture
def plugin(tmp_path: Path) -> Any:
    """The file of docs/tasks.md; afterwards its task is gone."""
    text = re.search(r"```python\n(# quality\.py.*?)```", DOCS.read_text(), re.DOTALL)
    assert text is not None
    path = tmp_path / "quality.py"
    path.write_text(text[1])
    assert len(text[1].splitlines()) <= 60
    register.load_plugins([str(path)])
    yield path
    TASKS.pop("quality")
    sys.modules.pop("distill_plugin_quality")


@pytest.fixture
def make_quality(make_config: MakeConfig, plugin: Path, images: Path, tmp_path: Path) -> Any:
    """Settings of a run that learns the row of the bright patch; every fourth image has no score."""
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    with (tmp_path / "scores.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("id", "score"))
        scored = [name for number, name in enumerate(names) if number % 4]
        writer.writerows((name, 0.1 if "/top/" in name else 0.8) for name in scored)

    def make(**changes: Any) -> Any:
        base = make_config(
            data=DataConfig(unlabelled=["train/*"]),
            task="quality",
            plugins=[str(plugin)],
            methods=["fitnet"],
        )
        values = base.plain()
        for name in [name for name in values if name in METHODS]:
            del values[name]
        values["quality"] = {"table": str(tmp_path / "scores.csv"), "weight": 10.0}
        for key, value in changes.items():
            section, _, name = key.partition("__")
            values[section] = {**values[section], name: value} if name else value
        return config_of(values)

    return make


def test_a_task_from_a_file(make_quality: Any, capsys: Any) -> None:
    """Its score, a lower one being better, is in tables, record and page; a method that imitates features works too."""
    config = make_quality(report=True, methods=["labels", "fitnet"], train__epochs=3)
    records = run(config)
    assert [record["score"]["name"] for record in records] == ["mae", "mae"]  # type: ignore[index]
    assert records[0]["num_labelled"] == 27
    assert records[1]["num_unlabelled"] == 9
    assert records[0]["num_test"] == 9
    folder = Path(config.out) / "fitnet" / "seed0"
    assert "mean error" in (folder / "report.html").read_text()
    assert yaml.safe_load((folder / "config.yaml").read_text())["quality"]["weight"] == 10
    described = json.loads((folder / "config.json").read_text())
    assert (described["task"], described["num_classes"]) == ("quality", 1)
    kept = json.loads((folder / "evaluation.json").read_text())
    assert evaluate(EvaluateConfig(model=str(folder), workers=0))["mae"] == pytest.approx(
        kept["mae"]
    )
    assert "mean error" in capsys.readouterr().out
    assert run(config)[0]["skipped"]


@pytest.mark.slow
def test_it_resumes_to_the_bit(make_quality: Any) -> None:
    """Stopped in an epoch, keeping the best, which is the lowest."""
    changes = {"train__epochs": 4, "train__checkpoint_every": 2, "train__keep_best": True}
    straight = make_quality(**changes)
    (record,) = run(straight)

    files = ("student.safetensors", "evaluation.json", "metrics.jsonl")
    check_resume(straight, "fitnet", after=9, files=files)
    lines = map(
        json.loads, (Path(straight.out) / "fitnet/seed0/metrics.jsonl").read_text().splitlines()
    )
    scores = [line["test_mae"] for line in lines if "test_mae" in line]
    assert record["score"]["value"] == min(scores)  # type: ignore[index]


def test_what_does_not_fit_is_refused(make_quality: Any, tmp_path: Path) -> None:
    """Methods with classes, partners, a table of other images, other options than the run began with, taken names."""
    for changes in ({"methods": ["labels", "kd"]}, {"partner": "fixmatch"}):
        with pytest.raises(ConfigError, match=r"--task quality.*(KD|fixmatch)"):
            run(make_quality(**changes))
    other = tmp_path / "other.csv"
    other.write_text("id,score\nnowhere.png,1\n")
    with pytest.raises(ConfigError, match=r"nowhere\.png"):
        run(make_quality(quality__table=str(other)))
    run(make_quality(train__epochs=1))
    with pytest.raises(ConfigError, match=r"--quality\.weight.*10\.0.*3\.0"):
        run(make_quality(train__epochs=1, quality__weight=3.0))
    for name, task in (("kd", TASKS["quality"]), ("a b", TASKS["none"]), ("seeds", TASKS["none"])):
        with pytest.raises(ConfigError, match=name):
            distill.register_task(name, task)
