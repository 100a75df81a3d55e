"""Find near duplicates: the cosine of one field, every row with every other one.

The comparison is exact: blocks of rows are multiplied with each other, in the memory of a few blocks, however many rows
there are. With cells of rows (clusters), only rows that share a cell are compared.
"""

# n rows compared, D numbers of a row, P pairs

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from featstore.errors import ConfigError
from featstore.files.array_types import Rows
from featstore.reading.store import FeatureStore
from featstore.selection.unit_vectors import (
    BLOCK_BYTES,
    ROUNDING,
    Floats,
    UnitVectors,
    blocks,
    comparable_field,
)

THRESHOLD = 0.97
"""Cosine from which two images count as near duplicates. Photographs saved again as JPEG of lower quality, at three
quarters of the size or slightly brighter, reach about this value; other photographs of the same object do not
(docs/sharing.md)."""

MOST_OWN_CROPS = 512
"""Images whose own crops are compared, evenly spread over the store."""

MOST_PAIRS = 1_000_000
"""Most pairs in the result; the ones with the highest cosine are kept, and all are counted."""


@dataclass(frozen=True)
class NearDuplicates:
    """Near duplicates, and the cosine of every image with its nearest other image."""

    field: str  # field that was compared
    threshold: float  # cosine from which on pairs count
    rows: Rows  # (P, 2) row numbers, the smaller first; pairs by descending cosine
    cosine: Floats  # (P,) of each pair
    found: int  # pairs that there are; more than P if there are more than ``MOST_PAIRS``
    compared: Rows  # (n,) row numbers, ascending, of the images that were compared with others
    nearest: Floats  # (n,) cosine of each with its nearest other; -1 if there is none
    nearest_row: Rows  # (n,) the row of that other; -1 if there is none


