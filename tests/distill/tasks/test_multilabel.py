"""Task multilabel: several labels per image, unknown ones, measures by hand, and a run."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from distill.commands.config import EvaluateConfig
from distill.commands.evaluate import run as evaluate
from distill.commands.train import run
from distill.config import DataConfig
from distill.tasks.multilabel import MultiLabel
from featstore.errors import ConfigError
from featstore.sources.config import SourceConfig
from tests.distill.conftest import MakeConfig


class Named(MultiLabel):
    """Two labels, without data."""

    def __init__(self) -> None:
        pass

    def label_names(self) -> list[str]:
        return ["cat", "dog"]


def test_measures_by_hand() -> None:
    """Average precision 5/6 where the positives rank first and third; unknown labels count nowhere."""
    logits = torch.tensor([[3.0, -1.0], [2.0, -1.0], [1.0, 1.0], [-1.0, 9.0]])
    targets = torch.tensor([[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [0.0, np.nan]])
    found = Named().numbers(logits, targets)
    assert found["per_label"]["cat"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["per_label"]["dog"] == 1
    assert found["map"] == pytest.approx((5 / 6 + 1) / 2)
    assert found["exact"] == 3 / 4
    assert found["micro_f1"] == pytest.approx(6 / 7)
    with pytest.raises(ConfigError, match="multilabel"):
        Named().numbers(logits, 0 * targets)


def write_labels(images: Path, path: Path, skip: str) -> Path:
    """A label for the class, and one more for all classes but one."""
    rows = ["id,labels"]
    for name in sorted(images.rglob("*.png")):
        label = name.parent.name
        if skip not in name.as_posix():
            more = "" if label == "top" else ";bottom"
            rows.append(f"{name.relative_to(images).as_posix()},{label}{more}")
    path.write_text("\n".join(rows) + "\n")
    return path


def test_a_run(make_config: MakeConfig, images: Path, tmp_path: Path) -> None:
    """The file makes it the task; images without labels train the method; other labels are refused afterwards."""
    table = write_labels(images, tmp_path / "labels.csv", skip="train/left/00")
    config = make_config(
        source=SourceConfig(kind="folder", path=str(images), labels=str(table)),
        data=DataConfig(unlabelled=["train/*"]),
        methods=["fitnet"],
        task="classify",
        report=True,
        train__epochs=2,
    )
    (record,) = run(config)
    assert record["score"]["name"] == "map"  # type: ignore[index]
    assert (record["num_labelled"], record["num_unlabelled"], record["num_test"]) == (26, 10, 12)
    folder = Path(config.out) / "fitnet" / "seed0"
    assert json.loads((folder / "config.json").read_text())["label_names"] == [
        "bottom", "left", "right", "top",
    ]  # fmt: skip
    kept = json.loads((folder / "evaluation.json").read_text())
    again = evaluate(EvaluateConfig(model=str(folder), workers=0))
    assert again["map"] == pytest.approx(kept["map"], rel=1e-6)
    other = tmp_path / "other.csv"
    other.write_text("id,labels\ntest/top/000.png,roof;sky\ntest/top/001.png,sky\n")
    source = dataclasses.replace(config.source, labels=str(other))
    with pytest.raises(ConfigError, match=r"bottom.*roof"):
        evaluate(EvaluateConfig(model=str(folder), source=source, workers=0))
    with pytest.raises(ConfigError, match=r"--task multilabel.*KD"):
        run(dataclasses.replace(config, methods=["kd"]))


def test_one_label_per_image_is_another_task(make_config: Any) -> None:
    """Asked for by name, the source has to have several."""
    with pytest.raises(ConfigError, match=r"--source\.labels"):
        run(make_config(task="multilabel", methods=["labels"]))
