"""WebDataset container: one tar per shard, one npy member per field and sample, readable by webdataset and by tar.

Stock readers get ``KEY.FIELD.npy`` and ``KEY.json``. We read the same bytes by position: members of fixed size lie at
the same place in every sample, and an index at the head of each tar, which webdataset passes over, says where samples
begin. So a row is found without a walk through headers, and all tars are mapped into one range of addresses.

This file is named after the format; the library of that name is not used.
"""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

import featstore.files.machine as memory
from featstore.containers.address_range import EndToEnd
from featstore.containers.base import Backend, ColumnReader, EncodedObject
from featstore.containers.block_checksums import ObjectFile, map_file
from featstore.containers.tar_layout import FOLDER, TarLayout
from featstore.containers.tar_reader import TarShard
from featstore.containers.tar_writer import TarEncoder, as_bytes
from featstore.errors import ShardCorrupt, StoreError
from featstore.files.array_types import Array, Bytes, Rows
from featstore.files.tar_headers import END
from featstore.files.thread_lock import ThreadLock
from featstore.format.fields import Column, check_columns
from featstore.format.ledger import ObjectRecord, entry_path, read_entry
from featstore.format.manifest import Manifest

CHECK_BYTES = 256 * 1024  # bytes of a tar that share a checksum

_RANGES = (2**44, 2**42, 2**40, 2**38, 2**36, 2**34, 2**32)
"""Addresses to reserve, the first that the machine grants; they take no memory."""

_WINDOW_BYTES = 16 * 1024
"""Rows up to this size are gathered many at a time; larger ones one by one, which saves a copy."""

_COPY_BYTES = 256 * 1024
"""Small rows are gathered in groups of this size, which stay in the processor's cache on the way."""

_NO_ROWS = np.empty(0, dtype=np.int64)


class WebDatasetBackend(Backend):
    """Samples in tars, in the order of the store's rows."""

    def __init__(self, store: Path, manifest: Manifest) -> None:
        """See ``Backend``. Raises ConfigError: a sample cannot have members with these names or sizes."""
        super().__init__(store, manifest)
        self.layout = TarLayout(manifest)
        self._shards: dict[int, TarShard] = {}
        self.lock = ThreadLock()
        self._range: EndToEnd | None = None
        # Address of each row's sample, made once a tar turns up whose samples differ in size.
        self._samples: Rows | None = None

    def create(self) -> None:
        """Make the folder of the tars; they need nothing else."""
        (self.store / FOLDER).mkdir()

    def object_names(self, shard: int) -> list[str]:
        return [self.layout.object_name(shard)]

    def object_of(self, shard: int, column: str) -> str:
        """See ``Backend.object_of``; a tar holds all columns."""
        return self.layout.object_name(shard)

    def forget(self, shard: int) -> None:
        self._shards.pop(shard, None)

    def encode(self, shard: int, columns: Mapping[str, Array]) -> Iterator[EncodedObject]:
        """See ``Backend.encode``.

        Raises:
            StoreError: the shard mirrors a tar of images, and a sample is not of that tar.
        """
        check_columns(self.columns, columns)
        rows = len(self.manifest.shard_range(shard))
        for name, column in self.columns.items():
            assert column.capacity > 1 or len(columns[name]) == rows, (name, len(columns[name]))
            assert columns[name].shape[1:] == column.shape, (name, columns[name].shape)
        parts = TarEncoder(self.layout, shard, columns).parts()
        yield EncodedObject(self.layout.object_name(shard), parts, CHECK_BYTES)

    def open_column(self, column: str) -> ColumnReader:
        spec = self.columns[column]
        if column in self.layout.fixed:
            return _MemberColumn(self, spec)
        assert spec.dtype is not None, column
        assert column in self.layout.indexed, column
        return _IndexColumn(self, spec)

    def read_shard(self, shard: int, column: str, objects: Mapping[str, ObjectRecord]) -> Array:
        tar = self.open_shard(shard, objects)
        spec = self.columns[column]
        if column in self.layout.indexed:
            return tar.column(column)
        if column in self.layout.ragged:
            return tar.items(spec)
        local = np.arange(len(tar.rows))
        tar.check_rows(spec, local)
        starts = tar.begin(local) + tar.place(column).data
        # A mapping of its own: it may outlive this object.
        with tar.file.opened() as handle:
            data = map_file(handle, tar.file.record.bytes)
        if tar.stride is not None and spec.dtype is not None:
            sizes = [math.prod(spec.shape[i + 1 :]) for i in range(len(spec.shape))]
            strides = (tar.stride, *(size * spec.dtype.itemsize for size in sizes))
            shape = (len(local), *spec.shape)
            return np.ndarray(shape, spec.dtype, data, int(starts[0]), strides)
        found = np.empty((len(local), *spec.shape), spec.dtype)
        _copy_each(data, starts, found)
        return found

    def open_shard(self, shard: int, objects: Mapping[str, ObjectRecord]) -> TarShard:
        """The tar of a shard, its size compared and its index read.

        Raises:
            ShardCorrupt: the ledger does not list it, it has another size, or its index is not what it should be.
        """
        with self.lock:
            if shard not in self._shards:
                self._shards[shard] = self._open_shard(shard, objects)
            return self._shards[shard]

    def _open_shard(self, shard: int, objects: Mapping[str, ObjectRecord]) -> TarShard:
        name = self.layout.object_name(shard)
        if name not in objects:
            raise ShardCorrupt(f"{entry_path(self.store, shard)}: the entry lacks {name}.")
        record, rows = objects[name], self.manifest.shard_range(shard)
        what = f"shard {shard} (rows {rows.start}-{rows.stop - 1}), all columns"
        file = ObjectFile(self.store, name, record, lambda start, stop: what)
        if record.bytes < len(END):
            raise file.corrupt(f"{record.bytes:,} bytes are no tar")
        tar = TarShard(self.layout, shard, file, self.addresses())
        self._note_samples(tar)
        return tar

    def _note_samples(self, tar: TarShard) -> None:
        new, samples = [tar], self._samples
        if samples is None:
            if tar.stride is not None:
                return
            samples = memory.zeros((self.manifest.num_rows,), np.int64, where=self.store)
            new += self._shards.values()
        for item in new:
            local = np.arange(len(item.rows))
            samples[item.rows.start : item.rows.stop] = item.base + item.begin(local)
        self._samples = samples  # last, because other threads look without the lock

    def addresses(self) -> EndToEnd:
        """The range into which tars are mapped. Raises StoreError: the system refuses to reserve it."""
        with self.lock:
            if self._range is None:
                try:
                    self._range = EndToEnd(_RANGES)
                except OSError:
                    raise StoreError(
                        f"{self.store}: no addresses to map tars into. Lift the limit (ulimit -v)."
                    ) from None
            return self._range

    def samples(self) -> Rows | None:
        """(N,) address of each row's sample, for tars that were opened; None while a stride says it."""
        return self._samples

    def holds(self, shard: int, name: str, start: int, stop: int) -> tuple[str, range]:
        try:
            tar = self.open_shard(shard, read_entry(self.store, shard).objects)
        except StoreError:  # too damaged to say more
            return "all columns", self.manifest.shard_range(shard)
        return tar.holds(start, stop)