def near_duplicates(
    store: FeatureStore,
    field: str,
    threshold: float = THRESHOLD,
    *,
    rows: npt.ArrayLike | None = None,
    others: npt.ArrayLike | None = None,
    cells: Rows | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> NearDuplicates:
    """Find pairs of images whose features have a high cosine; by default among all pairs.

    Args:
        store: May be incomplete; rows that are not valid are left out.
        field: A field of floating point vectors or grids; of a grid, places are compared with the same places.
        threshold: Smallest cosine of a pair, in (-1, 1].
        rows: (n,) rows that are compared; all if not given.
        others: Rows that they are compared with; all if not given.
        cells: (n, k) different cells that each of ``rows``, ascending and valid, is in: only rows that share one
            are compared, and ``nearest`` is the nearest among these. Without ``others``, or with the same rows.
        progress: Called with the numbers of products of two rows done and to do.

    Returns:
        Pairs of a row of ``rows`` and one of ``others``, each once, and the nearest other of each of ``rows``.

    Raises:
        ConfigError: The store has no such field, it is not one of floating point numbers, no row is valid, or rows are
            outside the store.
        ViewMismatch: The store holds no canonical view; seeded crops differ even between copies of a file.
        ShardCorrupt: A shard is damaged.
    """
    if not -1 < threshold <= 1:
        raise ConfigError(f"threshold {threshold:g}: a cosine above -1 and up to 1 is expected.")
    valid = np.flatnonzero(store.valid)
    left = valid if rows is None else _chosen(store, rows)
    right = valid if others is None else _chosen(store, others)
    if not len(left) or not len(right):
        raise ConfigError(f"{store.address}: no valid rows to compare.")
    features = UnitVectors(store, field, valid)
    search = _Search(features, left, right, threshold)
    if cells is None:
        search.run(progress)
    else:
        search.run_cells(cells, progress)
    return search.pairs(field)


def own_crops(store: FeatureStore, field: str) -> Floats:
    """Cosine of some images with crops of themselves, to judge a threshold for cropped copies.

    Args:
        store: May be incomplete.

    Returns:
        (n * (V - 1),) cosines of the canonical view with each other view; empty if there is none.

    Raises:
        ConfigError, ViewMismatch, ShardCorrupt: See ``near_duplicates``.
    """
    valid = np.flatnonzero(store.valid)
    features = UnitVectors(store, field, valid)
    rest = [view for view in range(len(store.manifest.views)) if [view] != features.views]
    if features.views is None or not rest or not len(valid):
        return np.empty(0, np.float32)
    rows = valid[
        np.unique(np.linspace(0, len(valid) - 1, min(MOST_OWN_CROPS, len(valid))).astype(np.int64))
    ]
    found = []
    for block in blocks(rows, features.block_rows):
        canonical = features.units(block)
        found += [
            np.einsum("nd,nd->n", canonical, features.units(block, view=view)) for view in rest
        ]
    cosine: Floats = np.minimum(np.concatenate(found), 1)
    return cosine


def comparison_seconds(store: FeatureStore, field: str, rows: int, others: int) -> float:
    """Estimate the seconds of a comparison from a small matrix product.

    Raises:
        ConfigError, ViewMismatch: See ``near_duplicates``.
    """
    width = math.prod(comparable_field(store, field).shape)
    size = min(2048, max(1, BLOCK_BYTES // (4 * width)))
    block = np.full((size, width), 0.5, np.float32)
    block @ block.T  # the first product starts the threads
    start = time.perf_counter()
    cosine = block @ block.T
    cosine.max(axis=0)
    cosine.max(axis=1)
    return (time.perf_counter() - start) / size**2 * rows * others


def _chosen(store: FeatureStore, rows: npt.ArrayLike) -> Rows:
    """Valid ones among some rows, ascending, each once."""
    wanted = np.unique(np.asarray(rows, dtype=np.int64))
    inside: Rows = wanted[(wanted >= 0) & (wanted < store.num_rows)]
    if len(inside) != len(wanted):
        raise ConfigError(
            f"{store.address}: rows {wanted[0]} to {wanted[-1]} were asked for; it has rows 0 to {store.num_rows - 1}."
        )
    return inside[store.valid[inside]]


class _Search:
    """One pass over all pairs of blocks. Where both sides are the same rows, each pair of blocks is taken once."""

    def __init__(self, features: UnitVectors, left: Rows, right: Rows, threshold: float) -> None:
        self.features, self.left, self.right, self.threshold = features, left, right, threshold
        self.symmetric = np.array_equal(left, right)
        self.nearest = np.full(len(left), -1, np.float32)
        self.nearest_row = np.full(len(left), -1, np.int64)
        self.floor = np.float32(threshold - ROUNDING)
        """Lowest cosine that is kept; rises when there are too many pairs."""
        self.found = 0
        self.kept: list[tuple[Rows, Floats]] = []
        self.num_kept = 0

    def run(self, progress: Callable[[int, int], None]) -> None:
        """Compare all blocks."""
        size = self.features.block_rows
        table = np.empty(size * size, np.float32)
        starts = range(0, len(self.left), size)
        done, total = 0, len(self.left) * len(self.right)
        for i in starts:
            rows = self.left[i : i + size]
            units = self.features.units(rows)
            for j in range(i if self.symmetric else 0, len(self.right), size):
                others = self.right[j : j + size]
                diagonal = self.symmetric and i == j
                facing = units if diagonal else self.features.units(others)
                cosine = table[: len(rows) * len(others)].reshape(len(rows), len(others))
                np.matmul(units, facing.T, out=cosine)
                self._compare(cosine, i, j, rows, others)
                done += len(rows) * len(others) * (2 if self.symmetric and not diagonal else 1)
                progress(done, total)

    def run_cells(self, cells: Rows, progress: Callable[[int, int], None]) -> None:
        assert self.symmetric
        assert len(cells) == len(self.left)
        places = np.repeat(np.arange(len(cells)), cells.shape[1])
        order = np.argsort(cells.reshape(-1), kind="stable")
        bounds = np.flatnonzero(np.diff(cells.reshape(-1)[order])) + 1
        for done, members in enumerate(np.split(places[order], bounds)):
            rows = self.left[members]
            inner = _Search(self.features, rows, rows, self.threshold)
            inner.run(lambda done, total: None)
            closer = inner.nearest > self.nearest[members]
            self.nearest[members[closer]] = inner.nearest[closer]
            self.nearest_row[members[closer]] = inner.nearest_row[closer]
            self.kept += inner.kept
            self.num_kept += inner.num_kept
            if self.num_kept > 2 * MOST_PAIRS:
                self._drop_repeated()
                self._prune()
            progress(done + 1, len(bounds) + 1)
        self._drop_repeated()

    def _drop_repeated(self) -> None:
        """Keep one of the pairs that share several cells."""
        rows = np.concatenate([np.empty((0, 2), np.int64), *(rows for rows, _ in self.kept)])
        cosine = np.concatenate([np.empty(0, np.float32), *(values for _, values in self.kept)])
        rows, first = np.unique(rows, axis=0, return_index=True)
        self.kept, self.num_kept = [(rows, cosine[first])], len(rows)
        self.found = max(self.found, len(rows))

    def _compare(self, cosine: Floats, i: int, j: int, rows: Rows, others: Rows) -> None:
        _, at, facing = np.intersect1d(rows, others, assume_unique=True, return_indices=True)
        cosine[at, facing] = -2  # a row is not its own duplicate
        best = cosine.max(axis=1)
        self._note_nearest(slice(i, i + len(rows)), best, cosine, others)
        if self.symmetric and i != j:
            self._note_nearest(slice(j, j + len(others)), cosine.max(axis=0), cosine.T, rows)
        # A strip at a time, so that a threshold that is far too low does not fill the memory.
        for strip in blocks(np.flatnonzero(best >= self.threshold - ROUNDING), 256):
            self._collect(cosine[strip], rows[strip], others)

    def _note_nearest(self, span: slice, best: Floats, cosine: Floats, others: Rows) -> None:
        known, row = self.nearest[span], self.nearest_row[span]
        closer = np.flatnonzero(best > known)
        known[closer] = np.minimum(best[closer], 1)
        row[closer] = others[cosine[closer].argmax(axis=1)]

    def _collect(self, cosine: Floats, rows: Rows, others: Rows) -> None:
        first, second = np.nonzero(cosine >= self.threshold - ROUNDING)
        values = np.minimum(cosine[first, second], 1)
        pairs = np.stack([rows[first], others[second]], axis=1)
        # A pair of two rows that are on both sides comes twice; it is taken the right way round.
        once = (pairs[:, 0] < pairs[:, 1]) | ~_is_in(pairs[:, 1], self.left)
        once |= ~_is_in(pairs[:, 0], self.right)
        self.found += int(once.sum())
        once &= values >= self.floor
        self.kept.append((np.sort(pairs[once], axis=1), values[once]))
        self.num_kept += int(once.sum())
        if self.num_kept > 2 * MOST_PAIRS:
            self._prune()

    def _prune(self) -> None:
        """Keep the pairs with the highest cosine, in a fixed order."""
        rows = np.concatenate([np.empty((0, 2), np.int64), *(rows for rows, _ in self.kept)])
        cosine = np.concatenate([np.empty(0, np.float32), *(values for _, values in self.kept)])
        order = np.lexsort((rows[:, 1], rows[:, 0], -cosine))[:MOST_PAIRS]
        self.kept, self.num_kept = [(rows[order], cosine[order])], len(order)
        if len(order) == MOST_PAIRS:
            self.floor = max(self.floor, cosine[order[-1]])

    def pairs(self, field: str) -> NearDuplicates:
        self._prune()
        rows, cosine = self.kept[0]
        return NearDuplicates(
            field,
            self.threshold,
            rows,
            cosine,
            self.found,
            self.left,
            self.nearest,
            self.nearest_row,
        )


def _is_in(rows: Rows, several: Rows) -> npt.NDArray[np.bool_]:
    """Whether rows are among some, which are sorted."""
    places = np.minimum(np.searchsorted(several, rows), len(several) - 1)
    return np.asarray(several[places] == rows)
