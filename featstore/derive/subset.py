"""Write a new store whose rows and columns come from old ones: the whole of a composition, or a part of one store.

The new store is filled shard by shard as an extraction is: it goes on after a kill, any number of processes can help,
and nothing half-written can be read.
"""

# n rows of a part

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featstore import __version__
from featstore.containers.base import Rows
from featstore.derive.composition import Axis, Composition, ShardMaker, artefact_bytes, cut_like, ids_of
from featstore.errors import ConfigError, MissingSamples, shorten
from featstore.writing.fill import Progress, check_apart, make_store, no_progress
from featstore.format.ids import ids_sha256
from featstore.format.manifest import ArtefactRecord, Int8Encoding, Manifest, new_manifest
from featstore.reading.store import FeatureStore


def compose(
    plan: Composition,
    out: Path,
    *,
    lease_s: float = 60,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a new store, or go on with one that was begun.

    Args:
        plan: what it is made of.
        out: its folder.
        lease_s: seconds without a sign of life after which another process counts as gone.
        progress: see ``featstore.writing.fill.Progress``.

    Returns:
        The manifest on disk.

    Raises:
        ConfigError: ``out`` is one of the old stores, or lies inside one.
        ShardCorrupt: an old store is damaged.
        ManifestMismatch, StoreNotFound, StoreBusy, StoreWriteError: see ``featstore.writing.fill``.
    """
    check_apart(out, *(store.path for axis in plan.axes for store in axis.stores))
    make = ShardMaker(plan)
    return make_store(out, plan.manifest, plan.artefacts, make, lease_s=lease_s, progress=progress)


def subset(
    source: Path,
    out: Path,
    *,
    rows: npt.ArrayLike | range | None = None,
    fields: Sequence[str] | None = None,
    note: Mapping[str, str] | None = None,
    lease_s: float = 60,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a part of a store as a new store, or go on with one that was begun.

    Values, ids, hashes, labels, and the reasons of invalid rows stay as they are. Teachers and artefacts that no field
    of the part needs are left out.

    Args:
        source: folder of a complete store.
        out: folder of the new one.
        rows: (n,) row numbers in the order of the new store, none twice, e.g. from
            ``featstore.derive.split``. All if not given.
        fields: names; all if not given.
        note: what ``created_by`` shall say of the choice, besides version and fingerprint of the store.
        lease_s: seconds without a sign of life after which another process counts as gone.
        progress: see ``featstore.writing.fill.Progress``.

    Returns:
        The manifest of the new store.

    Raises:
        ConfigError: no row, a row twice, a field that is not there, or ``out`` lies in the store.
        MissingSamples: a row is outside the store.
        StoreIncomplete, ShardCorrupt: the store is not whole.
        ManifestMismatch, StoreNotFound, StoreBusy, StoreWriteError: see ``featstore.writing.fill``.
    """
    store = FeatureStore.open(source)
    return compose(
        plan_subset(store, rows=rows, fields=fields, note=note),
        out,
        lease_s=lease_s,
        progress=progress,
    )


def plan_subset(
    store: FeatureStore,
    *,
    rows: npt.ArrayLike | range | None = None,
    fields: Sequence[str] | None = None,
    note: Mapping[str, str] | None = None,
) -> Composition:
    """Settle what a part of a store will be; arguments and errors as for ``subset``."""
    old = store.manifest
    taken = range(store.num_rows) if rows is None else _checked(store, rows)
    names = list(old.fields) if fields is None else list(dict.fromkeys(fields))
    unknown = sorted(set(names) - old.fields.keys())
    if unknown or not names:
        raise ConfigError(
            f"{store.path}: no field {shorten(unknown) or 'was named'}; it has: {shorten(sorted(old.fields))}."
        )
    axis = Axis((store,), taken)
    same = isinstance(taken, range) and taken == range(store.num_rows)
    digest = old.source.ids_sha256 if same else ids_sha256(ids_of(axis, len(taken)))
    kept = {name: old.fields[name] for name in old.fields if name in names}
    artefacts = dict(old.artefacts) if fields is None else _artefacts_of(old, names)
    teachers = {record.teacher for record in kept.values()}
    teachers |= {record.teacher for record in artefacts.values()}
    manifest = new_manifest(
        teachers={
            name: record
            for name, record in old.teachers.items()
            if fields is None or name in teachers
        },
        views=old.views,
        fields=kept,
        artefacts=artefacts,
        source=old.source.model_copy(update={"num_samples": len(taken), "ids_sha256": digest}),
        work=cut_like(old, taken),
        created_by={
            **old.created_by,
            "subset_by": f"featstore {__version__}",
            "subset_from": old.fingerprint,
            **(note or {}),
        },
        container=old.container,
    )
    sources = {name: (axis, name) for name in kept}
    return Composition(manifest, artefact_bytes(store, list(artefacts)), axis, sources)


def _checked(store: FeatureStore, rows: npt.ArrayLike | range) -> Rows | range:
    taken = np.asarray(rows)
    if taken.ndim != 1 or not taken.size or taken.dtype.kind not in "iu":
        raise ConfigError(
            f"{store.path}: rows are {taken.dtype} of shape {taken.shape}; expected one or more row numbers. Of a "
            "mask, take np.flatnonzero(mask)."
        )
    if taken.min() < 0 or taken.max() >= store.num_rows:
        raise MissingSamples(
            f"{store.path}: rows {taken.min()} to {taken.max()} were asked for; it has rows 0 to {store.num_rows - 1}."
        )
    numbers, counts = np.unique(taken, return_counts=True)
    if len(numbers) < len(taken):
        raise ConfigError(
            f"{store.path}: rows {shorten(numbers[counts > 1].tolist())} were asked for more than once; ids are unique."
        )
    return rows if isinstance(rows, range) else taken.astype(np.int64)


def _artefacts_of(old: Manifest, names: Sequence[str]) -> dict[str, ArtefactRecord]:
    """Artefacts that some fields need: their scales, and what else there is of their teachers or of nobody."""

    def scales(fields: Sequence[str]) -> set[str]:
        found = (old.fields[name].encoding for name in fields)
        return {item.channels for item in found if isinstance(item, Int8Encoding)}

    teachers = {"", *(old.fields[name].teacher for name in names)}
    needed, others = scales(names), scales(list(old.fields))
    return {
        name: record
        for name, record in old.artefacts.items()
        if name in needed or (name not in others and record.teacher in teachers)
    }
