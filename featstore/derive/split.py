"""Split a store into parts by content hash, so that equal images are in the same part."""

# N rows of the store, n rows of a part

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from featstore.derive.subset import content_keys, subset
from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Rows
from featstore.files.progress import Progress, no_progress
from featstore.format.manifest import Manifest
from featstore.reading.store import FeatureStore


def split(
    source: Path,
    outs: Mapping[Path, float],
    *,
    seed: int = 0,
    by_class: bool = False,
    progress: Progress = no_progress,
) -> list[Manifest]:
    """Write a store as several, with equal images in the same part, or resume.

    Arguments and errors as for ``featstore.split``; progress is counted for each part from zero.
    """
    store = FeatureStore.open(source)
    shares = list(outs.values())
    if len(outs) < 2 or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise ConfigError(
            f"shares {shorten(shares)} of {len(outs)} parts: expected two or more above 0 that add up to 1."
        )
    parts = assign(store, shares, seed=seed, by_class=by_class)
    rows = [np.flatnonzero(parts == part) for part in range(len(shares))]
    for out, taken in zip(outs, rows, strict=True):
        if not len(taken):
            raise ConfigError(
                f"{out}: none of the {store.num_rows:,} rows are assigned to it. Take a larger share or another seed"
                + ("." if by_class else ", or --by-class, which is exact.")
            )
    how = f"seed {seed}" + (", by class" if by_class else "")
    made = []
    for out, taken, share in zip(outs, rows, shares, strict=True):
        note = {"split": f"{share:g} of {shorten([f'{item:g}' for item in shares], 20)}, {how}"}
        made.append(subset(source, out, rows=taken, note=note, progress=progress))
    return made


def assign(store: FeatureStore, shares: Sequence[float], *, seed: int, by_class: bool) -> Rows:
    """Assign each row to a part by its content hash, so that equal images are in the same part.

    Args:
        shares: Shares of the parts, with sum 1.
        by_class: Divide every class in these shares, as exactly as its number of images allows. Otherwise each image is
            assigned independently: sizes are approximate, but an image keeps its part when the store grows.

    Returns:
        (N,).
    """
    keys = content_keys(store, seed)
    ends = np.cumsum(shares)[:-1]
    if not by_class:
        return np.searchsorted(ends, keys / 2.0**64, side="right")
    _, first, group, sizes = np.unique(
        keys, return_index=True, return_inverse=True, return_counts=True
    )
    labels = store.labels[first]  # equal images have the label of the first
    parts = np.empty(len(first), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        middle = np.cumsum(sizes[members]) - sizes[members] / 2
        parts[members] = np.searchsorted(ends * sizes[members].sum(), middle, side="right")
    found: Rows = parts[group]
    return found
