"""Make a store from the rows and columns of other stores.

A *composition* states, for every row of the new store, which row of which old store it is, and for every field, from
which store it comes and whether its numbers are converted. Merge, subset, append, convert and requantise differ in
nothing else. Memory holds a few shards, and 8 bytes a row where the order changes; every byte of the old stores is
compared with their ledgers.
"""

# n rows of a shard, N rows of the new store, V views

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from featstore.files.array_types import Array, Rows
from featstore.files.progress import Progress, no_progress
from featstore.format.artefacts import artefact_path
from featstore.format.fields import empty_columns, field_columns, put, put_ragged
from featstore.format.int8 import Channels
from featstore.format.manifest import Manifest, new_manifest
from featstore.format.manifest_records import RaggedEncoding, WorkRecord
from featstore.reading.store import FeatureStore
from featstore.reading.stored_rows import RowReader
from featstore.writing.fill import check_apart, make_store
from featstore.writing.shard import Shard, text_column

NO_ROW = -1  # no store of an axis has a row for a row of the new store
STEP_ROWS = 65_536  # rows that are read at a time where all rows of a store are needed


@dataclass(frozen=True, eq=False)
class RowAxis:
    """The old row of each row of the new store."""

    stores: tuple[FeatureStore, ...]
    # (N,) row numbers, counted through all stores one after another; ``NO_ROW`` where there is none
    rows: Rows | range
    missing: str = ""  # reason of missing rows, for the ledger
    prefixes: tuple[str, ...] = ()  # prefix of the sample ids of each store; none if empty

    @cached_property
    def starts(self) -> Rows:
        """(stores + 1,) number of the first row of each store, and of the one after the last."""
        counts = (store.num_rows for store in self.stores)
        return np.array([*accumulate(counts, initial=0)], dtype=np.int64)

    def at(self, span: range) -> Rows:
        """Old rows of some rows of the new store."""
        rows = self.rows[span.start : span.stop]
        return np.arange(rows.start, rows.stop, rows.step) if isinstance(rows, range) else rows

    def parts(self, span: range) -> Iterator[tuple[int, Rows, Rows]]:
        """For each store with any of some new rows: its index, places among the new rows, and its own row numbers."""
        rows = self.at(span)
        for i in range(len(self.stores)):
            at = np.flatnonzero((rows >= self.starts[i]) & (rows < self.starts[i + 1]))
            if at.size:
                yield i, at, rows[at] - self.starts[i]


def whole(store: FeatureStore) -> RowAxis:
    """All rows of a store, in order."""
    return RowAxis((store,), range(store.num_rows))


@dataclass(frozen=True)
class Composition:
    """Plan of a store that is made of others."""

    manifest: Manifest
    artefacts: Mapping[str, bytes]  # bytes of the files that the manifest lists, by name
    samples: RowAxis  # axis of ids, hashes and, unless given, labels
    # by name, the axis of the values and the name of the field there; by default ``samples`` and the same name. A row
    # is valid if it is valid in all.
    fields: Mapping[str, tuple[RowAxis, str]] = field(default_factory=dict)
    labels: Rows | None = None  # (N,) int64 if they differ from those of ``samples``
    # by name of a field whose numbers change, a function that reads rows of an old store as new values
    conversions: Mapping[str, Callable[[RowReader, Rows], Array]] = field(default_factory=dict)
    # by name of a converted field, its scales per channel
    channels: Mapping[str, Channels] = field(default_factory=dict)

    def __post_init__(self) -> None:
        same = {name: (self.samples, name) for name in self.manifest.fields}
        object.__setattr__(self, "fields", self.fields or same)

    @property
    def axes(self) -> list[RowAxis]:
        return list(dict.fromkeys([self.samples, *(axis for axis, _ in self.fields.values())]))


