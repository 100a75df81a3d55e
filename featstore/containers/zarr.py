"""Zarr v3 container: one object per column and shard, readable by any Zarr library.

Columns of fields use ``sharding_indexed`` with little-endian chunks, rows never split, and the index at the end.
Without a codec the payload of a shard object is then a plain C array from byte 0 on, and reading is a memory map.
The objects are encoded here, byte by byte as zarr-python would (tests compare), because only so can an object be
synced to disk before it is named, and because zarr-python leaves out chunks that hold nothing but zeros unless told.

This file is named after the format; ``import zarr`` below is the library (imports are absolute).
"""

import math
import os
import struct
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr
import zarr.codecs
from numcodecs.vlen import VLenUTF8

import featstore.files.machine as memory
from featstore.containers.address_range import PAGE_BYTES, SideBySide
from featstore.containers.base import Backend, ColumnReader, EncodedObject
from featstore.containers.block_checksums import Describe, ObjectFile, corrupt_error, map_file
from featstore.errors import ShardCorrupt, StoreError
from featstore.files.array_types import Array, Bytes, Rows
from featstore.files.limits import cores
from featstore.files.thread_lock import ThreadLock
from featstore.format.fields import Column, check_columns
from featstore.format.ledger import ObjectRecord, entry_path
from featstore.format.manifest_records import Codec

CHUNK_BYTES = 256 * 1024
"""Inner chunks are at most this large (or one row): what a stock reader fetches to get at a row, and what shares a
checksum."""

CACHE_BYTES = 128 * 2**20  # decoded chunks of one compressed column that are kept
PARALLEL_CHUNKS = 8  # from so many chunks on, they are decoded on all processors

ZSTD_LEVEL = 3
BLOSC_LEVEL = 5

_EMPTY = 2**64 - 1
_NO_ROWS = np.empty(0, dtype=np.int64)


def chunk_rows(shard_rows: int, row_bytes: int) -> int:
    """Rows of an inner chunk: the largest power of two that divides the shard and stays within CHUNK_BYTES."""
    rows = shard_rows & -shard_rows
    while rows > 1 and rows * row_bytes > CHUNK_BYTES:
        rows //= 2
    return rows


