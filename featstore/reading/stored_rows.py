"""Any rows of any column of a store, valid or not, as they are stored.

``FeatureStore.gather`` reads through this and refuses invalid rows; derived stores read all rows through it.
Every byte is compared to the ledger before it is used. Safe to use in several threads, and after a fork.
"""

# n rows that are asked for, V views, T items

import mmap
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

import featstore.files.machine as memory
from featstore.containers import ColumnReader, make_backend
from featstore.errors import ShardCorrupt
from featstore.files.array_types import Array, Rows
from featstore.files.thread_lock import ThreadLock
from featstore.format.fields import Ragged
from featstore.reading.shards import Shards

MOST_MAPPED = 16_384
"""Objects that are mapped at a time by ``RowReader``: Linux allows a process 65,530 mappings, and two stores may be
read."""

HELD_BYTES = 256 * 2**20
"""Of texts and ragged items, at most so much is held decoded; the latest shard always."""

TEXT_BYTES = 60  # what a text takes in memory besides its letters
Check = Callable[[Rows], None]  # called with rows that are read for the first time


def accept(rows: Rows) -> None:
    """Accept any rows."""


class StoredRows:
    """Reads rows of one store."""

    def __init__(self, shards: Shards) -> None:
        self.shards, self.manifest = shards, shards.manifest
        self.backend = shards.backend
        self._readers: dict[str, ColumnReader] = {}
        self._held: OrderedDict[tuple[str, int], tuple[Array, int]] = OrderedDict()
        self._held_bytes = 0
        self._lock = ThreadLock(self._drop_held)
        shards.on_forget(self._forget)

    def copy(
        self, name: str, rows: Rows, out: Array, views: Rows | None = None, check: Check = accept
    ) -> None:
        """Copy rows of a column of numbers with one entry per row.

        Args:
            rows: (n,) in any order, repeats allowed.
            out: (n, *shape of the column), or (n, k, *shape without its first axis) with ``views``; contiguous.
            views: (n, k) on the first axis of an entry.
            check: Called with those of the rows that were not read before, and before they are read.
        """
        if not len(rows):
            return
        if self.shards.evicts:
            self.shards.run(partial(self._copy, name, rows, out, views, check))
            self.shards.note(name, rows)
            return
        try:
            self._copy(name, rows, out, views, check)
        except ShardCorrupt as error:
            self.shards.check_unchanged(error)
            raise

    def _copy(self, name: str, rows: Rows, out: Array, views: Rows | None, check: Check) -> None:
        reader = self._readers.get(name) or self._open(name)
        new = reader.unprepared(rows)
        if new.size:
            check(new)
            # All that the rows need, so that nothing of it is evicted for the rest.
            self.shards.bring(name, np.unique(self.manifest.shards_of(rows)))
            for shard, at in self.by_shard(new):
                reader.prepare(shard, self.shards.entry(shard).objects, new[at])
        if views is None:
            reader.take(rows, out)
        else:
            reader.take_views(rows, views, out)

    def _open(self, name: str) -> ColumnReader:
        with self._lock:
            if name not in self._readers:
                self._readers[name] = self.backend.open_column(name)
            return self._readers[name]

    def _forget(self, shard: int) -> None:
        for reader in list(self._readers.values()):
            reader.forget(shard)

    def numbers(self, name: str, rows: Rows) -> Array:
        """Rows of a column of numbers with one entry per row, (n, *shape of the column)."""
        column = self.backend.columns[name]
        assert column.dtype is not None
        out = memory.empty((len(rows), *column.shape), column.dtype, where=self.shards.address)
        self.copy(name, rows, out)
        return out

    def texts(self, name: str, rows: Rows) -> Array:
        """Rows of a column of text, (n, *shape) objects."""
        shape = self.backend.columns[name].shape
        out = memory.empty((len(rows), *shape), object, where=self.shards.address)
        for shard, at in self.by_shard(rows):
            texts = self._shard_column(name, shard)
            out[at] = texts[rows[at] - self.manifest.shard_range(shard).start]
        return out

    def ragged(self, field: str, rows: Rows, views: Rows | None = None) -> Ragged:
        """Rows of a ragged field; V is 1 where it is not per view.

        Args:
            rows: (n,) in any order, repeats allowed.
            views: (n, k) columns of the view axis; all if not given.

        Raises:
            ShardCorrupt: Bytes are not those that were written, or ranges point outside of their shard.
        """
        column = self.backend.columns[f"fields/{field}/values"]
        record = self.manifest.fields[field]
        num_views = len(self.manifest.views) if record.per_view else 1
        ranges = self.numbers(f"fields/{field}/ranges", rows).reshape(len(rows), num_views, 2)
        if views is not None:
            ranges = ranges[np.arange(len(rows))[:, None], views]
        lengths = ranges[..., 1] - ranges[..., 0]
        found: list[Array] = [np.empty((0, *column.shape), dtype=column.dtype)] * lengths.size
        for shard, at in self.by_shard(rows):
            items = self._shard_column(f"fields/{field}/values", shard)
            first = ranges[at, :, 0] - shard * self.manifest.work.shard_rows * column.capacity
            wrong = (first < 0) | (lengths[at] < 0) | (first + lengths[at] > len(items))
            if wrong.any():
                row = int(rows[at][wrong.any(axis=1)][0])
                raise ShardCorrupt(
                    f'{self.shards.address}: row {row}, field "{field}": its ranges are outside of the {len(items)} '
                    f"items of shard {shard}. The ledger's checksums agree: it was written so."
                )
            last = first + lengths[at]
            for row, starts, ends in zip(at.tolist(), first.tolist(), last.tolist(), strict=True):
                for view, (start, end) in enumerate(zip(starts, ends, strict=True)):
                    found[row * lengths.shape[1] + view] = items[start:end]
        values = np.concatenate([np.empty((0, *column.shape), dtype=column.dtype), *found])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(values, offsets)

    def reasons(self, rows: Rows) -> list[str | None]:
        """Why each row has no usable feature; None where it has."""
        valid = self.numbers("valid", rows)
        found: list[str | None] = [None] * len(rows)
        bad = np.flatnonzero(~valid)
        for shard, at in self.by_shard(rows[bad]):
            reasons = {item.row: item.reason for item in self.shards.entry(shard).invalid}
            for i in bad[at].tolist():
                found[i] = reasons.get(int(rows[i]), "not valid, no reason given")
        return found

    def by_shard(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Shards that hold some rows, ascending, and which of the rows each holds."""
        shards = self.manifest.shards_of(rows)
        order = np.argsort(shards, kind="stable")
        numbers, first = np.unique(shards[order], return_index=True)
        # Of no rows there is one empty part and no number.
        yield from zip(numbers.tolist(), np.split(order, first[1:]), strict=False)

    def _shard_column(self, name: str, shard: int) -> Array:
        """One column of one shard, kept for a while: texts and items have no rows to read one by one."""
        key = (name, shard)
        with self._lock:
            if key in self._held:
                self._held.move_to_end(key)
                return self._held[key][0]
        values = self.shards.read_shard(shard, name)
        size = _memory(values)
        with self._lock:
            if key not in self._held:
                self._held[key] = values, size
                self._held_bytes += size
            while len(self._held) > 1 and self._held_bytes > HELD_BYTES:
                self._held_bytes -= self._held.popitem(last=False)[1][1]
        return values

    def _drop_held(self) -> None:
        self._held.clear()
        self._held_bytes = 0


class RowReader(StoredRows):
    """Reads rows of one store for a new one: rows in any order cost one pass over their shards. For one thread."""

    def __init__(self, shards: Shards) -> None:
        super().__init__(shards)
        self._mapped: set[tuple[str, int]] = set()
        self._renew()

    def _renew(self) -> None:
        self._readers.clear()
        self._mapped.clear()
        self._drop_held()
        self.backend = make_backend(self.shards.path, self.manifest)

    def numbers(self, name: str, rows: Rows) -> Array:
        """See ``StoredRows.numbers``; reads in ascending order."""
        if len(self._mapped) > MOST_MAPPED:
            self._renew()
        self._mapped |= {
            (name, shard) for shard in np.unique(self.manifest.shards_of(rows)).tolist()
        }
        order = np.argsort(rows, kind="stable")
        found = super().numbers(name, rows[order])
        if np.array_equal(rows[order], rows):
            return found
        out = np.empty_like(found)
        out[order] = found
        return out


def _memory(values: Array) -> int:
    """Memory of a column of a shard; a view of a mapped file takes none."""
    if values.dtype == object:
        return sum(TEXT_BYTES + len(text) for text in values.reshape(-1))
    base: Any = values
    while base is not None and not isinstance(base, mmap.mmap):
        base = base.obj if isinstance(base, memoryview) else getattr(base, "base", None)
    return values.nbytes if base is None else 0
