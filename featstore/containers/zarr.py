"""Zarr v3 container: one object per column and shard, readable by any Zarr library.

Columns of fields use ``sharding_indexed`` with little-endian chunks, rows never split, and the index at the end.
Without a codec the payload of a shard object is then a plain C array from byte 0 on, and reading is a memory map.
The objects are encoded here, byte by byte as zarr-python would (tests compare), because only so can an object be
synced to disk before it is named, and because zarr-python leaves out chunks that hold nothing but zeros unless told.

This file is named after the format; ``import zarr`` below is the library (imports are absolute).
"""

import math
import struct
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import zarr
from numcodecs.vlen import VLenUTF8

from featstore.containers.address_range import PAGE_BYTES
from featstore.containers.base import ColumnReader, EncodedObject
from featstore.containers.block_checksums import corrupt_error, map_file
from featstore.containers.zarr_chunks import (
    CHUNK_BYTES,
    codec_of,
    pad_rows,
    raw_bytes,
    shard_index,
    zarr_codec,
)
from featstore.containers.zarr_columns import ChunkedColumn, Chunks, MappedColumn, ShardColumn
from featstore.containers.zarr_layout import ZarrLayout
from featstore.files.array_types import Array
from featstore.format.fields import Column, check_columns
from featstore.format.ledger import ObjectRecord


class ZarrBackend(ZarrLayout):
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
            compressors=zarr_codec(column.codec, column),
            filters=None,
            fill_value="" if column.dtype is None else 0,
            dimension_names=column.dims,
            # Stock readers lack bfloat16; they get its bits, and this attribute names the type.
            attributes={"bits_of": "bfloat16"} if bits else None,
        )

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
            return [raw_bytes(pad_rows(values, entries, 0))]
        step = self.chunk_entries(column)
        count = math.ceil(len(values) / step)
        size = step * column.entry_bytes
        if column.codec == "raw":
            whole, rest = divmod(len(values), step)
            parts = [raw_bytes(values[: whole * step])]
            if rest:
                parts.append(raw_bytes(pad_rows(values[whole * step :], step, 0)))
            sizes = [size] * count
        else:
            codec = codec_of(column)
            padded = raw_bytes(pad_rows(values, count * step, 0))
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
                chunks = Chunks(self, shard, spec, file, handle)
        if spec.dtype is None:
            return self._texts(data, shard, spec)[:rows]
        if chunks is not None and spec.codec != "raw":
            return chunks.decode_all()
        entries = rows if chunks is None or spec.capacity == 1 else chunks.count * chunks.entries
        dtype = spec.dtype.newbyteorder("<")
        values = np.frombuffer(data, dtype=dtype, count=entries * math.prod(spec.shape))
        return values.reshape(entries, *spec.shape)

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
