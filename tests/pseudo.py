"""A small record of pseudo-samples, a small classifier in a Python file, and a store of both."""

from pathlib import Path
from typing import Any

import numpy as np

import featstore
from featstore.format.pseudo_samples import PseudoSamples

CLASSES = ("cat", "dog")

CLASSIFIER = """
import torch
from torch import nn

class Net(nn.Module):
    preprocessing = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}

    def __init__(self, norm, names):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.last = nn.Conv2d(3, 4, 3, stride=2), nn.Linear(4, 2)
        self.norm = nn.BatchNorm2d(4) if norm else nn.Identity()

    def forward(self, x):
        return {"logits": self.last(self.norm(self.conv(x)).relu().mean((2, 3)))}

def make(norm=True, class_names=()):
    return Net(norm, class_names)
"""


def record(*, rank: int = 2, seed: int = 0, kind: Any = "covariance") -> PseudoSamples:
    """Two classes of grey pictures of 6 x 5 pixels."""
    rng = np.random.default_rng(seed)
    mean = rng.uniform(80, 160, size=(2, 30)).astype(np.float32)
    deviation = rng.uniform(1, 10, size=(2, 30)).astype(np.float32)
    factor = rng.normal(scale=8, size=(2, rank, 30)).astype(np.float32)
    return PseudoSamples(kind, (6, 5), 1, CLASSES, (60, 70), mean, deviation, factor)


def write_record(folder: Path, **settings: Any) -> Path:
    """Write the record into a folder."""
    path = folder / "record.safetensors"
    path.write_bytes(record(**settings).to_bytes())
    return path


def extract(folder: Path, name: str = "store", **settings: Any) -> featstore.FeatureStore:
    """The logits of the classifier for 12 pseudo-samples of each class."""
    path = folder / "record.safetensors"
    if not path.exists():
        write_record(folder)
    (folder / "net.py").write_text(CLASSIFIER)
    teacher = {"library": "python", "name": f"{folder / 'net.py'}:make", "precision": "fp32"}
    teacher["model_args"] = {"class_names": list(CLASSES)}  # type: ignore[assignment]
    given: dict[str, Any] = {"batch_size": 8, **settings}
    return featstore.extract(
        path,
        source={
            "samples": 12,
            **given.pop("source", {}),
        },
        teacher={**teacher, **given.pop("teacher", {})},
        out=folder / name,
        fields=["logits"],
        dtype=given.pop("dtype", "float32"),
        store={"shard_s": 0, **given.pop("store", {})},
        workers=0,
        progress=False,
        **given,
    )