class _MemberColumn(ColumnReader):
    """Rows of a column with one member of fixed size per sample."""

    def __init__(self, backend: WebDatasetBackend, column: Column) -> None:
        self.backend, self.column = backend, column
        # Untouched pages of these take no memory.
        self._ready = memory.zeros((backend.manifest.num_rows,), np.bool_, where=backend.store)
        # Row r of a shard lies at first + r * stride, or at place from the begin of its sample on.
        self._first = np.zeros(backend.manifest.num_shards, dtype=np.int64)
        self._stride = np.zeros(backend.manifest.num_shards, dtype=np.int64)
        self._place = np.zeros(backend.manifest.num_shards, dtype=np.int64)
        self._addresses = backend.addresses().bytes
        self._windows = None
        if column.entry_bytes <= _WINDOW_BYTES:
            self._windows = sliding_window_view(self._addresses, column.entry_bytes)

    def unprepared(self, rows: Rows) -> Rows:
        ready = self._ready[rows]
        return _NO_ROWS if ready.all() else rows[~ready]

    def prepare(self, shard: int, objects: Mapping[str, ObjectRecord], rows: Rows) -> None:
        with self.backend.lock:
            tar = self.backend.open_shard(shard, objects)
            start = tar.rows.start
            local = np.unique(rows) - start
            tar.check_rows(self.column, local)
            ready = self._ready[start : tar.rows.stop]
            self._place[shard] = tar.place(self.column.name).data
            if tar.stride is not None:
                first = tar.base + int(tar.begin(np.zeros(1, np.int64))[0]) + self._place[shard]
                self._stride[shard] = tar.stride
                self._first[shard] = first - start * tar.stride
            ready[local] = True
            ready[tar.also_checked(self.column, ready)] = True

    def forget(self, shard: int) -> None:
        rows = self.backend.manifest.shard_range(shard)
        self._ready[rows.start : rows.stop] = False

    def take(self, rows: Rows, out: Array) -> None:
        shards = self.backend.manifest.shards_of(rows)
        samples = self.backend.samples()
        if samples is None:
            at = self._first[shards] + rows * self._stride[shards]
        else:
            at = samples[rows] + self._place[shards]
        if self._windows is None:
            _copy_each(self._addresses, at, out)
            return
        flat = as_bytes(out)
        step = _COPY_BYTES // self.column.entry_bytes
        for i in range(0, len(rows), step):
            flat[i : i + step] = self._windows[at[i : i + step]]


class _IndexColumn(ColumnReader):
    """Rows of a column of numbers that is in the index."""

    def __init__(self, backend: WebDatasetBackend, column: Column) -> None:
        self.backend, self.column = backend, column
        self._shards: dict[int, Array] = {}
        self._ready = np.zeros(backend.manifest.num_shards, dtype=np.bool_)

    def unprepared(self, rows: Rows) -> Rows:
        ready = self._ready[self.backend.manifest.shards_of(rows)]
        return _NO_ROWS if ready.all() else rows[~ready]

    def prepare(self, shard: int, objects: Mapping[str, ObjectRecord], rows: Rows) -> None:
        self._shards[shard] = self.backend.read_shard(shard, self.column.name, objects)
        self._ready[shard] = True

    def forget(self, shard: int) -> None:
        self._ready[shard] = False

    def take(self, rows: Rows, out: Array) -> None:
        manifest = self.backend.manifest
        shards = manifest.shards_of(rows)
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            out[chosen] = self._shards[shard][rows[chosen] - manifest.shard_range(shard).start]


def _copy_each(data: Bytes, starts: Rows, out: Array) -> None:
    """Copy rows one by one from where they start."""
    flat = as_bytes(out)
    size = flat.shape[1]
    for row, start in enumerate(starts.tolist()):
        flat[row] = data[start : start + size]
