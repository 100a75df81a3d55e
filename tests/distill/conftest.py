"""One small folder of images and one store of it, shared by the tests of ``distill``."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from distill.config import (
    DataConfig,
    DistillConfig,
    EvalConfig,
    StudentConfig,
    TrainConfig,
)
from distill.methods.customkd import CustomKDConfig
from distill.methods.features import FitNetConfig
from distill.register import options_of
from featstore import FeatureStore
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from tests.distill.stores import draw_images, write_store

MakeConfig = Callable[..., DistillConfig]


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """36 training and 12 test images of three classes."""
    return draw_images(tmp_path_factory.mktemp("images"), per_class=12, test_per_class=4)


@pytest.fixture(scope="session")
def store(images: Path, tmp_path_factory: pytest.TempPathFactory) -> FeatureStore:
    """Canonical view and two seeded crops."""
    source = open_source(SourceConfig(kind="folder", path=str(images)))
    return write_store(tmp_path_factory.mktemp("store") / "s", source)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Models this small gain nothing from more, and threads that wait for a busy core take seconds per step."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _one_thread_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs keep to it, here and in processes that they start: sums of two threads have other bits."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(autouse=True)
def _every_epoch_has_a_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs of tests are over before the seconds are that usually pass between two checkpoints."""
    from distill.training import loop

    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(loop, "CHECKPOINT_SHARE", float("inf"))


@pytest.fixture
def make_config(images: Path, store: FeatureStore, tmp_path: Path) -> MakeConfig:
    """Settings of a run of a few steps; sections are changed by ``section__name=value``."""
    base = DistillConfig(
        store=str(store.path),
        out=str(tmp_path / "out"),
        source=SourceConfig(kind="folder", path=str(images)),
        data=DataConfig(
            labelled=["train/*"], labels_per_class=4, unlabelled=["train/*"], test=["test/*"]
        ),
        student=StudentConfig(name="test_convnext", image_size=32),
        methods=["customkd"],
        seeds=[0],
        # The plain form: weights of one, nothing normalised.
        options={
            "customkd": CustomKDConfig(
                w_general=1.0,
                w_specific=1.0,
                w_logits=0.0,
                norm="none",
                match_norm="none",
                stage1_batch=8,
            ),
            "fitnet": FitNetConfig(weight=1.0, norm="none"),
        },
        train=TrainConfig(
            epochs=2, warmup_epochs=0, labelled_batch=4, unlabelled_batch=8, workers=0, log_every=1
        ),
        eval=EvalConfig(knn_k=3),
        trackers=[],
        report=False,
    )

    def make(**changes: Any) -> DistillConfig:
        config = base
        for key, value in changes.items():
            section, _, name = key.partition("__")
            if name and not hasattr(config, section):
                options = dataclasses.replace(options_of(config, section), **{name: value})
                section, value = "options", {**config.options, section: options}
            elif name:
                value = dataclasses.replace(getattr(config, section), **{name: value})
            config = dataclasses.replace(config, **{section: value})
        return config

    return make
