"""The example that starts a detector from a distilled backbone."""

import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from safetensors.torch import load_file

from distill.commands.train import run
from distill.config import DataConfig, StudentConfig
from tests.conftest import ROOT
from tests.distill.conftest import MakeConfig


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ssdlite", "fasterrcnn"])
def test_a_detector_starts_from_a_distilled_backbone(make_config: MakeConfig, kind: str) -> None:
    """Its backbone gives the student's map to the bit, and the loss of a few steps is finite."""
    args = {"reduced_tail": kind == "ssdlite"}
    student = StudentConfig(
        factory="torchvision.models:mobilenet_v3_large",
        model_args=args,
        image_size=32,
        mean=[0.5] * 3,
        std=[0.5] * 3,
    )
    config = make_config(
        student=student, task="none", data=DataConfig(), methods=["fitnet"], train__epochs=1
    )
    run(config)
    folder = Path(config.out) / "fitnet" / "seed0"
    example: Any = runpy.run_path(str(ROOT / "docs" / "examples" / "detection.py"))
    detector = example["start"](kind, str(folder), 2).eval()
    backbone = torchvision.models.mobilenet_v3_large(**args)
    backbone.load_state_dict(load_file(folder / "student.safetensors"))
    images = torch.rand(1, 3, 320, 320)
    with torch.no_grad():
        expected = backbone.eval().features(images)
        if kind == "ssdlite":
            found = detector.backbone.features(images)
        else:
            found = [*detector.backbone.body(images).values()][-1]
    assert torch.equal(found, expected)
    losses = example["main"](str(folder), kind, 2)
    assert len(losses) == 2
    assert all(0 < loss < 1e3 for loss in losses)