class ZarrBackend(Backend):
    """Columns as Zarr v3 arrays under one group with consolidated metadata."""

    def create(self) -> None:
        """Write ``zarr.json`` of the group and of every array."""
        group = zarr.open_group(self.store, mode="w-", zarr_format=3)
        for column in self.columns.values():
            self._create_array(group, column)
        with warnings.catch_warnings():
            # zarr-python notes that consolidated metadata is an extension; readers may ignore it.
            warnings.simplefilter("ignore")
            zarr.consolidate_metadata(group.store)

    def _create_array(self, group: zarr.Group, column: Column) -> None:
        # Only a field's numbers are sharded; text and what describes samples is one chunk per shard.
        sharded = column.of_field and column.dtype is not None
        entries = self.shard_entries(column)
        bits = column.dtype is not None and column.dtype.name == "bfloat16"
        group.create_array(
            column.name,
            shape=(self.manifest.num_rows * column.capacity, *column.shape),
            dtype="string" if column.dtype is None else "uint16" if bits else column.dtype,
            chunks=(self.chunk_entries(column) if sharded else entries, *column.shape),
            shards=(entries, *column.shape) if sharded else None,
            compressors=_zarr_codec(column.codec, column),
            filters=None,
            fill_value="" if column.dtype is None else 0,
            dimension_names=column.dims,
            # Stock readers lack bfloat16; they get its bits, and this attribute names the type.
            attributes={"bits_of": "bfloat16"} if bits else None,
        )

    def shard_entries(self, column: Column) -> int:
        """Entries that a shard of a column reserves."""
        return self.manifest.work.shard_rows * column.capacity

    def chunk_entries(self, column: Column) -> int:
        return chunk_rows(self.shard_entries(column), column.entry_bytes)

    def object_name(self, shard: int, column: Column) -> str:
        """Path of a shard object inside the store."""
        return "/".join([column.name, "c", str(shard), *("0" for _ in column.shape)])

    def object_names(self, shard: int) -> list[str]:
        return [self.object_name(shard, column) for column in self.columns.values()]

    def object_of(self, shard: int, column: str) -> str:
        return self.object_name(shard, self.columns[column])

    def encode(self, shard: int, columns: Mapping[str, Array]) -> Iterator[EncodedObject]:
        check_columns(self.columns, columns)
        for name, column in self.columns.items():
            values = columns[name]
            rows = len(self.manifest.shard_range(shard))
            fits = (
                len(values) == rows
                if column.capacity == 1
                else len(values) <= rows * column.capacity
            )
            assert fits, (name, len(values))
            assert values.shape[1:] == column.shape, (name, values.shape)
            parts = self._parts(column, values)
            block = CHUNK_BYTES
            if column.of_field and column.dtype is not None and column.codec == "raw":
                block = self.chunk_entries(column) * column.entry_bytes
            yield EncodedObject(self.object_name(shard, column), parts, max(1, block))

    def _parts(self, column: Column, values: Array) -> list[Any]:
        entries = self.shard_entries(column)
        if column.dtype is None:
            return [bytes(VLenUTF8().encode(pad_rows(values, entries, "").reshape(-1)))]
        values = np.ascontiguousarray(values, dtype=column.dtype.newbyteorder("<"))
        if not column.of_field:
            return [_raw(pad_rows(values, entries, 0))]
        step = self.chunk_entries(column)
        count = math.ceil(len(values) / step)
        size = step * column.entry_bytes
        if column.codec == "raw":
            whole, rest = divmod(len(values), step)
            parts = [_raw(values[: whole * step])]
            if rest:
                parts.append(_raw(pad_rows(values[whole * step :], step, 0)))
            sizes = [size] * count
        else:
            codec = _codec(column)
            padded = _raw(pad_rows(values, count * step, 0))
            parts = [
                np.frombuffer(codec.encode(padded[i * size : (i + 1) * size]), dtype=np.uint8)
                for i in range(count)
            ]
            sizes = [len(part) for part in parts]
        return [*parts, shard_index(entries // step, sizes)]

    def open_column(self, column: str) -> ColumnReader:
        """See ``Backend.open_column``; payloads of whole pages, which every power of two above a page gives, are mapped
        side by side."""
        spec = self.columns[column]
        assert spec.dtype is not None, column
        assert spec.capacity == 1, column
        if spec.of_field and spec.codec != "raw":
            return ChunkedColumn(self, spec)
        if spec.of_field and self.manifest.work.shard_rows * spec.entry_bytes % PAGE_BYTES == 0:
            try:
                return MappedColumn(self, spec)
            except OSError:  # more than the addresses of this machine
                pass
        return ShardColumn(self, spec)

    def read_shard(self, shard: int, column: str, objects: Mapping[str, ObjectRecord]) -> Array:
        spec = self.columns[column]
        file = self.object_file(shard, spec, objects)
        rows = len(self.manifest.shard_range(shard))
        with file.opened() as handle:
            file.check(handle, range(file.record.num_blocks))
            data = map_file(handle, file.record.bytes)
            chunks = None
            if spec.of_field and spec.dtype is not None:
                chunks = _Chunks(self, shard, spec, file, handle)
        if spec.dtype is None:
            return self._texts(data, shard, spec)[:rows]
        if chunks is not None and spec.codec != "raw":
            return chunks.decode_all()
        entries = rows if chunks is None or spec.capacity == 1 else chunks.count * chunks.entries
        dtype = spec.dtype.newbyteorder("<")
        values = np.frombuffer(data, dtype=dtype, count=entries * math.prod(spec.shape))
        return values.reshape(entries, *spec.shape)

    def object_file(
        self, shard: int, column: Column, objects: Mapping[str, ObjectRecord]
    ) -> ObjectFile:
        """The file of a shard's object; see ``ObjectFile``.

        Raises:
            ShardCorrupt: The ledger does not list it, it is missing, or its size cannot hold the rows.
        """
        name = self.object_name(shard, column)
        if name not in objects:
            raise ShardCorrupt(f"{entry_path(self.store, shard)}: the entry lacks {name}.")
        file = ObjectFile(self.store, name, objects[name], self.describe(shard, column))
        size = file.record.bytes
        least = len(self.manifest.shard_range(shard)) * column.entry_bytes
        if column.capacity == 1 and column.codec == "raw" and size < max(1, least):
            raise file.corrupt(f"{size:,} bytes, expected {least:,} bytes or more")
        return file

    def holds(self, shard: int, name: str, start: int, stop: int) -> tuple[str, range]:
        rows = self.manifest.shard_range(shard)
        column = next(
            (spec for spec in self.columns.values() if self.object_name(shard, spec) == name), None
        )
        if column is None:
            return name, rows
        plain = column.of_field and column.codec == "raw" and column.entry_bytes > 0
        if not plain or column.capacity > 1 or start >= len(rows) * column.entry_bytes:
            return column.name, rows  # compressed, text, or the index: all of them
        last = min(len(rows), -(-stop // column.entry_bytes))
        return column.name, range(rows.start + start // column.entry_bytes, rows.start + last)

    def describe(self, shard: int, column: Column) -> Describe:
        """Words for the bytes of a shard's object."""
        name = self.object_name(shard, column)

        def words(start: int, stop: int) -> str:
            _, rows = self.holds(shard, name, start, stop)
            return f'shard {shard} (rows {rows.start}-{rows.stop - 1}), column "{column.name}"'

        return words

    def _texts(self, data: Any, shard: int, column: Column) -> Array:
        """Decode text of an untrusted writer, whose checksums may be right all the same."""
        count = self.manifest.work.shard_rows * math.prod(column.shape)
        try:
            # The codec trusts this count and reserves memory for it; every text takes at least 4 bytes.
            if bytes(data[:4]) != struct.pack("<I", count) or len(data) < 4 + 4 * count:
                raise ValueError(f"expected {count} texts")
            texts: Array = VLenUTF8().decode(bytes(data))
        except (ValueError, struct.error) as error:
            path = self.store / self.object_name(shard, column)
            what = self.describe(shard, column)(0, len(data))
            raise corrupt_error(path, what, f"not vlen-utf8 text ({error})") from None
        return texts.reshape(-1, *column.shape)


class _Chunks:
    """The inner chunks of one shard object, found through its index."""

    def __init__(
        self, backend: ZarrBackend, shard: int, column: Column, file: ObjectFile, handle: int
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
        self.count = int((index[:, 0] != _EMPTY).sum())
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
            done = _codec(self._column).decode(data, out=_raw(out))
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

    def __init__(self, backend: ZarrBackend, column: Column) -> None:
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
    """Shard payloads side by side in one range of addresses: one array, whatever shards its rows lie in."""

    def __init__(self, backend: ZarrBackend, column: Column) -> None:
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

    def __init__(self, backend: ZarrBackend, column: Column) -> None:
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

    def __init__(self, backend: ZarrBackend, column: Column) -> None:
        super().__init__(backend, column)
        self._chunks: dict[int, _Chunks] = {}
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
        self._chunks[shard] = _Chunks(self.backend, shard, self.column, file, handle)

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


def pad_rows(values: Array, rows: int, fill: object) -> Array:
    """Lengthen the first axis to ``rows``; Zarr chunks at the end of an array are stored whole."""
    if len(values) == rows:
        return values
    padded = np.full((rows, *values.shape[1:]), fill, dtype=values.dtype)
    padded[: len(values)] = values
    return padded


def shard_index(slots: int, sizes: Sequence[int]) -> bytes:
    """Index of a ``sharding_indexed`` object: (offset, length) per chunk, then the index's own CRC-32C.

    Args:
        sizes: bytes of the chunks present, from the first on; the others get the mark of an empty chunk.
    """
    index = np.full((slots, 2), _EMPTY, dtype="<u8")
    count = len(sizes)
    index[:count, 1] = sizes
    index[1:count, 0] = np.cumsum(np.asarray(sizes[:-1], dtype=np.uint64)) if count > 1 else 0
    if count:
        index[0, 0] = 0
    body = index.tobytes()
    return body + struct.pack("<I", google_crc32c.value(body))


def encoded_bytes(values: Array, codec: Codec) -> int:
    """Bytes that a sample of rows takes, chunk by chunk, for a plan.

    Args:
        values: (n, ...) numbers as they would be stored.
    """
    rows = np.ascontiguousarray(values).reshape(len(values), -1)
    column = Column("fields/sample", rows.shape[1:], rows.dtype, (), codec)
    if codec == "raw":
        return rows.nbytes
    step = max(1, CHUNK_BYTES // max(1, column.entry_bytes))
    coder = _codec(column)
    return sum(len(coder.encode(_raw(rows[i : i + step]))) for i in range(0, len(rows), step))


def _zarr_codec(codec: Codec, column: Column) -> Any:
    if codec == "zstd":
        return [zarr.codecs.ZstdCodec(level=ZSTD_LEVEL, checksum=False)]
    if codec == "bitshuffle":
        assert column.dtype is not None
        size = column.dtype.itemsize
        return [
            zarr.codecs.BloscCodec(
                cname="zstd", clevel=BLOSC_LEVEL, shuffle="bitshuffle", typesize=size, blocksize=0
            )
        ]
    return None


def _codec(column: Column) -> Any:
    if column.codec == "zstd":
        return numcodecs.Zstd(level=ZSTD_LEVEL)
    assert column.dtype is not None
    return _Bitshuffle(column.dtype.itemsize)


class _Bitshuffle:
    """blosc's bitshuffle and zstd; the item size is taken from the array, as the codec of numcodecs does."""

    def __init__(self, item_bytes: int) -> None:
        self._item = np.dtype(f"V{item_bytes}") if item_bytes > 8 else np.dtype(f"u{item_bytes}")
        self._codec = numcodecs.Blosc(
            cname="zstd", clevel=BLOSC_LEVEL, shuffle=numcodecs.Blosc.BITSHUFFLE, blocksize=0
        )

    def encode(self, data: Bytes) -> bytes:
        return bytes(self._codec.encode(data.view(self._item)))

    def decode(self, data: bytes, out: Bytes) -> Any:
        # The header states both sizes, and the library trusts them: it would write and read past shorter buffers.
        if len(data) < 16 or struct.unpack("<4xI4xI", data[:16]) != (len(out), len(data)):
            raise ValueError(f"not {len(out)} bytes of blosc")
        return self._codec.decode(data, out=out)


def _raw(values: Array) -> Array:
    return values.reshape(-1).view(np.uint8)
