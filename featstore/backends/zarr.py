"""Zarr v3 container: one object per column and shard, readable by any Zarr library.

Feature columns use ``sharding_indexed`` with uncompressed little-endian chunks, rows never split, and the index at
the end. The payload of a shard object is then a plain C array that starts at byte 0, and reading is a memory map.
The objects are encoded here, byte by byte as zarr-python would (tests compare), because only so can an object be
synced to disk before it is named, and because zarr-python leaves out chunks that hold nothing but zeros unless told.

This file is named after the format; ``import zarr`` below is the library (imports are absolute).
"""

import math
import struct
import warnings
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8

from featstore.atomic import write_bytes
from featstore.backends.base import Array, Backend, Column, MappedColumn
from featstore.errors import ShardCorrupt
from featstore.ledger import ObjectRecord, entry_path
from featstore.mapping import PAGE_BYTES, SideBySide

CHUNK_BYTES = 256 * 1024
"""Inner chunks are at most this large (or one row): what a stock reader fetches to get at a row."""

_INDEX_CRC_BYTES = 4


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
        rows = self.manifest.work.shard_rows
        sharded = column.name.startswith("fields/")
        group.create_array(
            column.name,
            shape=(self.manifest.num_rows, *column.shape),
            dtype="string" if column.dtype is None else column.dtype,
            chunks=(self._chunk_rows(column) if sharded else rows, *column.shape),
            shards=(rows, *column.shape) if sharded else None,
            compressors=None,
            filters=None,
            fill_value="" if column.dtype is None else 0,
            dimension_names=column.dims,
        )

    def _chunk_rows(self, column: Column) -> int:
        return chunk_rows(self.manifest.work.shard_rows, row_bytes(column))

    def object_name(self, shard: int, column: Column) -> str:
        """Path of a shard object inside the store."""
        return "/".join([column.name, "c", str(shard), *("0" for _ in column.shape)])

    def write_shard(self, shard: int, columns: Mapping[str, Array]) -> dict[str, ObjectRecord]:
        """See ``Backend.write_shard``."""
        return {
            self.object_name(shard, column): self._write(shard, column, columns[name])
            for name, column in self.columns.items()
        }

    def _write(self, shard: int, column: Column, values: Array) -> ObjectRecord:
        rows = len(self.manifest.shard_range(shard))
        assert values.shape == (rows, *column.shape), (column.name, values.shape)
        parts = self._encode(column, values)
        crc = 0
        for part in parts:
            crc = google_crc32c.extend(crc, part)
        size = write_bytes(self.store / self.object_name(shard, column), *parts)
        return ObjectRecord(bytes=size, crc32c=f"{crc:08x}")

    def _encode(self, column: Column, values: Array) -> list[Any]:
        shard_rows = self.manifest.work.shard_rows
        if column.dtype is None:
            return [bytes(VLenUTF8().encode(pad_rows(values, shard_rows, "")))]
        values = np.ascontiguousarray(values, dtype=column.dtype.newbyteorder("<"))
        if not column.name.startswith("fields/"):
            return [_raw(pad_rows(values, shard_rows, 0))]
        step = self._chunk_rows(column)
        chunks = math.ceil(len(values) / step)
        index = shard_index(shard_rows // step, chunks, step * row_bytes(column))
        return [_raw(pad_rows(values, chunks * step, 0)), index]

    def map_column(self, column: str) -> MappedColumn | None:
        """See ``Backend.map_column``; payloads must be whole pages, which every power of two above a page gives."""
        spec = self.columns[column]
        if spec.dtype is None or self.manifest.work.shard_rows * row_bytes(spec) % PAGE_BYTES:
            return None
        return _MappedField(self, spec)

    def check_shard(
        self, shard: int, column: str, objects: Mapping[str, ObjectRecord]
    ) -> "np.memmap[Any, Any]":
        """Compare an object to the ledger; returns its bytes.

        Raises:
            ShardCorrupt: see ``Backend.read_shard``.
        """
        name = self.object_name(shard, self.columns[column])
        if name not in objects:
            raise ShardCorrupt(f"{self.store}: the ledger entry of shard {shard} lacks {name}.")
        return self._checked(name, objects[name], shard, column)

    def read_shard(self, shard: int, column: str, objects: Mapping[str, ObjectRecord]) -> Array:
        """See ``Backend.read_shard``."""
        spec = self.columns[column]
        data = self.check_shard(shard, column, objects)
        rows = len(self.manifest.shard_range(shard))
        if spec.dtype is None:
            return self._texts(data.tobytes(), shard, column)[:rows]
        count = rows * math.prod(spec.shape)
        values = np.frombuffer(data, dtype=spec.dtype.newbyteorder("<"), count=count)
        return values.reshape(rows, *spec.shape)

    def _texts(self, data: bytes, shard: int, column: str) -> Array:
        """Decode text; the checksum only says that the bytes are the writer's, not that the writer was honest."""
        count = self.manifest.work.shard_rows
        try:
            # The codec believes this count and reserves memory for it; every text takes at least 4 bytes.
            if data[:4] != struct.pack("<I", count) or len(data) < 4 + 4 * count:
                raise ValueError(f"expected {count} texts")
            texts: Array = VLenUTF8().decode(data)
        except (ValueError, struct.error) as error:
            raise ShardCorrupt(
                f"{self._where(shard, column)}: not vlen-utf8 text ({error}). {self._advice(shard)}"
            ) from None
        return texts

    def _where(self, shard: int, column: str) -> str:
        path = self.store / self.object_name(shard, self.columns[column])
        rows = self.manifest.shard_range(shard)
        return f'{path}: shard {shard} (rows {rows.start}-{rows.stop - 1}), column "{column}"'

    def _advice(self, shard: int) -> str:
        return (
            f"Delete {entry_path(self.store, shard)} and run extract.py with the same settings; "
            "it makes that shard again."
        )

    def _checked(
        self, name: str, record: ObjectRecord, shard: int, column: str
    ) -> np.memmap[Any, Any]:
        path = self.store / name
        where, advice = self._where(shard, column), self._advice(shard)
        size = path.stat().st_size if path.is_file() else -1
        least = self._least_bytes(column, shard)
        if size != record.bytes or size < least:
            found = "missing" if size < 0 else f"{size:,} bytes"
            expected = max(record.bytes, least)
            raise ShardCorrupt(f"{where}: {found}, expected {expected:,} bytes. {advice}")
        data = np.memmap(path, dtype=np.uint8, mode="r")
        crc = f"{google_crc32c.value(data):08x}"
        if crc != record.crc32c:
            raise ShardCorrupt(f"{where}: crc32c {crc}, expected {record.crc32c}. {advice}")
        return data

    def _least_bytes(self, column: str, shard: int) -> int:
        spec = self.columns[column]
        return 1 if spec.dtype is None else len(self.manifest.shard_range(shard)) * row_bytes(spec)


class _MappedField(MappedColumn):
    """Shard payloads side by side in one range of addresses."""

    def __init__(self, backend: ZarrBackend, column: Column) -> None:
        manifest = backend.manifest
        self._backend, self._column = backend, column
        count, rows = manifest.num_shards, manifest.work.shard_rows
        self._range = SideBySide(count, rows * row_bytes(column))
        assert column.dtype is not None
        flat = self._range.bytes().view(column.dtype.newbyteorder("<"))
        self.rows = flat.reshape(count * rows, *column.shape)

    def attach(self, shard: int, objects: Mapping[str, ObjectRecord]) -> None:
        """See ``MappedColumn.attach``."""
        name = self._column.name
        self._backend.check_shard(shard, name, objects)
        size = len(self._backend.manifest.shard_range(shard)) * row_bytes(self._column)
        path = self._backend.store / self._backend.object_name(shard, self._column)
        self._range.attach(shard, path, size)


def row_bytes(column: Column) -> int:
    """Bytes of one row of a column of numbers."""
    assert column.dtype is not None
    return math.prod(column.shape) * column.dtype.itemsize


def pad_rows(values: Array, rows: int, fill: object) -> Array:
    """Lengthen the first axis to ``rows``; Zarr chunks at the end of an array are stored whole."""
    if len(values) == rows:
        return values
    padded = np.full((rows, *values.shape[1:]), fill, dtype=values.dtype)
    padded[: len(values)] = values
    return padded


def shard_index(slots: int, chunks: int, chunk_bytes: int) -> bytes:
    """Index of a ``sharding_indexed`` object: (offset, length) per chunk, then the index's own CRC-32C.

    Args:
        slots: chunks that a full shard has.
        chunks: chunks present, from the first on; the others get the mark of an empty chunk.
        chunk_bytes: bytes of each chunk.
    """
    index = np.full((slots, 2), 2**64 - 1, dtype="<u8")
    index[:chunks, 0] = np.arange(chunks, dtype=np.uint64) * np.uint64(chunk_bytes)
    index[:chunks, 1] = chunk_bytes
    body = index.tobytes()
    return body + struct.pack("<I", google_crc32c.value(body))


def _raw(values: Array) -> Array:
    return values.reshape(-1).view(np.uint8)
