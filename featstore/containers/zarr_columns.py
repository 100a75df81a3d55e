"""Rows of columns in the Zarr container: memory-mapped, or decoded chunk by chunk."""

import math
import os
import struct
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import google_crc32c
import numpy as np

import featstore.files.machine as memory
from featstore.containers.address_range import SideBySide
from featstore.containers.base import ColumnReader
from featstore.containers.block_checksums import ObjectFile, map_file
from featstore.containers.zarr_chunks import EMPTY, codec_of, raw_bytes
from featstore.containers.zarr_layout import ZarrLayout
from featstore.errors import StoreError
from featstore.files.array_types import Array, Rows
from featstore.files.limits import cores
from featstore.files.thread_lock import ThreadLock
from featstore.format.fields import Column
from featstore.format.ledger import ObjectRecord

CACHE_BYTES = 128 * 2**20  # decoded chunks of one compressed column that are kept
PARALLEL_CHUNKS = 8  # from so many chunks on, they are decoded on all processors

_NO_ROWS = np.empty(0, dtype=np.int64)


class Chunks:
    """The inner chunks of one shard object, found through its index."""

    def __init__(
        self, backend: ZarrLayout, shard: int, column: Column, file: ObjectFile, handle: int
    ) -> None:
        assert column.dtype is not None
        self.entries = backend.chunk_entries(column)
        self._column, self._file = column, file
        self._rows = len(backend.manifest.shard_range(shard))
        record = file.record
        slots = backend.shard_entries(column) // self.entries
        size = 16 * slots + 4
        if record.bytes < size:
            self.fail(f"{record.bytes:,} bytes are too few for an index of {slots} chunks")
        first = (record.bytes - size) // record.block_bytes
        file.check(handle, range(first, record.num_blocks))
        data = os.pread(handle, size, record.bytes - size)
        body = data[:-4]
        if len(data) != size or struct.unpack("<I", data[-4:])[0] != google_crc32c.value(body):
            self.fail("the index of its chunks does not match its own checksum")
        index = np.frombuffer(body, dtype="<u8").reshape(slots, 2)
        self.count = int((index[:, 0] != EMPTY).sum())
        used = index[: self.count]
        end = record.bytes - size
        whole = used[:, 1] <= end
        if not (whole.all() and (used[:, 0] <= end - np.where(whole, used[:, 1], 0)).all()):
            self.fail("the index of its chunks points outside of the payload")
        if column.capacity == 1 and self.count != -(-self._rows // self.entries):
            self.fail(f"{self.count} chunks, expected {-(-self._rows // self.entries)}")
        if column.codec == "raw":
            step = self.entries * column.entry_bytes
            expected = np.arange(self.count, dtype=np.uint64) * np.uint64(step)
            if (used[:, 0] != expected).any() or (used[:, 1] != step).any():
                self.fail("its chunks do not lie one after another")
        self.index = used.astype(np.int64)

    def fail(self, problem: str) -> None:
        """Refuse the object."""
        raise self._file.corrupt(problem)

    def blocks(self, chunk: int) -> range:
        """Blocks of the ledger that hold a chunk."""
        start, size = (int(value) for value in self.index[chunk])
        block = self._file.record.block_bytes
        return range(start // block, -(-(start + size) // block))

    def decode(self, chunk: int, *, out: Array) -> Array:
        """One chunk, into contiguous (entries of a chunk, *shape) little-endian numbers."""
        start, size = (int(value) for value in self.index[chunk])
        with self._file.opened() as handle:
            data = os.pread(handle, size, start)
        try:
            # Into memory of the size that the manifest states, whatever the frame claims.
            done = codec_of(self._column).decode(data, out=raw_bytes(out))
            if done is not None and len(memoryview(done).cast("B")) != out.nbytes:
                raise ValueError(f"{len(done)} bytes, expected {out.nbytes}")
        except (ValueError, RuntimeError) as error:
            self.fail(f"chunk {chunk} cannot be decompressed ({error})")
        return out

    def decode_all(self) -> Array:
        """All entries of the shard, (entries, *shape)."""
        column = self._column
        assert column.dtype is not None
        shape = (self.count, self.entries, *column.shape)
        parts = memory.empty(shape, column.dtype.newbyteorder("<"), where=self._file.path)
        for chunk in range(self.count):
            self.decode(chunk, out=parts[chunk])
        values = parts.reshape(-1, *column.shape)
        return values[: self._rows] if column.capacity == 1 else values


class BlockColumn(ColumnReader):
    """Rows that share a checksum in groups of ``block_rows``, and a note of which groups were checked."""

    def __init__(self, backend: ZarrLayout, column: Column) -> None:
        assert column.dtype is not None
        self.backend, self.column = backend, column
        self.dtype = column.dtype.newbyteorder("<")
        rows = backend.manifest.work.shard_rows
        self.block_rows = backend.chunk_entries(column) if column.of_field else rows
        # Untouched pages of it take no memory.
        count = backend.manifest.num_shards * (rows // self.block_rows)
        self._ready = memory.zeros((count,), np.bool_, where=backend.store)
        self._left = -(-backend.manifest.num_rows // self.block_rows)
        self._lock = ThreadLock(self.reset)
        self._files: dict[int, ObjectFile] = {}

    def unprepared(self, rows: Rows) -> Rows:
        # All were checked: a look at the rows would take a tenth of copying them.
        if not self._left:
            return _NO_ROWS
        ready = self._ready[rows // self.block_rows]
        return _NO_ROWS if ready.all() else rows[~ready]

    def prepare(self, shard: int, objects: Mapping[str, ObjectRecord], rows: Rows) -> None:
        groups = np.unique(rows // self.block_rows)
        local = groups - self._groups(shard).start
        with self._lock:
            if shard not in self._files:
                self._files[shard] = self.backend.object_file(shard, self.column, objects)
            file = self._files[shard]
            with file.opened(partial(self.attach, shard, file)) as handle:
                file.check(handle, self.blocks(shard, file.record, local.tolist()))
            # In this order, because other threads look without the lock.
            new = int(np.count_nonzero(~self._ready[groups]))
            self._ready[groups] = True
            self._left -= new

    def forget(self, shard: int) -> None:
        with self._lock:
            ready = self._ready[self._groups(shard)]
            self._left += int(np.count_nonzero(ready))
            ready[:] = False
            self._files.pop(shard, None)

    def reset(self) -> None:
        """Forget what may be half changed; nothing here."""

    def _groups(self, shard: int) -> slice:
        per_shard = self.backend.manifest.work.shard_rows // self.block_rows
        return slice(shard * per_shard, (shard + 1) * per_shard)

    def attach(self, shard: int, file: ObjectFile, handle: int) -> None:
        """Make an open file reachable as a shard's object, in place of what was there before."""
        raise NotImplementedError

    def blocks(self, shard: int, record: ObjectRecord, groups: list[int]) -> Iterable[int]:
        """Blocks of the ledger that hold groups of rows of a shard, counted from its first."""
        size = self.block_rows * self.column.entry_bytes
        of = record.block_bytes
        if of == size:
            return groups
        # One checksum for all of a small column, or another writer's choice.
        spans = [(group * size, min((group + 1) * size, record.bytes)) for group in groups]
        return sorted({b for start, stop in spans for b in range(start // of, -(-stop // of))})


class MappedColumn(BlockColumn):
    """Shard payloads side by side in one range of addresses: one array, whatever the shards of its rows."""

    def __init__(self, backend: ZarrLayout, column: Column) -> None:
        super().__init__(backend, column)
        count, rows = backend.manifest.num_shards, backend.manifest.work.shard_rows
        self._range = SideBySide(count, rows * column.entry_bytes)
        flat = self._range.bytes().view(self.dtype)
        self._rows = flat.reshape(count * rows, *column.shape)

    def attach(self, shard: int, file: ObjectFile, handle: int) -> None:
        size = len(self.backend.manifest.shard_range(shard)) * self.column.entry_bytes
        try:
            self._range.attach(shard, handle, size)
        except OSError as error:
            raise StoreError(
                f"{file.path}: cannot be mapped into memory ({error.strerror}). Linux allows a process 65,530 "
                "mappings; raise vm.max_map_count, or use larger shards."
            ) from error

    def take(self, rows: Rows, out: Array) -> None:
        # "clip" writes straight into out; the range was checked, so nothing is clipped.
        self._rows.take(rows, axis=0, out=out, mode="clip")

    def take_views(self, rows: Rows, views: Rows, out: Array) -> None:
        """See ``ColumnReader.take_views``; no other view is touched."""
        num_views, *shape = self.column.shape
        at = (rows[:, None] * num_views + views).reshape(-1)
        flat = out.reshape(-1, *shape)  # contiguous, so not a copy
        self._rows.reshape(-1, *shape).take(at, axis=0, out=flat, mode="clip")


class ShardColumn(BlockColumn):
    """One array per shard: payloads that are no whole pages."""

    def __init__(self, backend: ZarrLayout, column: Column) -> None:
        super().__init__(backend, column)
        self._arrays: dict[int, Array] = {}

    def attach(self, shard: int, file: ObjectFile, handle: int) -> None:
        shape = (len(self.backend.manifest.shard_range(shard)), *self.column.shape)
        size = math.prod(shape) * self.dtype.itemsize
        self._arrays[shard] = map_file(handle, size).view(self.dtype).reshape(shape)

    def take(self, rows: Rows, out: Array) -> None:
        size = self.backend.manifest.work.shard_rows
        shards = rows // size
        for shard in np.unique(shards).tolist():
            chosen = np.flatnonzero(shards == shard)
            out[chosen] = self._arrays[shard][rows[chosen] - shard * size]


class ChunkedColumn(BlockColumn):
    """Compressed chunks, decoded when they are needed into places of one array, from which rows are taken at once.

    When places run out, the chunks that were not used for longest make room.
    """

    def __init__(self, backend: ZarrLayout, column: Column) -> None:
        super().__init__(backend, column)
        self._chunks: dict[int, Chunks] = {}
        size = max(1, self.block_rows * column.entry_bytes)
        places = min(len(self._ready), max(2, CACHE_BYTES // size))
        # Untouched pages of it take no memory.
        held = (places, self.block_rows, *column.shape)
        self._decoded = memory.empty(held, self.dtype, where=backend.store)
        self._place_of = memory.empty((len(self._ready),), np.int64, where=backend.store)
        self._place_of[:] = -1
        self._chunk_at = np.full(places, -1, dtype=np.int64)
        self._used_at = np.zeros(places, dtype=np.int64)
        self._now = 0

    def attach(self, shard: int, file: ObjectFile, handle: int) -> None:
        self._chunks[shard] = Chunks(self.backend, shard, self.column, file, handle)

    def blocks(self, shard: int, record: ObjectRecord, groups: list[int]) -> Iterable[int]:
        """See ``BlockColumn.blocks``; the groups of rows are chunks."""
        chunks = self._chunks[shard]
        return sorted({block for chunk in groups for block in chunks.blocks(chunk)})

    def forget(self, shard: int) -> None:
        """See ``ColumnReader.forget``; what was decoded may have been read while the object was evicted."""
        with self._lock:
            super().forget(shard)
            self._chunks.pop(shard, None)
            places = self._place_of[self._groups(shard)]
            self._chunk_at[places[places >= 0]] = -1
            places[:] = -1

    def reset(self) -> None:
        """See ``BlockColumn.reset``; forget what was decoded."""
        self._place_of[:] = -1
        self._chunk_at[:] = -1

    def take(self, rows: Rows, out: Array) -> None:
        numbers = rows // self.block_rows
        needed = np.unique(numbers)
        places = len(self._chunk_at)
        if len(needed) > places:  # more than is held at a time: one part after another
            for start in range(0, len(needed), places):
                part = np.flatnonzero(np.isin(numbers, needed[start : start + places]))
                values = np.empty((len(part), *self.column.shape), dtype=self.dtype)
                self.take(rows[part], values)
                out[part] = values
            return
        flat = self._decoded.reshape(-1, *self.column.shape)
        with self._lock:  # until the rows are copied, no other thread may give their places away
            self._hold(needed)
            at = self._place_of[numbers] * self.block_rows + rows % self.block_rows
            np.take(flat, at, axis=0, out=out, mode="clip")

    def _hold(self, needed: Rows) -> None:
        """Decode the chunks among ``needed`` that have no place yet."""
        self._now += 1
        held = self._place_of[needed]
        self._used_at[held[held >= 0]] = self._now
        missing = needed[held < 0]
        if not missing.size:
            return
        # A stable order fills the places from the first on.
        places = np.argsort(self._used_at, kind="stable")[: len(missing)]
        gone = self._chunk_at[places]
        self._place_of[gone[gone >= 0]] = -1
        self._chunk_at[places] = -1
        self._decode(missing.tolist(), places.tolist())
        self._place_of[missing] = places
        self._chunk_at[places] = missing
        self._used_at[places] = self._now

    def _decode(self, chunks: list[int], places: list[int]) -> None:
        """Decode chunks, many of them on all processors: the codecs let go of Python's lock."""
        per_shard = self.backend.manifest.work.shard_rows // self.block_rows

        def one(chunk: int, place: int) -> None:
            shard, local = divmod(chunk, per_shard)
            self._chunks[shard].decode(local, out=self._decoded[place])

        if len(chunks) < PARALLEL_CHUNKS:
            for chunk, place in zip(chunks, places, strict=True):
                one(chunk, place)
            return
        # Made for each call: threads do not survive a fork, and starting them costs less than one chunk.
        with ThreadPoolExecutor(cores()) as pool:
            list(pool.map(one, chunks, places))
