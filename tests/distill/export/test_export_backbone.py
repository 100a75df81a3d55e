"""Exports of backbones and of modules from a factory: two outputs, int8 by the score of the task, card, own keys."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from distill.commands.train import run
from distill.config import DataConfig, StudentConfig
from distill.evaluation.embedding import HEAD, EmbeddingHead
from distill.export import onnx_model
from distill.export.config import CalibrationConfig, ExportConfig, LatencyConfig
from distill.export.edge import export_run
from featstore.errors import ConfigError
from tests.distill.conftest import MakeConfig
from tests.distill.student import test_factory as factories

pytestmark = pytest.mark.slow


def settings(folder: Path, **changes: Any) -> ExportConfig:
    """An export without latency, with few images."""
    base = ExportConfig(
        model=str(folder),
        calibration=CalibrationConfig(images=16, held_out=8, method="minmax"),
        latency=LatencyConfig(rounds=0),
        workers=0,
    )
    return dataclasses.replace(base, **changes)


@pytest.mark.parametrize(
    "student",
    [
        StudentConfig(name="test_efficientnet", image_size=32),
        factories.small("Plain"),
        factories.small("Two", features="pooled", map="maps"),
    ],
    ids=lambda student: student.title,
)
def test_a_backbone_is_exported(make_config: MakeConfig, student: StudentConfig) -> None:
    """Features and embedding of every file are those of the run; int8 has its score before and after."""
    config = make_config(
        student=student, task="none", data=DataConfig(), methods=["fitnet"], train__epochs=1
    )
    run(config)
    folder = Path(config.out) / "fitnet" / "seed0"
    found = export_run(settings(folder, formats=["safetensors", "onnx", "int8", "program"]))
    out = folder / "export"
    assert (found["task"], found["measure"]["name"]) == ("none", "neighbour_agreement")
    for name, values in found["formats"].items():
        assert 0 <= values["score"] <= 1
        if name != "int8":
            assert values["parity"]["relative_error"] < 1e-3
    int8 = found["formats"]["int8"]
    lost = 100 * (found["pytorch"]["score"] - int8["score"])
    assert int8["lost_points"] == pytest.approx(lost)
    fed = torch.randn(3, 3, 32, 32)
    session = onnx_model.session(out / onnx_model.NAME)
    assert tuple(item.name for item in session.get_outputs()) == onnx_model.BACKBONE
    features, embedding = session.run(None, {"image": fed.numpy()})
    head = EmbeddingHead.from_bytes((out / HEAD).read_bytes())
    np.testing.assert_allclose(embedding, head(torch.from_numpy(features)), atol=1e-4)
    weights = load_file(out / "model.safetensors")
    if student.factory:
        module = {"Plain": factories.Plain, "Two": factories.Two}[student.title]()
        module.load_state_dict(weights)
    else:
        model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
        np.testing.assert_allclose(features, model(fed).detach(), atol=1e-4)
    card = (out / "README.md").read_text()
    assert f"features of {features.shape[1]} channels" in card
    assert "features, embedding = session.run" in card
    assert ("load_file" in card) == bool(student.factory)
    with pytest.raises(ConfigError, match="--browser"):
        export_run(settings(folder, browser=True))


def test_without_its_store_a_backbone_is_not_exported(make_config: MakeConfig) -> None:
    """Nothing could be measured; the message says which setting names it."""
    config = make_config(task="none", data=DataConfig(), methods=["fitnet"], train__epochs=1)
    run(config)
    Path(config.store).rename(Path(config.out) / "elsewhere")
    try:
        with pytest.raises(ConfigError, match="--store"):
            export_run(settings(Path(config.out) / "fitnet" / "seed0"))
    finally:
        (Path(config.out) / "elsewhere").rename(config.store)


def test_a_classifier_with_a_layer_of_its_own(make_config: MakeConfig) -> None:
    """Its layer has a file beside the module's weights; fine-tuning for int8 starts from both."""
    config = make_config(student=factories.small("Plain", features="pool"), methods=["kd"])
    run(config)
    folder = Path(config.out) / "kd" / "seed0"
    found = export_run(settings(folder, formats=["safetensors", "onnx", "int8"], qat="always"))
    assert found["formats"]["safetensors"]["parity"]["top1_agreement"] == 1
    assert found["formats"]["onnx"]["parity"]["max_abs_difference"] < 1e-3
    assert "float_top1" in found["formats"]["int8"]["fine_tuned"]
    factories.Plain().load_state_dict(load_file(folder / "export" / "model.safetensors"))
    assert (folder / "export" / "output_layer.safetensors").is_file()
