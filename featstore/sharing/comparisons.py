"""Sinks that compare the bytes of a file with its checksums while it is transferred."""

import hashlib
import os
from pathlib import Path
from typing import Protocol

from featstore.containers import Backend
from featstore.containers.block_checksums import damaged_blocks
from featstore.errors import ShardCorrupt
from featstore.files.block_crc import BlockCrc
from featstore.files.untrusted import open_plain
from featstore.format.ledger import ObjectRecord
from featstore.places.base import Sink


class ComparingSink(Sink, Protocol):
    """A sink that knows which bytes are expected, and passes them on to another one if there is one."""

    def resume(self, path: Path) -> int:
        """Take the bytes that are in a file already; returns how many of them can be kept."""

    def problem(self) -> str:
        """What is wrong with the bytes that have passed, in words; "" if nothing is."""


class BlockSums:
    """Compares an object with the CRC-32C of each block in the ledger.

    ``write`` raises ShardCorrupt at the first block that differs, so that the rest is not transferred for nothing.
    """

    def __init__(
        self,
        backend: Backend,
        shard: int,
        name: str,
        record: ObjectRecord,
        onward: Sink | None = None,
    ) -> None:
        self._backend, self._shard, self._name = backend, shard, name
        self._record, self._onward = record, onward
        self._sums = BlockCrc(record.block_bytes)

    def resume(self, path: Path) -> int:
        """See ``ComparingSink``: the blocks before the first damaged one are kept."""
        record = self._record
        damaged = next(iter(damaged_blocks(path, record, range(record.num_blocks))), None)
        kept = record.bytes if damaged is None else damaged[0] * record.block_bytes
        self._sums = BlockCrc(record.block_bytes, kept)
        return kept

    def write(self, piece: bytes) -> None:
        for crc in self._sums.update(piece):
            self._compare(crc)
        if self._onward is not None:
            self._onward.write(piece)

    def _compare(self, crc: int) -> None:
        """Compare the block that ends here."""
        block = (self._sums.bytes - 1) // self._record.block_bytes
        if block < self._record.num_blocks and crc != self._record.crc(block):
            span = self._record.block(block)
            column, rows = self._backend.holds(self._shard, self._name, span.start, span.stop)
            raise ShardCorrupt(
                f'shard {self._shard} (rows {rows.start}-{rows.stop - 1}), column "{column}": crc32c {crc:08x}, '
                f"expected {self._record.crc(block):08x}"
            )

    def restart(self) -> None:
        self._sums = BlockCrc(self._record.block_bytes)
        if self._onward is not None:
            self._onward.restart()

    def problem(self) -> str:
        if self._sums.bytes != self._record.bytes:
            rows = self._backend.manifest.shard_range(self._shard)
            found = f"{self._sums.bytes:,} bytes, expected {self._record.bytes:,}"
            return f"shard {self._shard} (rows {rows.start}-{rows.stop - 1}): {found}"
        try:
            for crc in self._sums.rest():
                self._compare(crc)
        except ShardCorrupt as error:
            return str(error.args[0])
        return ""


class Sha256Sum:
    """Compares a file with its SHA-256."""

    def __init__(self, expected: str, onward: Sink | None = None) -> None:
        self._expected, self._onward = expected, onward
        self._digest = hashlib.sha256()

    def resume(self, path: Path) -> int:
        """See ``ComparingSink``: all bytes are kept, as nothing tells which of them are right."""
        with os.fdopen(open_plain(path), "rb") as file:
            self._digest = hashlib.sha256()
            while piece := file.read(2**20):
                self._digest.update(piece)
            return file.tell()

    def write(self, piece: bytes) -> None:
        self._digest.update(piece)
        if self._onward is not None:
            self._onward.write(piece)

    def restart(self) -> None:
        self._digest = hashlib.sha256()
        if self._onward is not None:
            self._onward.restart()

    def problem(self) -> str:
        found = self._digest.hexdigest()
        return "" if found == self._expected else f"sha256 {found}, expected {self._expected}"
