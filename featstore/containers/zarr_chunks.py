"""Chunks of Zarr shards as bytes: their size, codecs, padding, and the index behind them."""

import struct
from collections.abc import Sequence
from typing import Any

import google_crc32c
import numcodecs
import numpy as np
import zarr.codecs

from featstore.files.array_types import Array, Bytes
from featstore.format.fields import Column
from featstore.format.manifest_records import Codec

CHUNK_BYTES = 256 * 1024
"""Inner chunks are at most this large (or one row): what a stock reader fetches to get at a row, and what shares a
checksum."""

ZSTD_LEVEL = 3
BLOSC_LEVEL = 5

EMPTY = 2**64 - 1  # in an index: no such chunk


def chunk_rows(shard_rows: int, row_bytes: int) -> int:
    """Rows of an inner chunk: the largest power of two that divides the shard and stays within CHUNK_BYTES."""
    rows = shard_rows & -shard_rows
    while rows > 1 and rows * row_bytes > CHUNK_BYTES:
        rows //= 2
    return rows


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
    index = np.full((slots, 2), EMPTY, dtype="<u8")
    count = len(sizes)
    index[:count, 1] = sizes
    index[1:count, 0] = np.cumsum(np.asarray(sizes[:-1], dtype=np.uint64)) if count > 1 else 0
    if count:
        index[0, 0] = 0
    body = index.tobytes()
    return body + struct.pack("<I", google_crc32c.value(body))


def raw_bytes(values: Array) -> Array:
    """View contiguous numbers as bytes."""
    return values.reshape(-1).view(np.uint8)


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
    coder = codec_of(column)
    return sum(len(coder.encode(raw_bytes(rows[i : i + step]))) for i in range(0, len(rows), step))


def zarr_codec(codec: Codec, column: Column) -> Any:
    """Codecs of an array for zarr-python, as its metadata names them."""
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


def codec_of(column: Column) -> Any:
    """The codec that encodes and decodes the chunks of a column."""
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
