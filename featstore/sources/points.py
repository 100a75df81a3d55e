"""Read point clouds, and bring them to the input of an encoder: .npy, KITTI's .bin, .ply. Both phases use this.

- ``.npy``: (N, C) numbers, C >= 3.
- ``.bin``: float32, little-endian; N x 4 (x, y, z, intensity) as KITTI writes it; N x 5 as nuScenes does, in files that
  end in ``.pcd.bin``.
- ``.ply``: ascii or binary little-endian; the element ``vertex`` comes first and has the properties x, y and z.
"""

# N points of a cloud, C numbers per point (x, y, z, ...), P most points of an input

import io

import numpy as np
from numpy.lib import format as npy

from featstore.errors import DecodeError
from featstore.files.array_types import Array
from featstore.format.manifest_records import PointRecord

POINT_SUFFIXES = frozenset((".npy", ".bin", ".ply"))
PLY_TYPES = {
    "char": "i1", "uchar": "u1", "short": "<i2", "ushort": "<u2", "int": "<i4", "uint": "<u4", "float": "<f4",
    "double": "<f8", "int8": "i1", "uint8": "u1", "int16": "<i2", "uint16": "<u2", "int32": "<i4", "uint32": "<u4",
    "float32": "<f4", "float64": "<f8",
}  # fmt: skip
BIN_COLUMNS, NUSCENES_COLUMNS = 4, 5


def decode_points(data: bytes, name: str) -> Array:
    """Decode one file.

    Args:
        name: of the file; its ending decides the format.

    Returns:
        (N, C) float32, N >= 1, C >= 3, all finite.
    """
    lower = name.lower()
    if not data:
        raise DecodeError("empty file (0 bytes)")
    try:
        if lower.endswith(".npy"):
            points = _npy(data)
        elif lower.endswith(".ply"):
            points = _ply(data)
        else:
            points = _bin(data, NUSCENES_COLUMNS if lower.endswith(".pcd.bin") else BIN_COLUMNS)
    except DecodeError:
        raise
    except Exception as error:  # a parser met hostile bytes: any failure means the same
        raise DecodeError(f"cannot be decoded: {type(error).__name__}: {error}") from error
    if not len(points):
        raise DecodeError("a cloud with no points")
    with np.errstate(over="ignore"):  # too large for float32: infinite, refused below
        points = points.astype(np.float32)
    bad = np.flatnonzero(~np.isfinite(points).all(axis=1))
    if len(bad):
        raise DecodeError(
            f"{len(bad)} of {len(points)} points are NaN or infinite; the first is number {bad[0]}: "
            f"{points[bad[0]].tolist()}"
        )
    return points


def prepare_points(points: Array, record: PointRecord) -> Array:
    """Bring a cloud to an encoder's input; the order of its points does not matter.

    Returns:
        (P, C) float32: x, y and z within -1..1, sorted; NaN behind the last point.
    """
    if points.shape[1] < record.columns:
        raise DecodeError(
            f"{points.shape[1]} numbers per point; the encoder takes {record.columns}"
        )
    points = points[:, : record.columns].astype(np.float64)
    if record.bounds:
        low, high = np.array(record.bounds[:3]), np.array(record.bounds[3:])
        points = points[((points[:, :3] >= low) & (points[:, :3] < high)).all(axis=1)]
        if not len(points):
            raise DecodeError(f"no point within the bounds {record.bounds}")
        middle, half = (low + high) / 2, (high - low) / 2
    else:
        low, high = points[:, :3].min(axis=0), points[:, :3].max(axis=0)
        middle, half = (low + high) / 2, max((high - low).max() / 2, np.finfo(np.float32).tiny)
    points[:, :3] = np.clip((points[:, :3] - middle) / half, -1, 1)
    points = points[np.lexsort(points.T[::-1])]
    if len(points) > record.most_points:
        points = points[np.linspace(0, len(points) - 1, record.most_points).round().astype(int)]
    out = np.full((record.most_points, record.columns), np.nan, np.float32)
    out[: len(points)] = points
    return out


def _npy(data: bytes) -> Array:
    file = io.BytesIO(data)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    shape, fortran, dtype = read[npy.read_magic(file)](file)
    if len(shape) != 2 or shape[1] < 3 or dtype.kind not in "fiu":
        raise DecodeError(
            f"array of shape {shape} and type {dtype}; expected numbers of shape (N, 3) or wider"
        )
    _check_size(len(data) - file.tell(), shape[0], shape[1] * dtype.itemsize)
    flat = np.frombuffer(data, dtype, shape[0] * shape[1], file.tell())
    return flat.reshape(shape, order="F" if fortran else "C")


def _bin(data: bytes, columns: int) -> Array:
    if len(data) % (4 * columns):
        raise DecodeError(
            f"truncated: {len(data)} bytes are no multiple of {4 * columns} ({columns} float32 per point)"
        )
    return np.frombuffer(data, "<f4").reshape(-1, columns)


def _ply(data: bytes) -> Array:
    head, end, body = data.partition(b"end_header\n")
    lines = [line.split() for line in head.decode("ascii").replace("\r", "").split("\n")]
    lines = [line for line in lines if line and line[0] not in ("comment", "obj_info")]
    if not end or lines[0] != ["ply"] or lines[1][:1] != ["format"]:
        raise DecodeError("no PLY header (ply, format, ..., end_header)")
    kind = lines[1][1]
    if kind not in ("ascii", "binary_little_endian") or lines[2][:2] != ["element", "vertex"]:
        raise DecodeError(
            f"PLY of format {kind} that begins with {' '.join(lines[2][:2])}; expected ascii or binary_little_endian, "
            "and element vertex first"
        )
    count = int(lines[2][2])
    following = (number for number, line in enumerate(lines[3:], 3) if line[0] != "property")
    properties = [(line[2], PLY_TYPES[line[1]]) for line in lines[3 : next(following, None)]]
    names = [name for name, _ in properties]
    if not {"x", "y", "z"} <= set(names):
        raise DecodeError(f"PLY vertices with {' '.join(names)}; expected x, y and z")
    order = ["x", "y", "z", *(name for name in names if name not in ("x", "y", "z"))]
    if kind == "ascii":
        rows = [line.split() for line in body.split(b"\n", count)[:count]]
        if len(rows) < count or any(len(row) < len(names) for row in rows):
            raise DecodeError(f"truncated: fewer than {count} vertices of {len(names)} numbers")
        table = np.array([row[: len(names)] for row in rows], np.float64).reshape(count, len(names))
        return table[:, [names.index(name) for name in order]]
    dtype = np.dtype(properties)
    _check_size(len(body), count, dtype.itemsize)
    vertices = np.frombuffer(body, dtype, count)
    return np.stack([vertices[name].astype(np.float64) for name in order], axis=1)


def _check_size(found: int, count: int, each: int) -> None:
    if not 0 <= count * each <= found:
        raise DecodeError(
            f"truncated: {found} bytes behind the header, {count} points need {count * each}"
        )
