"""The comparison of stored, replayed and fresh views: its live teacher sees what the student sees, no crop twice."""

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml

from benchmarks import views
from benchmarks._live import FreshPicker, LiveInTraining, fresh_rule, live_data, same_teacher
from distill.config import DataConfig
from distill.data import joined
from distill.data.schedule import EpochPlan, JointSampler, Stream
from featstore import FeatureStore
from featstore.cli.recipe import parse
from featstore.errors import ConfigError
from featstore.extraction.config import ExtractConfig
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from pipelines import extract
from tests.conftest import TINY_ARGS


@pytest.fixture(scope="module")
def recipe(
    images: Path, teacher_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[ExtractConfig, Path]:
    """A store of the whole view and two crops, and the recipe that made it."""
    folder = tmp_path_factory.mktemp("views")
    values = {
        "source": {"kind": "folder", "path": str(images)},
        "teacher": {
            "name": "vit_tiny_patch16_224",
            "weights": str(teacher_file),
            "image_size": 32,
            "model_args": TINY_ARGS,
            "precision": "fp32",
        },
        "views": {"seeded": 2},
        "store": {"path": str(folder / "store"), "fields": ["cls"], "dtype": "float32"},
        "workers": 0,
    }
    path = folder / "extract.yaml"
    path.write_text(yaml.safe_dump(values))
    config = parse(ExtractConfig, default_recipe=path, argv=[])
    extract.run(config)
    return config, path


def arguments(recipe: tuple[ExtractConfig, Path], out: Path) -> list[str]:
    """Two steps of one method with one seed."""
    config, path = recipe
    phase_two = path.with_name("distill.yaml")
    values = {
        "store": config.store.path,
        "source": {"kind": "folder", "path": config.source.path},
        "data": {"labels_per_class": 4, "unlabelled": ["train/*"]},
        "student": {"name": "test_convnext", "image_size": 32},
        "train": {
            "epochs": 1,
            "warmup_epochs": 0,
            "labelled_batch": 8,
            "unlabelled_batch": 12,
            "workers": 0,
        },
        "trackers": [],
    }
    phase_two.write_text(yaml.safe_dump(values))
    flags = [f"--recipe={phase_two}", f"--extract={path}", f"--out={out}", "--train.lr=1e-3"]
    return [*flags, "--methods=[customkd]", "--seeds=[0]", "--eval.knn_k=3", "--counts", "2"]


@pytest.mark.slow
def test_the_table(
    recipe: tuple[ExtractConfig, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Live on the same views gives the losses of the store; costs lie where they arise; a second start runs nothing."""
    argv = arguments(recipe, tmp_path)
    assert views.main(argv) == 0
    found = json.loads((tmp_path / "views.json").read_text())
    rows = {row["features"]: row for row in found["rows"]}
    assert list(rows) == ["canonical", "stored-2", "live-same-2", "live-fresh"]
    assert [item["difference"] <= item["tolerance"] for item in found["same"]] == [True]
    assert found["same"][0]["tolerance"] == 1e-4
    # 48 images; two steps of 8 + 12, and three passes of stage 1 over 12.
    assert [row["teacher_images_once"] for row in rows.values()] == [48, 96, 0, 0]
    assert [row["teacher_images_per_run"] for row in rows.values()] == [0, 0, 76, 76]
    assert [row["bytes_per_image"] for row in rows.values()] == [64, 128, 0, 0]
    assert rows["live-fresh"]["teacher_s_per_run"] > 0
    contracts = {
        name: json.loads((tmp_path / name / "customkd" / "seed0" / "run.json").read_text())
        for name in rows
    }
    told = [run["contract"]["store_fingerprint"] for run in contracts.values()]
    assert told[0] == told[1]
    assert told[2:] == [
        f"live teacher on {name} views, {told[0]}" for name in ("the stored", "fresh")
    ]
    table = (tmp_path / "views.csv").read_text()

    capsys.readouterr()
    assert views.main(argv) == 0
    assert capsys.readouterr().out.count("finished before") == 4
    assert (tmp_path / "views.csv").read_text() == table

    assert views.main([*argv, "--rows", "live-fresh", "canonical"]) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    kept = json.loads((tmp_path / "views.json").read_text())
    assert [row["features"] for row in kept["rows"]] == ["canonical", "live-fresh"]
    assert kept["same"] == []


def test_fresh_views_never_come_back(recipe: tuple[ExtractConfig, Path]) -> None:
    """Pass n shows crop n of an image, in the region of that number, and the teacher sees the same one."""
    config = recipe[0]
    store = FeatureStore.open(config.store.path)
    source = open_source(SourceConfig(kind="folder", path=config.source.path))
    settings = DataConfig(labels_per_class=4, unlabelled=["train/*"], seeded=2)
    data = joined.join_data(source, store, settings, "cls")
    teacher = same_teacher(config.teacher, store, ["cls"], torch.device("cpu"))
    live = live_data(
        data,
        [teacher],
        kind=views.FreshData,
        features=LiveInTraining,
        rule=fresh_rule(data.rule, 5),
    )
    part = live.split(0)
    picker = live.picker(0)
    assert isinstance(picker, FreshPicker)
    assert picker.columns == [0, 1, 2]
    sampler = JointSampler(
        labelled=Stream(part.labelled, seed=0, name="labelled"),
        unlabelled=Stream(part.unlabelled, seed=0, name="unlabelled"),
        picker=picker,
        plan=EpochPlan(labelled=10, unlabelled=8, pieces=1, steps_per_epoch=3),
        rank=0,
        processes=1,
        start=0,
        stop=6,
    )
    shown = [request for batch in sampler for request in batch]
    assert max(Counter((item.sample, item.column) for item in shown).values()) == 1
    numbers = sorted({live.rule.views.views[item.column].number for item in shown})
    assert numbers == [0, 1, 2, 3, 4]
    pixels = live.features.live[0].pictures.__getitems__(shown).pixels
    assert len({picture.numpy().tobytes() for picture in pixels}) == len(shown)
    # The stored crops are the fresh ones of the same numbers, and the teacher says the same of them, and of no others.
    old = torch.tensor([item[:2] for item in shown if item.column in (1, 2)])
    indices, columns = old.unbind(1)
    stored, others = (
        data.features.take(indices.numpy(), asked.numpy()) for asked in (columns, 3 - columns)
    )
    seen = live.features.take(indices.numpy(), columns.numpy())
    assert (seen - stored).abs().max() < 1e-5
    assert (seen - others).abs().amax(1).min() > 1e-3


def test_what_does_not_fit(recipe: tuple[ExtractConfig, Path]) -> None:
    """Another teacher than the store's, and more crops than it holds, are refused; fewer are taken."""
    config = recipe[0]
    store = FeatureStore.open(config.store.path)
    other = dataclasses.replace(config.teacher, crop_pct=0.5)
    with pytest.raises(ConfigError, match=r"crop_pct=0\.5"):
        same_teacher(other, store, ["cls"], torch.device("cpu"))
    held = store.manifest.views
    with pytest.raises(ConfigError, match=r"\b2\b"):
        views.make_rows(held, [4])
    names = [row.name for row in views.make_rows(held, views.COUNTS)]
    assert names == ["canonical", "stored-1", "stored-2", "live-same-2", "live-fresh"]
    with pytest.raises(ConfigError, match="live-freh: there are canonical, "):
        views.chosen_rows(views.make_rows(held, views.COUNTS), ["live-freh"])
    with pytest.raises(ConfigError, match="without live-fresh"):
        views.chosen_rows(views.make_rows(held, views.COUNTS), ["canonical"])
