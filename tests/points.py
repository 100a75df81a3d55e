"""Point clouds of three shapes as files, and a small pillar teacher of them."""

import struct
from pathlib import Path
from typing import Any

import numpy as np

from featstore.extraction.config import ExtractConfig, StoreConfig, TeacherConfig
from featstore.extraction.run import run
from featstore.files.array_types import Array
from featstore.sources.config import SourceConfig

SHAPES = ("ball", "line", "plate")
MODEL: dict[str, Any] = {"width": 6, "depth": 1, "grid": [5, 4], "most_points": 20}
FIELDS = ["pooled", "logits", "voxel_features", "voxel_coords", "voxel_counts"]


def cloud(shape: str, number: int) -> Array:
    """(12 to 40, 3) float32."""
    rng = np.random.default_rng([SHAPES.index(shape), number])
    points = rng.normal(size=(12 + number % 29, 3))
    squeezed = {"ball": (1, 1, 1), "line": (1, 0.05, 0.05), "plate": (1, 1, 0.05)}[shape]
    return (points * squeezed).astype(np.float32)


def write_clouds(folder: Path, count: int = 8, *, first: int = 0) -> Path:
    """FOLDER/train/SHAPE/NUMBER.npy; every fourth of part test. Returns FOLDER."""
    for shape in SHAPES:
        for number in range(first, first + count):
            path = folder / ("train" if number % 4 else "test") / shape / f"{number:03d}.npy"
            path.parent.mkdir(parents=True, exist_ok=True)
            np.save(path, cloud(shape, number))
    return folder


def ply(points: Array, *, binary: bool = True) -> bytes:
    """A PLY file with a column before x, y and z, and one behind them."""
    kind = "binary_little_endian" if binary else "ascii"
    names = (("uchar", "flag"), ("float", "x"), ("float", "y"), ("double", "z"), ("int", "extra"))
    head = ["ply", f"format {kind} 1.0", "comment made here", f"element vertex {len(points)}"]
    head += [f"property {of} {name}" for of, name in names]
    head += ["element face 0", "property list uchar int vertex_indices", "end_header", ""]
    rows = [(1, *map(float, point), number) for number, point in enumerate(points)]
    body = (
        b"".join(struct.pack("<Bffdi", *row) for row in rows)
        if binary
        else "".join(" ".join(map(repr, row)) + "\n" for row in rows).encode()
    )
    return "\n".join(head).encode() + body


def extract(clouds: Path, store: Path, **settings: Any) -> Path:
    """A store of the clouds by a teacher of random weights."""
    fields = settings.pop("fields", FIELDS)
    model_args = {**MODEL, "num_classes": 3, **settings.pop("model_args", {})}
    import torch

    torch.manual_seed(0)
    run(
        ExtractConfig(
            source=SourceConfig(kind="points", path=str(clouds)),
            teacher=TeacherConfig(
                library="python",
                name="distill.student.pillars:teacher",
                model_args=model_args,
                precision="fp32",
            ),
            store=StoreConfig(path=str(store), fields=fields, shard_rows=10, shard_s=0),
            batch_size=4,
            workers=0,
            **settings,
        ),
        progress=False,
    )
    return store
