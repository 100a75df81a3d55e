"""``--methods '[auto]'``: what is tried on which images, within which budget, what is chosen, and resuming."""

import csv
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import distill
from distill import cli
from distill.commands.train import run
from distill.config import AutoConfig, DataConfig, DistillConfig
from distill.data import joined
from distill.evaluation import predictions
from distill.experiments import auto
from distill.experiments.candidates import WITH_LABELS, WITHOUT_LABELS, AutoMethod
from distill.methods import METHODS
from distill.training import loop
from distill.training.optim import TrainingDiverged
from featstore import FeatureStore
from featstore.cli.recipe import parse
from featstore.errors import ConfigError
from featstore.extraction.config import ExtractConfig
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from pipelines import extract
from tests.conftest import RunTwo
from tests.distill.conftest import MakeConfig
from tests.distill.resume import Stop
from tests.distill.stores import draw_images, write_store
from tests.distill.test_entry import ROOT, write_recipe


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three candidates, of which one goes on."""
    chosen = [item for item in WITH_LABELS if item.name in ("labels", "kd-10", "fitnet-10")]
    monkeypatch.setattr(auto, "WITH_LABELS", tuple(chosen))
    monkeypatch.setattr(auto, "SHORTEST", 1)


@pytest.fixture
def asked(make_config: MakeConfig, few: None) -> DistillConfig:
    return make_config(methods=["auto"], auto=AutoConfig(budget="36"), seeds=[0, 1])


def table(config: DistillConfig) -> list[dict[str, str]]:
    with (Path(config.out) / "auto.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_the_best_on_held_out_training_images_is_trained_with_all_seeds(
    asked: DistillConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """No try sees a test image or one more label; the choice is printed, and stored in table and record."""
    records = run(asked)
    out = Path(asked.out)
    said = capsys.readouterr().out
    rows = table(asked)
    assert [row["round"] for row in rows] == ["1", "1", "1", "2"]
    (chosen,) = [row for row in rows if row["chosen"] == "yes"]
    best = max(rows[:3], key=lambda row: float(row["top1"]))
    assert chosen["candidate"] == best["candidate"]
    assert f"auto chose {chosen['candidate']}" in said
    assert {(record["method"], record["seed"]) for record in records} == {
        (chosen["candidate"].split("-")[0], seed) for seed in (0, 1)
    }
    for record in records:
        assert record["auto"]["chosen"] == chosen["candidate"]  # type: ignore[index]
        assert record["auto"]["why"] in record["notes"]  # type: ignore[index,operator]
        assert record["contract"]["data"]["validation_share"] == 0  # type: ignore[index]
    tries = [json.loads(path.read_text()) for path in out.glob("auto/round*/*/*/seed*/run.json")]
    assert sum(item["steps"] for item in tries) <= 36
    for path in out.glob("auto/round*/*/*/seed*"):
        measured = predictions.read_predictions(path)
        assert measured is not None
        assert all(name.startswith("train/") for name in measured.ids)
    assert {item["num_labelled"] + item["num_test"] for item in tries} == {12}  # 4 per class
    assert not list(out.glob("auto/**/report.html"))


@pytest.mark.slow
def test_a_finished_choice_is_not_made_again(
    asked: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second start trains nothing, even where the folders of the tries are gone."""
    first = run(asked)

    def none(*_: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(loop.Loop, "train", none)
    for path in Path(asked.out).glob("auto/round*/*/*/seed*/*"):
        path.unlink()
    again = run(asked)
    assert [item["contract_sha256"] for item in again] == [
        item["contract_sha256"] for item in first
    ]


@pytest.mark.slow
def test_a_choice_that_was_interrupted_resumes(
    asked: DistillConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any step; tries, choice and students are those of the uninterrupted command."""
    whole = dataclasses.replace(asked, out=str(tmp_path / "whole"))
    expected = run(whole)
    step, count = loop.Loop._one_step, 0

    def stops(self: Any, *given: Any) -> float:
        nonlocal count
        count += 1
        if count % 17 == 0:
            raise Stop
        return step(self, *given)

    monkeypatch.setattr(loop.Loop, "_one_step", stops)
    stopped = 0
    while True:
        try:
            records = run(asked)
            break
        except Stop:
            stopped += 1
    assert stopped > 1
    assert table(asked) == table(whole)
    assert [item["measures"] for item in records] == [item["measures"] for item in expected]


@pytest.mark.slow
def test_a_candidate_that_cannot_be_trained_is_left_out(
    asked: DistillConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that diverges, and one whose options are refused; if none is left, that is an error."""
    bad = (
        AutoMethod("far", "fitnet"),
        AutoMethod("unfit", "ofa"),
    )
    monkeypatch.setattr(auto, "WITH_LABELS", (*bad, AutoMethod("labels", "labels")))

    def refuse(self: Any, *_: Any) -> None:
        raise ConfigError("no stages")

    def diverges(self: Any, *_: Any) -> None:
        raise TrainingDiverged("not finite")

    monkeypatch.setattr(METHODS["ofa"], "__init__", refuse)
    monkeypatch.setattr(METHODS["fitnet"], "loss", diverges)
    (record, _) = run(asked)
    assert record["method"] == "labels"
    errors = {row["candidate"]: row["error"] for row in table(asked)}
    assert "no stages" in errors["unfit"]
    assert "not finite" in errors["far"]
    assert errors["labels"] == ""
    monkeypatch.setattr(auto, "WITH_LABELS", bad[1:])
    with pytest.raises(ConfigError, match="unfit"):
        run(dataclasses.replace(asked, out=asked.out + "2"))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"data__labels_per_class": 1}, r"--data.validation_share 0.2.*3 labelled"),
        ({"auto": AutoConfig(budget="2")}, r"--auto.budget 2.*3 runs.*expected at least 10"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    asked: DistillConfig,
    make_config: MakeConfig,
    changes: Any,
    named: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One label per class, and a budget of almost no steps; before anything is trained."""
    monkeypatch.setattr(auto, "SHORTEST", 10)
    with pytest.raises(ConfigError, match=named):
        run(make_config(**{"methods": ["auto"], "train__epochs": 20, **changes}))


def test_the_held_out_images_are_a_share_also_where_the_test_part_is_one(
    tmp_path: Path,
) -> None:
    """Both parts are chosen by hashes of content: of different ones."""
    source = open_source(
        SourceConfig(
            kind="folder", path=str(draw_images(tmp_path / "i", per_class=60, test_per_class=1))
        )
    )
    store = write_store(tmp_path / "s", source)
    for share in (0.0, 0.2):
        data = DataConfig(
            labelled=["train/*"], test=["test/*"], holdout=share, validation_share=0.2
        )
        part = joined.join_data(source, store, data, "cls").split(0)
        whole = len(part.labelled) + len(part.validation)
        assert 0.1 < len(part.validation) / whole < 0.3
        assert not {*part.validation} & {*part.test, *part.labelled, *part.unlabelled}


@pytest.mark.parametrize("budget", ["0", "2 h", "h", "-3", "0m", "2d"])
def test_a_wrong_budget_is_named(budget: str) -> None:
    """With its value."""
    with pytest.raises(ConfigError, match=f"--auto.budget {budget}:"):
        AutoConfig(budget=budget)


def test_auto_stands_alone() -> None:
    """Beside another method it would be unclear what is meant."""
    with pytest.raises(ConfigError, match=r"auto.*kd"):
        DistillConfig(methods=["auto", "kd"])


def test_lengths_of_tries(make_config: MakeConfig) -> None:
    """Whole epochs as long as there are two, then shorter ones; never longer than the full run."""
    config = make_config(train__epochs=10, train__warmup_epochs=3)
    lengths = [1000, 70, 25, 9]
    found = [auto.shortened(config, steps, 10) for steps in lengths]
    assert [(item.epochs, item.epoch_steps) for item in found] == [(10, 0), (7, 0), (2, 0), (2, 4)]
    assert [item.warmup_epochs for item in found] == [3, 2, 0, 0]


@pytest.mark.slow
def test_a_backbone_and_a_budget_of_time(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without labels the held-out images are others than those of the final measurement."""
    monkeypatch.setattr(auto, "SHORTEST", 1)
    monkeypatch.setattr(auto, "WITHOUT_LABELS", WITHOUT_LABELS[:3])
    config = make_config(
        methods=["auto"], task="none", data=DataConfig(), auto=AutoConfig(budget="1h")
    )
    (record,) = run(config)
    rows = table(config)
    assert {row["candidate"] for row in rows} == {item.name for item in WITHOUT_LABELS[:3]}
    assert record["auto"]["budget"] == "1h"  # type: ignore[index]
    state = json.loads((Path(config.out) / "auto" / "auto.json").read_text())
    assert state["speed"][0] > 0
    tried = json.loads(next(Path(config.out).glob("auto/round1*/*/*/seed0/run.json")).read_text())
    assert tried["num_unlabelled"] + tried["num_test"] == record["num_unlabelled"]


@pytest.mark.slow
def test_two_processes_choose_the_same(
    asked: DistillConfig, tmp_path: Path, run_two: RunTwo
) -> None:
    """Both take the decisions of the first."""
    recipe = write_recipe(tmp_path / "auto.yaml", dataclasses.replace(asked, seeds=[0]))
    done = run_two(["-m", "distill", "run", "--config", str(recipe), "--auto.budget", "220"])
    assert done.returncode == 0, done.stderr
    assert "auto chose" in done.stdout
    assert (ROOT / asked.out / "auto.csv").is_file()


@pytest.mark.slow
def test_auto_from_python(store: FeatureStore, images: Path, tmp_path: Path, few: None) -> None:
    """By one argument; the winner's runs come back."""
    runs = distill.run(
        store,
        images,
        out=tmp_path / "out",
        student={"name": "test_convnext", "pretrained": False},
        methods=["auto"],
        seeds=0,
        progress=False,
        data={"unlabelled": "train/*"},
        train={
            "epochs": 2,
            "min_epoch_steps": 0,
            "workers": 0,
            "labelled_batch": 8,
            "unlabelled_batch": 8,
        },
        trackers=[],
        report=False,
    )
    assert runs.best.record["auto"]["chosen"].split("-")[0] == runs.best.method


@pytest.mark.slow
def test_auto_on_digits(tmp_path: Path) -> None:
    """The whole command on some of the digits, with all candidates: the chosen one knows more than chance."""
    include = ["--source.include", '["train/00*", "train/01*", "test/14[4-7]*"]']
    store = str(tmp_path / "store")
    wanted = ["--store.path", store, *include, "--workers", "0", "--views.seeded", "0"]
    extract.run(parse(ExtractConfig, default_recipe=extract.DEFAULT_RECIPE, argv=wanted))
    flags = ["--store", store, "--out", str(tmp_path / "out"), *include, "--methods", "[auto]"]
    flags += ["--data.labels_per_class", "8", "--train.epochs", "8", "--auto.budget", "220"]
    flags += ["--report", "false", "--trackers", "[]", "--student.name", "test_efficientnet"]
    assert cli.main(["run", *flags]) == 0
    with (tmp_path / "out" / "auto.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["candidate"] for row in rows if row["round"] == "1"} == {
        item.name for item in WITH_LABELS
    }
    (record,) = [
        json.loads(path.read_text()) for path in (tmp_path / "out").glob("*/seed0/run.json")
    ]
    assert record["top1"] > 0.2
    assert record["auto"]["held_out"] >= 10
