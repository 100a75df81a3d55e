"""Noise with classes, a diffusion model of random weights that samples from it, and stores of its pictures."""

from pathlib import Path
from typing import Any

import featstore
from featstore.format.pseudo_samples import PseudoSamples
from tests.conftest import ROOT

SIZE, CLASSES = 8, ("cat", "dog", "fox")
TEACHER = ROOT / "pipelines" / "recipes" / "msd" / "teacher.py"
MODEL: dict[str, Any] = {"classes": 3, "size": SIZE, "width": 4, "steps": 3}


def record() -> PseudoSamples:
    """Noise of 8 x 8 pixels for three classes."""
    return PseudoSamples.noise(SIZE, CLASSES)


def extract(folder: Path, name: str = "store", **source: Any) -> Path:
    """A store of 8 pictures of each class by a sampler of random weights."""
    import torch

    path = folder / "noise.safetensors"
    path.write_bytes(record().to_bytes())
    torch.manual_seed(0)
    teacher = {"library": "python", "name": f"{TEACHER}:sampler", "model_args": MODEL}
    return featstore.extract(
        path,
        source={"samples": 8, **source},
        teacher={**teacher, "precision": "fp32"},
        out=folder / name,
        fields=["sample"],
        store={"shard_s": 0},
        batch_size=8,
        workers=0,
        progress=False,
    ).path
