"""The teacher's own classifier: kept by phase one, taken by phase two in place of a fitted probe."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import featstore
from distill.commands.train import run
from distill.config import DataConfig
from featstore import FeatureStore
from featstore.errors import ConfigError, TeacherError
from featstore.extraction.config import TeacherConfig
from featstore.extraction.teachers import build_teacher
from featstore.format.classifier import check_classifier, classifier_of
from tests.distill.bench import Bench
from tests.distill.conftest import MakeConfig

ALL: dict[str, Any] = {
    "labels_per_class": 4,
    "labelled": ["train/*"],
    "unlabelled": ["train/*"],
    "test": ["test/*"],
}


@pytest.fixture
def taught(make_config: MakeConfig, images: Path, tmp_path: Path) -> FeatureStore:
    """A store whose teacher is a student that knows the three classes of the images."""
    config = make_config(methods=["labels"], out=str(tmp_path / "teacher"))
    run(config)
    return extracted(Path(config.out) / "labels" / "seed0", images, tmp_path / "taught")


def extracted(folder: Path, images: Path, out: Path, **changes: Any) -> FeatureStore:
    teacher = {"library": "run", "name": str(folder), "classifier": True, "precision": "fp32"}
    settings: dict[str, Any] = {
        "fields": ["pooled", "logits"],
        "dtype": "float32",
        "progress": False,
    } | changes
    return featstore.extract(images, teacher=teacher, out=out, **settings)


@pytest.mark.slow
def test_a_run_by_the_stored_classifier(
    make_config: MakeConfig, taught: FeatureStore, images: Path, tmp_path: Path
) -> None:
    """It makes the stored logits of the stored features; kd3 folds it into the head; other classes are refused."""
    weight, bias = check_classifier(
        taught.artefact("classifier"), taught.manifest.fields["pooled"].shape[0]
    )
    rows = np.flatnonzero(taught.valid)
    pooled, logits = (taught.gather(name, rows)[:, 0] for name in ("pooled", "logits"))
    np.testing.assert_allclose(pooled @ weight.T + bias, logits, rtol=1e-4, atol=1e-5)
    config = make_config(
        store=str(taught.path),
        field="pooled",
        methods=["kd3"],
        data=DataConfig(classifier="stored", **ALL),
    )
    bench = Bench(config, "kd3")
    assert torch.equal(bench.method.probe.weight.cpu(), torch.from_numpy(weight))  # type: ignore[attr-defined]
    run(config)
    named = dataclasses.replace(config.source, classes=["left", "right", "top", "more"])
    for changes, found in (
        ({"field": "logits"}, r"logits.*classifier"),
        ({"source": named}, r"3 classes.*4"),
        ({"store": make_config().store, "field": "cls"}, r"cls.*none"),
    ):
        with pytest.raises(ConfigError, match=found):
            Bench(dataclasses.replace(config, **changes), "kd3")
    merged = tmp_path / "two"
    other = extracted(
        Path(make_config().out).parent / "teacher" / "labels" / "seed0",
        images,
        tmp_path / "second",
        fields=["pooled"],
    )
    featstore.merge([taught.path, other.path], merged, kind="teachers", names=["a", "b"])
    two = dataclasses.replace(config, store=str(merged), field="a_pooled", out=config.out + "2")
    assert torch.equal(Bench(two, "kd3").method.probe.bias.cpu(), torch.from_numpy(bias))  # type: ignore[attr-defined]


def test_names_and_damaged_arrays() -> None:
    """Names follow the field's prefix; arrays of other shapes, types or with NaN are refused."""
    assert [classifier_of(name) for name in ("pooled", "a_pooled")] == [
        "classifier",
        "a_classifier",
    ]
    good = {"weight": np.zeros((3, 4), np.float32), "bias": np.zeros(3, np.float32)}
    check_classifier(good, 4)
    for bad in (
        {},
        good | {"bias": np.zeros(2, np.float32)},
        good | {"bias": np.full(3, np.nan, np.float32)},
        good | {"weight": np.zeros((3, 4), np.float64)},
        good | {"weight": np.zeros((3, 5), np.float32)},
    ):
        with pytest.raises(ConfigError):
            check_classifier(bad, 4)


@pytest.mark.parametrize(
    ("name", "fields", "found"),
    [("test_resnet", ["logits"], "pooled"), ("test_vit", ["pooled"], "none")],
)
def test_a_teacher_without_one(name: str, fields: list[str], found: str, tmp_path: Path) -> None:
    """No head, or no field that it classifies: said before anything is read."""
    import timm
    from safetensors.torch import save_file

    classes = 0 if found == "none" else 3
    model = timm.create_model(name, num_classes=classes)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    config = TeacherConfig(name=name, weights=str(tmp_path / "w.safetensors"), classifier=True)
    with pytest.raises(TeacherError, match=found):
        build_teacher(
            config, fields=fields, dtype="float32", precision="fp32", device=torch.device("cpu")
        )