class ShardMaker:
    """Makes the shards of a composition, in any order."""

    def __init__(self, plan: Composition) -> None:
        self._plan = plan
        self._readers = Readers()

    def __call__(self, number: int) -> Shard:
        """Make one shard; every byte is compared with the ledger of its store."""
        plan, span = self._plan, self._plan.manifest.shard_range(number)
        columns = empty_columns(plan.manifest, number)
        found: list[list[str]] = [[] for _ in span]
        for axis in plan.axes:
            self._add_reasons(axis, span, found)
        reasons = ["; ".join(dict.fromkeys(several)) if several else None for several in found]
        self._put_samples(span, columns)
        bad = np.array([reason is not None for reason in reasons])
        columns["valid"][:] = ~bad
        for name in plan.manifest.fields:
            self._put_field(name, number, columns, bad)
        return Shard(number, columns, reasons, {})

    def _add_reasons(self, axis: RowAxis, span: range, found: Sequence[list[str]]) -> None:
        for i in np.flatnonzero(axis.at(span) == NO_ROW).tolist():
            found[i].append(axis.missing)
        for store, at, rows in axis.parts(span):
            for i, reason in zip(
                at.tolist(), self._readers[axis.stores[store]].reasons(rows), strict=True
            ):
                if reason is not None:
                    found[i].append(reason)

    def _put_samples(self, span: range, columns: dict[str, Array]) -> None:
        samples = self._plan.samples
        for store, at, rows in samples.parts(span):
            reader = self._readers[samples.stores[store]]
            columns["sample_id"][at] = _named(samples, store, reader.texts("sample_id", rows))
            columns["content_sha256"][at] = reader.numbers("content_sha256", rows)
            if "label" in columns and self._plan.labels is None:
                columns["label"][at] = reader.numbers("label", rows)
        if self._plan.labels is not None:
            columns["label"][:] = self._plan.labels[span.start : span.stop]

    def _put_field(self, name: str, number: int, columns: dict[str, Array], bad: Array) -> None:
        manifest = self._plan.manifest
        record, span = manifest.fields[name], manifest.shard_range(number)
        axis, old = self._plan.fields[name]
        if isinstance(record.encoding, RaggedEncoding):
            self._put_ragged(name, number, columns, bad)
            return
        if name in self._plan.conversions:
            for store, at, rows in axis.parts(span):
                found = self._plan.conversions[name](self._readers[axis.stores[store]], rows)
                put(manifest, columns, name, at, found, channels=self._plan.channels.get(name))
            for column in field_columns(name, record, len(manifest.views)):
                columns[column.name][bad] = 0
            return
        for column in field_columns(name, record, len(manifest.views)):
            before = f"fields/{old}" + column.name.removeprefix(f"fields/{name}")
            values = columns[column.name]
            for store, at, rows in axis.parts(span):
                reader = self._readers[axis.stores[store]]
                read = reader.texts if column.dtype is None else reader.numbers
                if len(at) == len(values):
                    values = columns[column.name] = read(before, rows)  # no second copy
                else:
                    values[at] = read(before, rows)
            if column.dtype is not None:
                values[bad] = 0

    def _put_ragged(self, name: str, number: int, columns: dict[str, Array], bad: Array) -> None:
        manifest = self._plan.manifest
        record, span = manifest.fields[name], manifest.shard_range(number)
        assert isinstance(record.encoding, RaggedEncoding), name
        axis, old = self._plan.fields[name]
        num_views = len(manifest.views) if record.per_view else 1
        empty = columns[f"fields/{name}/values"]
        items = [[empty] * num_views for _ in span]
        for store, at, rows in axis.parts(span):
            good = ~bad[at]
            ragged = self._readers[axis.stores[store]].ragged(old, rows[good])
            ends = ragged.offsets[1:].reshape(-1, num_views).tolist()
            start = 0
            for row, stops in zip(at[good].tolist(), ends, strict=True):
                for view, stop in enumerate(stops):
                    items[row][view] = ragged.values[start:stop]
                    start = stop
        put_ragged(
            manifest, columns, name, number, items if record.per_view else [one for (one,) in items]
        )


class Readers:
    """Readers of stores, created at first use."""

    def __init__(self) -> None:
        self._of: dict[int, RowReader] = {}  # they keep their stores alive, so ids are not reused

    def __getitem__(self, store: FeatureStore) -> RowReader:
        if id(store) not in self._of:
            self._of[id(store)] = RowReader(store.storage)
        return self._of[id(store)]


def ids_of(axis: RowAxis, num_rows: int) -> Iterator[str]:
    """Yield the sample ids of an axis without missing rows, in the order of the new store, block by block."""
    readers = Readers()
    for start in range(0, num_rows, STEP_ROWS):
        span = range(start, min(start + STEP_ROWS, num_rows))
        ids = text_column([""] * len(span))
        for store, at, rows in axis.parts(span):
            ids[at] = _named(axis, store, readers[axis.stores[store]].texts("sample_id", rows))
        yield from ids


def _named(axis: RowAxis, store: int, ids: Array) -> Array:
    return text_column([axis.prefixes[store] + name for name in ids]) if axis.prefixes else ids


def cut_like(old: Manifest, rows: Rows | range) -> WorkRecord:
    """Shards of a part of a store: of the same size; shards that mirror tars are kept if the rows are in order.

    Args:
        rows: (n,) rows of the part, in its order.
    """
    cut = WorkRecord(shard_rows=old.work.shard_rows, batch_size=old.work.batch_size)
    taken = np.asarray(rows, dtype=np.int64)
    if not old.work.shard_sizes or (np.diff(taken) <= 0).any():
        return cut
    counts = np.bincount(old.shards_of(taken), minlength=old.num_shards)
    kept = np.flatnonzero(counts).tolist()
    names = old.work.shard_names
    return WorkRecord(
        shard_rows=int(counts.max()),
        batch_size=old.work.batch_size,
        shard_sizes=tuple(counts[kept].tolist()),
        shard_names=tuple(names[shard] for shard in kept) if names else (),
    )


def derived(old: Manifest, created_by: Mapping[str, str], **changes: Any) -> Manifest:
    """A new manifest with the parts of an old one, but for some that change.

    Args:
        created_by: Entries that are added to those of the old store.
    """
    names = ("teachers", "views", "fields", "artefacts", "source", "work", "container")
    parts = {name: getattr(old, name) for name in names}
    return new_manifest(**{**parts, **changes}, created_by={**old.created_by, **created_by})


def artefact_bytes(store: FeatureStore, names: Sequence[str]) -> dict[str, bytes]:
    """Bytes of artefacts of a store, after their hashes were compared.

    Raises:
        ShardCorrupt: An artefact is missing or damaged.
    """
    found = {}
    for name in names:
        store.artefact(name)
        found[name] = artefact_path(store.path, name).read_bytes()
    return found


def compose(plan: Composition, out: Path, *, progress: Progress = no_progress) -> Manifest:
    """Write a composition as a new store, or resume.

    Raises:
        ConfigError: ``out`` is one of the old stores, or a folder inside one.
    """
    check_apart(out, *(store.path for axis in plan.axes for store in axis.stores))
    make = ShardMaker(plan)
    return make_store(out, plan.manifest, plan.artefacts, make, progress=progress)
