"""Write some rows and fields of a store as a new store, and choose rows by id, pattern, number or class."""

# n rows of a part

import hashlib
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from featstore.derive.composition import (
    Composition,
    RowAxis,
    artefact_bytes,
    compose,
    cut_like,
    derived,
    ids_of,
    whole,
)
from featstore.errors import ConfigError, MissingSamples, shorten
from featstore.files.array_types import Rows
from featstore.files.progress import Progress, no_progress
from featstore.format.ids import ids_sha256
from featstore.format.manifest import Manifest
from featstore.format.manifest_records import ArtefactRecord, Int8Encoding
from featstore.format.version import __version__
from featstore.format.views import View
from featstore.reading.store import FeatureStore

COMPARE: dict[str, Callable[[npt.NDArray[Any], float], npt.NDArray[np.bool_]]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
    ">": operator.gt,
    "<": operator.lt,
}
CONDITION = re.compile(r"\s*([A-Za-z0-9][\w.-]*)\s*(>=|<=|==|!=|>|<)\s*(\S+)\s*")
"""A field, a comparison and a number."""


def subset(
    source: Path,
    out: Path,
    *,
    rows: npt.ArrayLike | range | None = None,
    fields: Sequence[str] | None = None,
    note: Mapping[str, str] | None = None,
    progress: Progress = no_progress,
) -> Manifest:
    """Write a part of a store as a new store, or resume.

    Values, ids, hashes, labels and reasons of invalid rows are copied. Teachers and artefacts that no field of the part
    needs are left out.

    Args:
        rows: (n,) row numbers in the order of the new store, none twice. All if not given.
        note: Entries of ``created_by`` that describe the choice.

    Other arguments and errors as for ``featstore.subset``.
    """
    plan = plan_subset(FeatureStore.open(source), rows=rows, fields=fields, note=note)
    return compose(plan, out, progress=progress)


def plan_subset(
    store: FeatureStore,
    *,
    rows: npt.ArrayLike | range | None = None,
    fields: Sequence[str] | None = None,
    note: Mapping[str, str] | None = None,
) -> Composition:
    """Plan what a part of a store will be; arguments and errors as for ``subset``."""
    old = store.manifest
    taken = range(store.num_rows) if rows is None else _checked(store, rows)
    names = list(old.fields) if fields is None else list(dict.fromkeys(fields))
    unknown = sorted(set(names) - old.fields.keys())
    if unknown or not names:
        raise ConfigError(
            f"{store.path}: no field {shorten(unknown) or 'was named'}; it has: {shorten(sorted(old.fields))}."
        )
    axis = RowAxis((store,), taken)
    same = isinstance(taken, range) and taken == range(store.num_rows)
    digest = old.source.ids_sha256 if same else ids_sha256(ids_of(axis, len(taken)))
    kept = {name: old.fields[name] for name in old.fields if name in names}
    artefacts = dict(old.artefacts) if fields is None else _artefacts_of(old, names)
    teachers = {record.teacher for record in kept.values()}
    teachers |= {record.teacher for record in artefacts.values()}
    origin = {"subset_by": f"featstore {__version__}", "subset_from": old.fingerprint}
    manifest = derived(
        old,
        {**origin, **(note or {})},
        teachers={
            name: record
            for name, record in old.teachers.items()
            if fields is None or name in teachers
        },
        fields=kept,
        artefacts=artefacts,
        source=old.source.model_copy(update={"num_samples": len(taken), "ids_sha256": digest}),
        work=cut_like(old, taken),
    )
    return Composition(manifest, artefact_bytes(store, list(artefacts)), axis)


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
    """Artefacts for some fields: their scales, and other artefacts of their teachers or of no teacher."""

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


def choose_rows(
    store: FeatureStore,
    *,
    where: Sequence[str] = (),
    ids: Sequence[str] | None = None,
    rows: slice = slice(None),
    labelled_per_class: int = 0,
    seed: int = 0,
) -> Rows | range:
    """Rows that pass all of some conditions, in the order of the store.

    Args:
        where: Shell patterns over sample ids, ``*`` also spans slashes; a row is taken if any matches. And conditions
            such as ``confidence > .6`` on fields of one number (of several views, the canonical one, or the first);
            all must hold, and invalid rows are left out. All rows if empty.
        ids: Sample ids, e.g. of ``featstore select``; all if not given.
        labelled_per_class: Of the rows that are left, take so many valid ones of each class, all of different content;
            which ones depends on content and seed alone. 0: all, with and without labels.

    Raises:
        ConfigError: Nothing is left, or a class has too few.
        MissingSamples: Ids are not in the store.
    """
    taken: Rows | range = range(store.num_rows)[rows]
    if ids is not None:
        taken = np.intersect1d(np.asarray(taken, dtype=np.int64), store.rows_of(ids))
    conditions = [found for item in where if (found := CONDITION.fullmatch(item))]
    where = [item for item in where if not CONDITION.fullmatch(item)]
    for condition in conditions:
        taken = _holding(store, taken, condition)
    if where:
        span = taken
        names = ids_of(RowAxis((store,), span), len(span))
        matching = (
            row
            for row, sample_id in zip(span, names, strict=True)
            if any(fnmatchcase(sample_id, pattern) for pattern in where)
        )
        taken = np.fromiter(matching, dtype=np.int64)
    if not len(taken):
        patterns = " ".join(repr(item) for item in [*(c[0] for c in conditions), *where])
        some = [str(name) for _, name in zip(range(3), ids_of(whole(store), 3), strict=False)]
        raise ConfigError(
            f"{store.path}: none of its {store.num_rows:,} rows is left"
            + (
                f" by {patterns}. A pattern must match the whole id; ids look like"
                if patterns
                else "; ids are"
            )
            + f" {shorten(some)}."
        )
    return _per_class(store, taken, labelled_per_class, seed) if labelled_per_class else taken


def _holding(store: FeatureStore, taken: Rows | range, condition: re.Match[str]) -> Rows:
    """Valid rows in whose field of one number a condition holds; no other field is read."""
    name, sign, text = condition.groups()
    record = store.manifest.fields.get(name)
    if record is None or record.shape or record.dtype == "text":
        numbers = [n for n, f in store.manifest.fields.items() if not f.shape and f.dtype != "text"]
        raise ConfigError(
            f"{store.path}: {condition[0]!r}: no field {name!r} of one number; it has: {shorten(numbers) or 'none'}."
        )
    try:
        bound = float(text)
    except ValueError:
        raise ConfigError(f"{condition[0]!r}: {text!r} is no number.") from None
    rows = np.asarray(taken, dtype=np.int64)
    rows = rows[store.valid[rows]]
    views, canonical = store.manifest.views.views, View(kind="canonical")
    column = views.index(canonical) if canonical in views else 0
    values = store.gather(name, rows, views=[column] if record.per_view else None)
    held: npt.NDArray[np.bool_] = COMPARE[sign](np.asarray(values).reshape(len(rows)), bound)
    return rows[held]


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


def content_keys(store: FeatureStore, seed: int) -> npt.NDArray[np.uint64]:
    """(N,) pseudo-random number of each row: a function of the seed and its content hash, or of its id without one."""
    start = hashlib.sha256(f"featstore-split-1|{seed}|".encode())
    digests = bytearray()
    for row, content in enumerate(store.content_sha256):
        digest = start.copy()
        digest.update(content.tobytes() if content.any() else store.sample_ids[row].encode())
        digests += digest.digest()[:8]
    return np.frombuffer(bytes(digests), dtype="<u8")
