"""What all runs of a command share: checked stores, joined images, one or several teachers."""

from pathlib import Path

import numpy as np
import pytest

from distill.config import TeacherConfig
from distill.data.joined import JoinedData, join_run
from distill.training import run_folder as runs
from featstore import FeatureStore
from featstore.errors import ConfigError, StoreNotFound, ViewMismatch
from featstore.sources import open_source
from tests.distill.conftest import MakeConfig
from tests.distill.stores import WIDTH, write_store


def data_of(make_config: MakeConfig, **changes: object) -> JoinedData:
    """As ``pipelines/distill.py`` prepares it."""
    config = make_config(**changes)
    return join_run(config, open_source(config.source), FeatureStore.open(config.store))


@pytest.fixture
def other(images: Path, make_config: MakeConfig, tmp_path: Path) -> FeatureStore:
    """A further teacher's store: other weights, another crop, one image that it could not use."""
    return write_store(
        tmp_path / "other",
        open_source(make_config().source),
        weights="1" * 64,
        crop_pct=0.8,
        invalid=["train/left/000.png"],
    )


def test_a_further_teacher(
    make_config: MakeConfig, store: FeatureStore, other: FeatureStore
) -> None:
    """Vectors lie side by side; a region cut otherwise is a note, an unusable image is left out of all."""
    teachers = [TeacherConfig(store=str(other.path), field="pixels", weight=0.5)]
    data = data_of(make_config, teachers=teachers, teacher_weight=2.0)
    assert data.features.width == WIDTH + 192
    assert [item.weight for item in data.features.teachers] == [2.0, 0.5]
    assert data.fingerprints == [store.fingerprint, other.fingerprint]
    assert "train/left/000.png" not in data.samples.ids
    notes = [note for note in data.samples.notes if "shown the first store's region" in note]
    assert len(notes) == 1
    assert "0.8" in notes[0]
    assert data.rule.crop_pct == 0.9
    probe = data.fit_probe(data.split(0), most=100, seed=0)
    assert probe.logits(data.features.take(np.arange(3)).numpy()).shape == (3, 3)


def test_the_contract_of_a_run_names_every_store(
    make_config: MakeConfig, other: FeatureStore
) -> None:
    """Other teachers, weights or fields make another run; of one teacher nothing is added."""
    teachers = [TeacherConfig(store=str(other.path), weight=0.5)]
    config = make_config(teachers=teachers)
    data = data_of(make_config, teachers=teachers)
    found = runs.contract(config, "customkd", 0, data.fingerprints)
    assert found["teachers"] == [
        {"field": "cls", "weight": 0.5, "store_fingerprint": other.fingerprint}
    ]
    for changes in (
        {"teachers": [TeacherConfig(store=str(other.path))]},
        {"teachers": teachers, "teacher_weight": 2.0},
        {"teachers": teachers, "grid_field": "grid2"},
    ):
        assert runs.contract(make_config(**changes), "customkd", 0, data.fingerprints) != found
    alone = runs.contract(make_config(), "customkd", 0, data_of(make_config).fingerprints)
    assert "teachers" not in alone
    assert alone == runs.contract(
        make_config(teacher_weight=3.0), "customkd", 0, data_of(make_config).fingerprints
    )


def test_a_further_store_that_does_not_fit(
    images: Path, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Not there, no such field, no vector, other crops; an unread difference is none."""
    crops = write_store(
        tmp_path / "crops", open_source(make_config().source), weights="1" * 64, view_seed=3
    )
    for teacher, error, message in (
        (TeacherConfig(store=str(tmp_path / "nowhere")), StoreNotFound, "nowhere"),
        (TeacherConfig(store=str(crops.path), field="x"), ConfigError, "--teachers: field x"),
        (TeacherConfig(store=str(crops.path), field="grid2"), ConfigError, "one vector per view"),
        (TeacherConfig(store=str(crops.path)), ViewMismatch, "different crops"),
    ):
        with pytest.raises(error, match=message):
            data_of(make_config, teachers=[teacher])
    canonical = data_of(
        make_config, teachers=[TeacherConfig(store=str(crops.path))], data__views="canonical"
    )
    assert canonical.columns == [0]


def test_a_field_that_the_store_lacks(make_config: MakeConfig) -> None:
    """A student may be evaluated beside the store of another teacher, whose fields have other names."""
    with pytest.raises(ConfigError, match=r"pooled.*cls"):
        data_of(make_config, field="pooled")


def test_grids_are_looked_for_when_they_are_needed(make_config: MakeConfig) -> None:
    """A wrong name is no concern of a method that needs no grid."""
    assert data_of(make_config).grid.field == "grid2"
    data = data_of(make_config, grid_field="grid9")
    with pytest.raises(ConfigError, match="grid9"):
        _ = data.grid
