"""Merge rows: stores of other images with the same teachers, views and fields."""

# N rows of all stores, n rows of the new one

from collections.abc import Sequence
from typing import Literal

import numpy as np

from featstore.derive.compatibility import (
    check_same_rows,
    common_artefacts,
    common_classes,
    common_fields,
    common_origin,
    joined_labels,
)
from featstore.derive.composition import Composition, RowAxis, cut_like, derived, ids_of
from featstore.derive.matching import RowKeys, first_of, samples_of, views_depend_on_ids
from featstore.errors import ConfigError, shorten
from featstore.files.array_types import Mask, Rows
from featstore.format.ids import ids_sha256
from featstore.format.manifest_records import SourceRecord, WorkRecord
from featstore.reading.store import FeatureStore

Duplicates = Literal["refuse", "skip", "keep"]
"""Treatment of rows whose image an earlier store has, by content, or by id where it could not be read. refuse: raise an
error. skip: leave the row out. keep: keep equal images with different ids as several rows, as extraction does.
"""


def plan_rows(
    stores: Sequence[FeatureStore], *, duplicates: Duplicates = "refuse", names: Sequence[str] = ()
) -> tuple[Composition, list[str]]:
    """Plan what a store with the rows of several will be.

    Args:
        stores: Opened stores; their rows come in this order.
        names: Names of the stores, put before the sample ids, ``<name>/<id>``; none if empty.

    Returns:
        The plan, and notes for the user.

    Raises:
        ManifestMismatch: Teachers, views or fields of the stores differ.
        ConfigError: Rows repeat, two images have the same id, or classes or artefacts conflict.
    """
    first = stores[0]
    for other in stores[1:]:
        check_same_rows(first, other.manifest, where=other.path)
    if names and views_depend_on_ids(first.manifest.views):
        raise ConfigError(
            f"{first.path}: its seeded views depend on the sample id, so ids cannot be changed; leave out --names."
        )
    samples = samples_of(stores, tuple(f"{name}/" for name in names))
    rows, notes = without_duplicates(samples, duplicates)
    classes, numbers = common_classes(stores)
    axis = RowAxis(tuple(stores), rows, prefixes=samples.axis.prefixes)
    sources = [store.manifest.source for store in stores]
    artefacts, files = common_artefacts(stores)
    manifest = derived(
        first.manifest,
        common_origin(stores, "merged"),
        fields=common_fields([store.manifest for store in stores]),
        artefacts=artefacts,
        source=SourceRecord(
            kind="merged",
            uri=", ".join(dict.fromkeys(source.uri for source in sources)),
            num_samples=len(rows),
            ids_sha256=ids_sha256(ids_of(axis, len(rows))),
            has_labels=any(source.has_labels for source in sources),
            class_names=classes,
        ),
        work=joined_work(stores, axis),
    )
    labels = joined_labels(stores, numbers, rows)
    return Composition(manifest, files, axis, labels=labels), notes


def without_duplicates(
    samples: RowKeys, duplicates: Duplicates, *, all_known: bool = False
) -> tuple[Rows, list[str]]:
    """Rows whose images no earlier store has, and notes on the others.

    Args:
        all_known: To find all images of the later stores in the first one is no error; nothing is added then.
    """
    stores = samples.axis.stores
    repeated, clashing = repeats(samples)
    if duplicates == "keep":
        repeated &= first_of(samples.name, samples.store) < samples.store
    where = shorten([store.path for store in stores])
    if clashing.any():
        which = np.flatnonzero(clashing)
        raise ConfigError(
            f"{where}: {_some(samples, which)} have the id of another image of a store before. Give the stores "
            "different ids (merge --names puts a name before them), or leave those rows out."
        )
    rows = np.flatnonzero(~repeated)
    counts = np.bincount(samples.store[repeated], minlength=len(stores))
    if all_known and len(rows) == stores[0].num_rows:
        return rows, [f"all images of {shorten([s.path for s in stores[1:]])} are in the store"]
    if repeated.any() and duplicates != "skip":
        raise ConfigError(
            f"{where}: {_some(samples, np.flatnonzero(repeated))} are in a store before already. To leave them out: "
            "--duplicates skip."
        )
    empty = [s.path for s, count in zip(stores, counts, strict=True) if count == s.num_rows]
    if empty:
        raise ConfigError(f"{shorten(empty)}: every image is in a store before; nothing to merge.")
    return rows, [
        f"{count:,} rows of {store.path} are left out, their images are in a store before"
        for store, count in zip(stores, counts.tolist(), strict=True)
        if count
    ]


def _some(samples: RowKeys, rows: Rows) -> str:
    """How many rows, and the ids of the first, with the id of the same image in a store before if it is another."""
    few = rows[:5]
    others = samples.ids(first_same(samples, few))
    pairs = [
        name if name == other else f"{name} (there {other})"
        for name, other in zip(samples.ids(few), others, strict=True)
    ]
    more = f" and {len(rows) - 5:,} more" if len(rows) > 5 else ""
    return f"{len(rows):,} images ({', '.join(pairs)}{more})"


def repeats(samples: RowKeys) -> tuple[Mask, Mask]:
    """(N,) bool: rows whose image is in an earlier store; (N,) bool: rows whose id is, with another content."""
    unread = samples.content < 0
    same_content = ~unread & (first_of(samples.content + 1, samples.store) < samples.store)
    same_name = first_of(samples.name, samples.store) < samples.store
    # An image that could not be read is known by its id alone.
    unread_before = np.isin(samples.name, samples.name[unread])
    repeated = same_content | (same_name & unread_before)
    return repeated, same_name & ~repeated


def first_same(samples: RowKeys, rows: Rows) -> Rows:
    """For some rows, the first row of all stores with the same content; with the same id where it was not read."""
    places = np.arange(len(samples.content))
    by_content = first_of(samples.content + 1, places)[rows]
    by_name = first_of(samples.name, places)[rows]
    return np.where((samples.content[rows] >= 0) & (by_content < rows), by_content, by_name)


def joined_work(stores: Sequence[FeatureStore], axis: RowAxis) -> WorkRecord:
    """How the work of rows of several stores is cut: as the first one's, or as their tars where all mirror tars."""
    first = stores[0].manifest.work
    plain = WorkRecord(shard_rows=first.shard_rows, batch_size=first.batch_size)
    names = [name for store in stores for name in store.manifest.work.shard_names]
    mirrored = all(store.manifest.work.shard_names for store in stores) and not axis.prefixes
    if not mirrored or len(set(names)) < len(names):
        return plain
    rows = np.asarray(axis.rows, dtype=np.int64)
    parts = [
        cut_like(store.manifest, rows[(rows >= start) & (rows < stop)] - start)
        for store, start, stop in zip(stores, axis.starts, axis.starts[1:], strict=False)
    ]
    sizes = tuple(size for part in parts for size in part.shard_sizes)
    return WorkRecord(
        shard_rows=max(sizes),
        batch_size=first.batch_size,
        shard_sizes=sizes,
        shard_names=tuple(name for part in parts for name in part.shard_names),
    )
