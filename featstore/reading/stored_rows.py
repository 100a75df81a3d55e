"""Any rows of any column of a store, valid or not, as they are stored: what a new store is made of.

``FeatureStore.gather`` gives what a model may be trained on; this gives what can be written again. Every byte is
compared to the ledger before it is used. Reads are sorted, so that rows in any order cost one pass over their shards,
and memory holds the rows that were asked for and a few shards of texts.
"""

# n rows that are asked for, V views, T items

from collections import OrderedDict
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

import featstore.files.machine as memory
from featstore.containers import ColumnReader, make_backend
from featstore.containers.base import Array, Rows
from featstore.errors import ShardCorrupt
from featstore.format.fields import Ragged
from featstore.reading.store import FeatureStore

MOST_MAPPED = 16_384
"""Objects that are mapped at a time: Linux allows a process 65,530 mappings, and two stores may be in work."""

HELD_BYTES = 256 * 2**20
"""Of texts and ragged items, at most so much is held decoded; the latest shard always."""

TEXT_BYTES = 60
"""What a text takes in memory besides its letters."""


class RowReader:
    """Reads rows of one store.

    Args:
        store: that was opened.
    """

    def __init__(self, store: FeatureStore) -> None:
        self.store = store
        self.manifest = store.manifest
        self._backend = make_backend(store.path, store.manifest)
        self._readers: dict[str, ColumnReader] = {}
        self._mapped: set[tuple[str, int]] = set()
        self._held: OrderedDict[tuple[str, int], tuple[Array, int]] = OrderedDict()
        self._held_bytes = 0

    def numbers(self, name: str, rows: Rows) -> Array:
        """Rows of a column of numbers with one entry per row.

        Args:
            name: of the column.
            rows: (n,) in any order, repeats allowed.

        Returns:
            (n, *shape of the column).

        Raises:
            ShardCorrupt: bytes are not those that were written.
        """
        column = self._backend.columns[name]
        assert column.dtype is not None
        out = memory.empty((len(rows), *column.shape), column.dtype, where=self.store.path)
        if not len(rows):
            return out
        order = np.argsort(rows, kind="stable")
        ordered = rows[order]
        reader = self._prepared(name, ordered)
        if np.array_equal(ordered, rows):
            reader.take(rows, out)
            return out
        found = np.empty_like(out)
        reader.take(ordered, found)
        out[order] = found
        return out

    def texts(self, name: str, rows: Rows) -> Array:
        """Rows of a column of text, (n, *shape) objects.

        Raises:
            ShardCorrupt: bytes are not those that were written.
        """
        shape = self._backend.columns[name].shape
        out = memory.empty((len(rows), *shape), object, where=self.store.path)
        for shard, at in self._by_shard(rows):
            texts = self._shard_column(name, shard)
            out[at] = texts[rows[at] - self.manifest.shard_range(shard).start]
        return out

    def ragged(self, field: str, rows: Rows) -> Ragged:
        """Rows of a ragged field; V is 1 where it is not per view.

        Raises:
            ShardCorrupt: bytes are not those that were written, or ranges point outside of their shard.
        """
        column = self._backend.columns[f"fields/{field}/values"]
        record = self.manifest.fields[field]
        num_views = len(self.manifest.views) if record.per_view else 1
        ranges = self.numbers(f"fields/{field}/ranges", rows).reshape(len(rows), num_views, 2)
        lengths = ranges[..., 1] - ranges[..., 0]
        parts, place = [], np.zeros(ranges.shape[:2], dtype=np.int64)
        done = 0
        for shard, at in self._by_shard(rows):
            items = self._shard_column(f"fields/{field}/values", shard)
            first = ranges[at, :, 0] - shard * self.manifest.work.shard_rows * column.capacity
            if (
                (first < 0).any()
                or (lengths[at] < 0).any()
                or (first + lengths[at]).max() > len(items)
            ):
                raise ShardCorrupt(
                    f'{self.store.path}: shard {shard}, field "{field}": ranges outside of its {len(items)} items. '
                    "The ledger's checksums agree: it was written so."
                )
            parts.append(items[spans(first, lengths[at])])
            place[at] = done + starts_of(lengths[at])
            done += len(parts[-1])
        found = np.concatenate([np.empty((0, *column.shape), dtype=column.dtype), *parts])
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        return Ragged(found[spans(place, lengths)], offsets)

    def reasons(self, rows: Rows) -> list[str | None]:
        """Why each row has no usable feature; None where it has.

        Raises:
            ShardCorrupt: bytes are not those that were written.
        """
        valid = self.numbers("valid", rows)
        found: list[str | None] = [None] * len(rows)
        bad = np.flatnonzero(~valid)
        for shard, at in self._by_shard(rows[bad]):
            said = {item.row: item.reason for item in self.store.entry(shard).invalid}
            for i in bad[at].tolist():
                found[i] = said.get(int(rows[i]), "not valid, no reason given")
        return found

    def _by_shard(self, rows: Rows) -> Iterator[tuple[int, Rows]]:
        """Shards that hold some rows, ascending, and which of the rows each holds."""
        shards = self.manifest.shards_of(rows)
        order = np.argsort(shards, kind="stable")
        numbers, first = np.unique(shards[order], return_index=True)
        # Of no rows there is one empty part and no number.
        yield from zip(numbers.tolist(), np.split(order, first[1:]), strict=False)

    def _prepared(self, name: str, rows: Rows) -> ColumnReader:
        """A reader of a column, with the blocks of some rows compared to the ledger."""
        if len(self._mapped) > MOST_MAPPED:
            self._readers.clear()
            self._mapped.clear()
            self._held.clear()
            self._held_bytes = 0
            self._backend = make_backend(self.store.path, self.manifest)
        if name not in self._readers:
            self._readers[name] = self._backend.open_column(name)
        reader = self._readers[name]
        new = reader.unprepared(rows)
        for shard, at in self._by_shard(new):
            reader.prepare(shard, self.store.entry(shard).objects, new[at])
            self._mapped.add((name, shard))
        return reader

    def _shard_column(self, name: str, shard: int) -> Array:
        """One column of one shard, kept for a while: texts and items have no rows to read one by one."""
        key = (name, shard)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key][0]
        values = self._backend.read_shard(shard, name, self.store.entry(shard).objects)
        self._held[key] = values, _memory(values)
        self._held_bytes += self._held[key][1]
        while len(self._held) > 1 and self._held_bytes > HELD_BYTES:
            self._held_bytes -= self._held.popitem(last=False)[1][1]
        return values


def starts_of(lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each of some spans begins when they lie one after another; of the same shape."""
    ends = np.cumsum(lengths).reshape(lengths.shape)
    starts: npt.NDArray[np.int64] = ends - lengths
    return starts


def spans(starts: npt.NDArray[np.int64], lengths: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Positions of spans, one span after another: from each start as many as its length."""
    flat = lengths.reshape(-1)
    shift = (starts - starts_of(lengths)).reshape(-1)
    return np.repeat(shift, flat) + np.arange(int(flat.sum()))


def _memory(values: Array) -> int:
    """Memory of a column of a shard, at most."""
    if values.dtype == object:
        return sum(TEXT_BYTES + len(text) for text in values.reshape(-1))
    return values.nbytes
