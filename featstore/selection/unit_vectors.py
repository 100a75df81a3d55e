"""Features of a store as unit vectors after subtraction of the mean feature, block by block.

The mean is the same for all images; without it, one threshold of the cosine suits every field of a teacher.
"""

# n rows, D numbers of a row

import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Rows
from featstore.format.manifest_records import FieldRecord
from featstore.reading.store import FeatureStore

Floats = npt.NDArray[np.float32]

BLOCK_ROWS = 4096  # rows of a block; a product of two blocks is 64 MB
BLOCK_BYTES = 2**26  # most bytes of a block of features; wide fields get fewer rows
CENTRE_ROWS = 4096  # rows, evenly spread, that the mean feature is measured on
ROUNDING = 1e-6  # cosine of equal features may be lower than 1 by this much


class UnitVectors:
    """Read rows of one field as vectors of length 1, after subtraction of the mean feature.

    Args:
        store: May be incomplete.
        field: A field of floating point vectors or grids; of a grid, places are compared with the same places.
        valid: Rows that the mean is measured on.
        centre: (D,) feature to take off instead of the mean, e.g. that of another store.

    Attributes:
        views: Column of the canonical view; None where the field has no views.
        width: D.
        block_rows: Rows to read at a time.
        centre: What is taken off.

    Raises:
        ConfigError: The store has no such field, or it cannot be compared.
        ViewMismatch: The store has no canonical view; seeded crops differ even between copies of a file.
    """

    def __init__(
        self, store: FeatureStore, field: str, valid: Rows, *, centre: Floats | None = None
    ) -> None:
        spec = comparable_field(store, field)
        self.store, self.field = store, field
        self.views: list[int] | None = None
        if spec.per_view:
            self.views = store.manifest.views.index(kind="canonical", mirrored=False)[:1]
        self.width = math.prod(spec.shape)
        self.block_rows = max(1, min(BLOCK_ROWS, BLOCK_BYTES // (4 * self.width)))
        self.centre = self._mean(valid) if centre is None else centre

    def _mean(self, valid: Rows) -> Floats:
        """(D,) mean feature; zeros if all features are equal, because nothing would be left to compare."""
        if not len(valid):
            return np.zeros(self.width, np.float32)
        places = np.linspace(0, len(valid) - 1, min(CENTRE_ROWS, len(valid))).astype(np.int64)
        chosen = valid[np.unique(places)]
        total, squares = np.zeros(self.width), 0.0
        for rows in blocks(chosen, self.block_rows):
            values = self._read(rows)
            total += values.sum(axis=0, dtype=np.float64)
            squares += float(np.square(values, dtype=np.float64).sum())
        mean = total / len(chosen)
        spread = squares / len(chosen) - float(mean @ mean)
        if spread * len(chosen) < ROUNDING * squares:
            mean[:] = 0
        return mean.astype(np.float32)

    def _read(self, rows: Rows, view: int | None = None) -> Floats:
        views = self.views if view is None else [view]
        values = self.store.gather(self.field, rows, views=views)
        return values.reshape(len(rows), self.width).astype(np.float32, copy=False)

    def units(self, rows: Rows, view: int | None = None) -> Floats:
        """(n, D): features of length 1 of the canonical view or another; zeros where a feature is the mean itself."""
        values = self._read(rows, view)
        values -= self.centre
        length = np.sqrt(np.einsum("nd,nd->n", values, values))
        values /= np.where(length > 0, length, 1)[:, None]
        return values


def default_field(store: FeatureStore) -> str:
    """The field to compare by: ``cls`` if there is one, else the shortest vector that a teacher made."""
    fields = store.manifest.fields
    known = {
        name: math.prod(spec.shape) for name, spec in fields.items() if _comparable(store, name)
    }
    if not known:
        raise ConfigError(
            f"{store.address}: no field holds floating point numbers to compare; it has: {shorten(sorted(fields))}."
        )
    return min(
        known,
        key=lambda name: (
            name != "cls",
            not fields[name].teacher,
            len(fields[name].shape),
            known[name],
            name,
        ),
    )


def _comparable(store: FeatureStore, field: str) -> bool:
    spec = store.manifest.fields[field]
    floating = spec.dtype in ("float16", "bfloat16", "float32")
    return floating and spec.encoding.kind in ("plain", "int8") and bool(spec.shape)


def comparable_field(store: FeatureStore, field: str) -> FieldRecord:
    """The record of a field that can be compared."""
    fields = store.manifest.fields
    if field not in fields or not _comparable(store, field):
        known = [name for name in sorted(fields) if _comparable(store, name)]
        raise ConfigError(
            f"{store.address}: no field {field!r} of floating point vectors or grids; it has: {shorten(known)}."
        )
    return fields[field]


def blocks(rows: Rows, size: int) -> Iterator[Rows]:
    """Split rows into blocks of at most ``size``."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]
