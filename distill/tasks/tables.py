"""Read tables of numbers by image: the coordinates of a task. CSV, Parquet, or npy with a list of ids beside it."""

# N rows of a table, n samples, K points

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError, shorten
from featstore.files.numpy_files import read_npy
from featstore.format.ids import read_ids
from featstore.sources.label_file import match_names, read_columns

Floats = npt.NDArray[np.float64]


def read_points(path: Path, setting: str) -> tuple[list[str], Floats, list[str]]:
    """Read named points of images.

    Args:
        path: CSV or Parquet with the columns id, x0, y0, x1, y1, ... (or NAME_x, NAME_y); or an .npy of (N, K, 2) whose
            ids, one per line, stand in the .txt of the same name.
        setting: For messages, e.g. ``--keypoints.points``.

    Returns:
        N names of images, (N, K, 2) coordinates with NaN where one is missing, and K names of points.

    Raises:
        ConfigError: The file cannot be read, its columns are no pairs, or a cell is no number.
    """
    where = f"{setting} {path.absolute()}"
    if path.suffix == ".npy":
        return _read_npy(path, where)
    head, columns = read_columns(path, setting)
    names = [name.strip() for name in head]
    points = _pairs(names[1:], where)
    table = np.empty((len(columns[0]), len(names) - 1))
    for place, column in enumerate(columns[1:]):
        table[:, place] = [_number(cell, names[place + 1], where) for cell in column]
    return [str(name).strip() for name in columns[0]], table.reshape(len(table), -1, 2), points


def _read_npy(path: Path, where: str) -> tuple[list[str], Floats, list[str]]:
    beside = path.with_suffix(".txt")
    try:
        points = read_npy(path)
        ids = read_ids(beside)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{where}: cannot be read ({error}).") from None
    if points.ndim != 3 or points.shape[2] != 2 or len(points) != len(ids):
        raise ConfigError(
            f"{where}: has shape {points.shape}, and {beside.name} {len(ids)} ids; expected (ids, points, 2)."
        )
    return ids, points.astype(np.float64), [str(number) for number in range(points.shape[1])]


def _pairs(names: Sequence[str], where: str) -> list[str]:
    """Names of the points of columns x0, y0, ... or NAME_x, NAME_y."""
    found = []
    for x, y in zip(names[::2], [*names[1::2], ""], strict=False):
        plain = [_point(name, axis) for name, axis in ((x, "x"), (y, "y"))]
        if plain[0] is None or plain[0] != plain[1]:
            raise ConfigError(
                f"{where}: the columns {x}, {y or '(none)'} are no pair; expected id, x0, y0, x1, y1, ... or id, "
                "NAME_x, NAME_y, ..."
            )
        found.append(plain[0])
    if not found or len(set(found)) != len(found):
        raise ConfigError(
            f"{where}: expected pairs of columns with different names, found {names}."
        )
    return found


def _point(name: str, axis: str) -> str | None:
    if name.lower().startswith(axis) and name[1:].isdecimal():
        return name[1:]
    return name[:-2] if name.lower().endswith(f"_{axis}") and len(name) > 2 else None


def _number(cell: Any, column: str, where: str) -> float:
    text = "" if cell is None else str(cell).strip()
    try:
        return float(text) if text else np.nan
    except ValueError:
        raise ConfigError(f"{where}: column {column} holds {text!r}, which is no number.") from None


def by_sample(
    names: Sequence[str], rows: Floats, sample_ids: Sequence[str], setting: str
) -> Floats:
    """Rows of a table in the order of the samples; NaN for samples that it does not name.

    Args:
        names: N of images: ids, or the last part of an id where that is unique.
        rows: (N, ...).
        sample_ids: n.

    Returns:
        (n, ...).
    """
    index = {name: number for number, name in enumerate(names)}
    if len(index) < len(names):
        twice = sorted({name for number, name in enumerate(names) if index[name] != number})
        raise ConfigError(f"{setting}: {len(twice)} images stand there twice: {shorten(twice)}.")
    found = match_names(sample_ids, index)
    if not found:
        raise ConfigError(
            f"{setting}: names none of the {len(sample_ids):,} images, which are called {shorten(sample_ids, 3)}; it "
            f"has {shorten(names, 3)}."
        )
    out = np.full((len(sample_ids), *rows.shape[1:]), np.nan)
    for sample, name in found.items():
        out[sample] = rows[index[name]]
    return out
