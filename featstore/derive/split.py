"""Which rows of a store make a part: by pattern, number, so many of each class; or all shared out by content."""

# N rows of the store, n rows of a part

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featstore.derive.subset import content_keys, subset
from featstore.errors import ConfigError, shorten
from featstore.format.manifest import Manifest
from featstore.reading.store import FeatureStore
from featstore.writing.fill import Progress, no_progress


def split(
    source: Path,
    outs: Mapping[Path, float],
    *,
    seed: int = 0,
    by_class: bool = False,
    lease_s: float = 60,
    progress: Progress = no_progress,
) -> list[Manifest]:
    """Write a store as several, so that equal images never part; go on with what was begun.

    Args:
        source: folder of a complete store.
        outs: folder of each part, and its share of the rows.
        seed: of the choice.
        by_class: see ``assign``.
        lease_s: seconds without a sign of life after which another process counts as gone.
        progress: see ``featstore.writing.fill.Progress``; for each part from the beginning.

    Returns:
        Manifest of each part.

    Raises:
        ConfigError: shares do not add up to 1, or a part would be empty.
        StoreIncomplete, ShardCorrupt: the store is not whole.
        ManifestMismatch, StoreNotFound, StoreBusy, StoreWriteError: see ``featstore.writing.fill``.
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
                f"{out}: none of the {store.num_rows:,} rows would fall into it. Take a larger share or another seed"
                + ("." if by_class else ", or --by-class, which is exact.")
            )
    how = f"seed {seed}" + (", by class" if by_class else "")
    made = []
    for out, taken, share in zip(outs, rows, shares, strict=True):
        note = {"split": f"{share:g} of {shorten([f'{item:g}' for item in shares], 20)}, {how}"}
        made.append(subset(source, out, rows=taken, note=note, lease_s=lease_s, progress=progress))
    return made


def assign(
    store: FeatureStore, shares: Sequence[float], *, seed: int, by_class: bool
) -> npt.NDArray[np.int64]:
    """Which part each row falls into, by its content, so that equal images never part.

    Args:
        store: that was opened.
        shares: of the parts; they add up to 1.
        seed: of the choice.
        by_class: every class is shared out as exactly as its number of images allows. Otherwise each image falls by
            itself, so that sizes are near the shares only, but an image stays in its part however the store grows.

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
    labels = store.labels[first]  # of equal images, the label of the first
    parts = np.empty(len(first), dtype=np.int64)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        middle = np.cumsum(sizes[members]) - sizes[members] / 2
        parts[members] = np.searchsorted(ends * sizes[members].sum(), middle, side="right")
    found: npt.NDArray[np.int64] = parts[group]
    return found
