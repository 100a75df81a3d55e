"""Write partial scans of meshes as point clouds: OUT/train/CLASS/NUMBER.npy and OUT/test/..., the class is the mesh.

    python scripts/mesh_views.py pointclouds.npz OUT [--train 150] [--test 100] [--points 96]

The archive has the arrays NAME_v (vertices) and NAME_f (triangles) of each mesh, z up. Every scan is one mesh,
stretched along its axes by 0.75 to 1.33, turned about z, seen from one side (a depth buffer hides what lies behind),
thinned to a few points with noise. Scans of train and test are of the same meshes, in other poses.
"""

import argparse
from pathlib import Path

import numpy as np

from featstore.files.array_types import Array

DENSE = 6000  # points on a mesh before the depth buffer
CELLS = 40  # side of the depth buffer
SLACK = (
    0.12  # a point this far behind the nearest of its cell is hidden, in units of the mesh's size
)
NOISE = 0.02


def scan(vertices: Array, faces: Array, count: int, rng: np.random.Generator) -> Array:
    """One partial scan: (count, 3) float32."""
    corners = vertices[faces].astype(np.float64)
    area = np.linalg.norm(
        np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1
    )
    chosen = corners[rng.choice(len(faces), DENSE, p=area / area.sum())]
    u, v = np.sort(rng.random((2, DENSE, 1)), axis=0)
    points = u * chosen[:, 0] + (v - u) * chosen[:, 1] + (1 - v) * chosen[:, 2]
    points = (points - points.mean(axis=0)) / (points.max(axis=0) - points.min(axis=0)).max()
    points = points * rng.uniform(0.75, 1.33, 3) @ turned(rng.uniform(0, 2 * np.pi))
    height = rng.uniform(0.2, 1.0)  # of the sensor, radians above the horizon
    towards = np.array([np.cos(height), 0, np.sin(height)])
    across = np.stack([points[:, 1], points @ np.array([-np.sin(height), 0, np.cos(height)])], 1)
    cell = np.clip(((across + 1) / 2 * CELLS).astype(int), 0, CELLS - 1) @ np.array([CELLS, 1])
    depth = points @ towards
    nearest = np.full(CELLS * CELLS, -np.inf)
    np.maximum.at(nearest, cell, depth)
    seen = points[depth >= nearest[cell] - SLACK]
    seen = seen[rng.choice(len(seen), count, replace=len(seen) < count)]
    return (seen + rng.normal(0, NOISE, seen.shape)).astype(np.float32)


def turned(angle: float) -> Array:
    """Rotation about z."""
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]])


def main() -> None:
    """See the top of this file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("npz", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=150, help="scans per mesh")
    parser.add_argument("--test", type=int, default=100, help="scans per mesh")
    parser.add_argument("--points", type=int, default=96, help="points of a scan")
    chosen = parser.parse_args()
    with np.load(chosen.npz, allow_pickle=False) as archive:
        names = sorted(name[:-2] for name in archive.files if name.endswith("_v"))
        meshes = {name: (archive[f"{name}_v"], archive[f"{name}_f"]) for name in names}
    for part, count in (("train", chosen.train), ("test", chosen.test)):
        for place, name in enumerate(names):
            folder = chosen.out / part / name
            folder.mkdir(parents=True, exist_ok=True)
            for number in range(count):
                rng = np.random.default_rng([part == "test", place, number])
                np.save(folder / f"{number:04d}.npy", scan(*meshes[name], chosen.points, rng))


if __name__ == "__main__":
    main()
