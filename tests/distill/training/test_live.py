"""Cached equals live: training from a store gives the losses of training with the teacher beside it.

The live side is in ``benchmarks``, not in ``distill``, which never imports a teacher.
"""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

from benchmarks._live import (
    TOLERANCE,
    TOLERATED_STEPS,
    LiveData,
    largest_difference,
    live_data,
    logged_losses,
)
from distill.config import DistillConfig
from distill.config import TeacherConfig as FurtherTeacher
from distill.data import joined
from distill.training import loop as train
from featstore import FeatureStore
from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig, ViewsConfig
from featstore.extraction.teachers import Teacher, build_teacher
from featstore.sources import open_source
from featstore.sources.config import SourceConfig
from pipelines import extract
from tests.conftest import TINY_ARGS
from tests.distill.conftest import MakeConfig

FIELDS = ["cls", "grid2"]

MakeStore = Callable[..., Path]
MakeTeacher = Callable[[int], Teacher]
Losses = dict[str, list[float]]


def teacher_config(width: int, weights: Path) -> TeacherConfig:
    return TeacherConfig(
        name="vit_tiny_patch16_224",
        weights=str(weights),
        image_size=32,
        model_args={**TINY_ARGS, "embed_dim": width},
        precision="fp32",
    )


@pytest.fixture(scope="module")
def weights_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """Random weights of a tiny ViT of some width, made large, so that its features depend on the picture."""
    folder = tmp_path_factory.mktemp("teachers")

    @cache
    def make(width: int) -> Path:
        with torch.random.fork_rng():
            torch.manual_seed(width)
            args: dict[str, Any] = {**TINY_ARGS, "embed_dim": width}
            model = timm.create_model("vit_tiny_patch16_224", img_size=32, **args)
        for name, values in model.named_parameters():
            if "patch_embed" in name or "attn" in name:
                values.data *= 20 if "patch_embed" in name else 20**0.5
        path = folder / f"{width}.safetensors"
        save_file(model.state_dict(), path)
        return path

    return make


@pytest.fixture(scope="module")
def make_teacher(weights_of: Callable[[int], Path]) -> MakeTeacher:
    """The teacher of some width, giving float32 whatever a store keeps of it."""

    @cache
    def make(width: int) -> Teacher:
        config = teacher_config(width, weights_of(width))
        cpu = torch.device("cpu")
        return build_teacher(config, fields=FIELDS, dtype="float32", precision="fp32", device=cpu)

    return make


@pytest.fixture(scope="module")
def make_store(
    images: Path, weights_of: Callable[[int], Path], tmp_path_factory: pytest.TempPathFactory
) -> MakeStore:
    """Extract with the teacher of some width, as ``pipelines/extract.py`` does, in some dtype."""
    folder = tmp_path_factory.mktemp("stores")

    @cache
    def make(dtype: Any, width: int = 16) -> Path:
        path = folder / f"{dtype}-{width}"
        extract.run(
            ExtractConfig(
                source=SourceConfig(kind="folder", path=str(images)),
                teacher=teacher_config(width, weights_of(width)),
                views=ViewsConfig(seeded=2),
                store=StoreConfig(path=str(path), fields=FIELDS, dtype=dtype),
                batch_size=7,
                workers=0,
            )
        )
        return path

    return make


def losses(config: DistillConfig, method: str, live: Sequence[Teacher] = ()) -> Losses:
    """Every logged loss term of a run, in order; with teachers, nothing is read from a store but its manifest."""
    data = joined.join_data(
        open_source(config.source),
        FeatureStore.open(config.store),
        config.data,
        config.field,
        weight=config.teacher_weight,
        teachers=config.teachers,
    )
    if live:
        data = live_data(data, live, kind=LiveData)
    probe = data.fit_probe(data.split(0), most=1000, seed=0)
    train.run(config, data, probe, method=method, seed=0)
    return logged_losses(Path(config.out) / method / "seed0")


def compare(cached: Losses, live: Losses, tolerance: float) -> None:
    """Term by term, step by step."""
    assert cached.keys() == live.keys()
    assert len(cached["loss/ce"]) == TOLERATED_STEPS
    assert largest_difference(cached, live) <= tolerance


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "terms", "dtypes"),
    [
        ("customkd", {"general", "specific", "logits"}, ["float32", "float16", "bfloat16", "int8"]),
        ("fitnet_grid", {"grid"}, ["float32", "int8"]),
        ("fitnet", {"general"}, ["float16"]),
        ("kd", {"logits"}, ["float32"]),
    ],
)
def test_stored_features_train_like_the_live_teacher(
    make_store: MakeStore,
    make_teacher: MakeTeacher,
    make_config: MakeConfig,
    tmp_path: Path,
    method: str,
    terms: set[str],
    dtypes: list[str],
) -> None:
    """The same views and the same seed give the same losses within the tolerance of the stored dtype."""
    config = make_config(
        customkd__w_logits=1.0, customkd__norm="standardize", store=str(make_store("float32"))
    )
    live_config = dataclasses.replace(config, out=str(tmp_path / "live"))
    live = losses(live_config, method, [make_teacher(16)])
    assert {f"loss/{name}" for name in terms} <= live.keys()
    for dtype in dtypes:
        store, out = str(make_store(dtype)), str(tmp_path / dtype)
        cached = losses(dataclasses.replace(config, store=store, out=out), method)
        compare(cached, live, TOLERANCE[dtype])


@pytest.mark.slow
def test_two_stores_train_like_two_live_teachers(
    make_store: MakeStore, make_teacher: MakeTeacher, make_config: MakeConfig, tmp_path: Path
) -> None:
    """Teachers of two widths and two dtypes, weighted; the coarser dtype decides the tolerance."""
    config = make_config(
        store=str(make_store("float16")),
        teacher_weight=2.0,
        teachers=[FurtherTeacher(store=str(make_store("int8", 24)), weight=0.5)],
        customkd__w_logits=1.0,
        customkd__norm="standardize",
    )
    cached = losses(config, "customkd")
    live_config = dataclasses.replace(config, out=str(tmp_path / "live"))
    live = losses(live_config, "customkd", [make_teacher(16), make_teacher(24)])
    compare(cached, live, TOLERANCE["int8"])
