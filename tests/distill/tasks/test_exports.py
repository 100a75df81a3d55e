"""Runs of every task go to the edge: each file answers as the student, and is measured by the task's own number."""

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch

import distill
from distill.commands.export import run as export
from distill.commands.train import run
from distill.config import DataConfig
from distill.export.config import CalibrationConfig, ExportConfig, LatencyConfig
from distill.tasks.keypoints import KeypointsConfig
from distill.tasks.segment import SegmentConfig
from featstore.errors import ConfigError
from featstore.sources.config import SourceConfig
from tests.distill.conftest import MakeConfig
from tests.distill.tasks.test_keypoints import write_points
from tests.distill.tasks.test_multilabel import write_labels
from tests.distill.tasks.test_segment import write_masks


def settings(task: str, images: Path, folder: Path) -> dict[str, Any]:
    """Changes of a config for a task on the images of draw_images."""
    if task == "keypoints":
        points = str(write_points(images, folder / "points.csv"))
        return {"options": {"keypoints": KeypointsConfig(points=points)}}
    if task == "segment":
        masks = str(write_masks(images, folder / "masks"))
        return {"options": {"segment": SegmentConfig(masks=masks, classes=["back", "patch"])}}
    labels = str(write_labels(images, folder / "labels.csv", skip=" "))
    return {"source": SourceConfig(kind="folder", path=str(images), labels=labels)}


@pytest.mark.slow
@pytest.mark.parametrize("task", ["keypoints", "multilabel", "segment"])
def test_every_task_is_exported(
    make_config: MakeConfig, images: Path, tmp_path: Path, task: str, capsys: Any
) -> None:
    """safetensors and ONNX agree with PyTorch; int8 has the score before and after; the card shows the number."""
    config = make_config(
        task=task,
        data=DataConfig(),
        methods=["labels"],
        student__name="test_efficientnet",
        train__epochs=1,
        **settings(task, images, tmp_path),
    )
    run(config)
    folder = Path(config.out) / "labels" / "seed0"
    wanted = ExportConfig(
        model=str(folder),
        formats=["safetensors", "onnx", "int8"],
        calibration=CalibrationConfig(images=12, held_out=8, method="minmax"),
        latency=LatencyConfig(rounds=1, batches=[1], threads=[1]),
        workers=0,
    )
    found: Any = export(wanted)
    measure = found["measure"]["name"]
    kept = json.loads((folder / "evaluation.json").read_text())
    assert found["pytorch"]["score"] == pytest.approx(kept[measure], rel=1e-4)
    for name in ("safetensors", "onnx"):
        values = found["formats"][name]
        assert values["score"] == pytest.approx(kept[measure], rel=1e-3)
        assert values["parity"]["max_abs_difference"] < 1e-3
    int8 = found["formats"]["int8"]
    assert int8["lost_points"] == pytest.approx(
        100 * (kept[measure] - int8["score"]) * (-1 if task == "keypoints" else 1), abs=0.05
    )
    session = onnxruntime.InferenceSession(str(folder / "export" / "model.onnx"))
    shape = session.run(None, {"image": torch.zeros(2, 3, 32, 32).numpy()})[0].shape
    assert shape == tuple(distill.load_student(folder)(torch.zeros(2, 3, 32, 32)).shape)
    rule = json.loads((folder / "export" / "preprocessing.json").read_text())
    assert rule["output"]["shape"][1:] == list(shape[1:])
    card = (folder / "export" / "README.md").read_text()
    assert found["measure"]["label"] in card
    assert task in card
    assert found["measure"]["label"] in capsys.readouterr().out
    with pytest.raises(ConfigError, match=task):
        export(ExportConfig(model=str(folder), browser=True, workers=0))
