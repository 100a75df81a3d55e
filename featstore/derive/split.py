"""Which rows of a store make a part: by pattern, number, so many of each class; or all shared out by content."""

# N rows of the store, n rows of a part

import hashlib
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featstore.containers.base import Rows
from featstore.derive.subset import subset
from featstore.derive.composition import Axis, ids_of, whole
from featstore.errors import ConfigError, shorten
from featstore.writing.fill import Progress, no_progress
from featstore.format.manifest import Manifest
from featstore.reading.store import FeatureStore


def choose(
    store: FeatureStore,
    *,
    where: Sequence[str] = (),
    rows: slice = slice(None),
    labelled_per_class: int = 0,
    seed: int = 0,
) -> Rows | range:
    """Rows that pass all of some conditions, in the order of the store.

    Args:
        store: that was opened.
        where: shell patterns over sample ids, ``*`` also spans slashes; a row is taken if any matches. All if empty.
        rows: row numbers.
        labelled_per_class: of the rows that are left, take so many valid ones of each class, all of different content;
            which ones depends on content and seed alone. 0: all, with and without labels.
        seed: of that choice.

    Raises:
        ConfigError: nothing is left, or a class has too few.
        ShardCorrupt: ids, labels or hashes are damaged.
    """
    taken: Rows | range = range(store.num_rows)[rows]
    if where:
        span = taken
        matching = (
            row
            for row, sample_id in zip(span, ids_of(Axis((store,), span), len(span)), strict=True)
            if any(fnmatchcase(sample_id, pattern) for pattern in where)
        )
        taken = np.fromiter(matching, dtype=np.int64)
    if not len(taken):
        patterns = " ".join(map(repr, where))
        ids = [str(name) for _, name in zip(range(3), ids_of(whole(store), 3), strict=False)]
        raise ConfigError(
            f"{store.path}: none of its {store.num_rows:,} rows is left"
            + (
                f" by {patterns}. A pattern must match the whole id; ids look like"
                if where
                else "; ids are"
            )
            + f" {shorten(ids)}."
        )
    return _per_class(store, taken, labelled_per_class, seed) if labelled_per_class else taken


def _per_class(store: FeatureStore, taken: Rows | range, count: int, seed: int) -> Rows:
    rows = np.asarray(taken, dtype=np.int64)
    rows = rows[store.valid[rows] & (store.labels[rows] >= 0)]
    keys = content_keys(store, seed)[rows]
    _, first = np.unique(keys, return_index=True)  # of equal images, the first
    order = first[np.argsort(keys[first], kind="stable")]
    labels = store.labels[rows[order]]
    names = store.manifest.source.class_names
    chosen = []
    for label in range(len(names)) if names else np.unique(labels).tolist():
        members = order[labels == label]
        if len(members) < count:
            raise ConfigError(
                f"{store.path}: class {names[label] if names else label!r} has {len(members)} different valid images "
                f"among those asked for, {count} are wanted."
            )
        chosen.append(rows[members[:count]])
    if not chosen:
        raise ConfigError(f"{store.path}: no row has a label.")
    return np.sort(np.concatenate(chosen))


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


def content_keys(store: FeatureStore, seed: int) -> npt.NDArray[np.uint64]:
    """(N,) a random number of each row that depends on its content and the seed alone.

    Where the content could not be read, it depends on the sample id.
    """
    start = hashlib.sha256(f"featstore-split-1|{seed}|".encode())
    digests = bytearray()
    for row, content in enumerate(store.content_sha256):
        digest = start.copy()
        digest.update(content.tobytes() if content.any() else store.sample_ids[row].encode())
        digests += digest.digest()[:8]
    return np.frombuffer(bytes(digests), dtype="<u8")
