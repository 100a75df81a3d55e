"""Checksums of bytes that pass by, compared to the ledger."""

import google_crc32c
import numpy as np

from featstore.containers import Backend
from featstore.format.ledger import ObjectRecord
from featstore.places.base import Sink


class BlockSums:
    """A sink that keeps the CRC-32C of each block, and passes the bytes on to another one if there is one."""

    def __init__(self, record: ObjectRecord, onward: Sink | None = None) -> None:
        self._record = record
        self._onward = onward
        self._begin()

    def _begin(self) -> None:
        self.bytes = 0
        self._crc = 0
        self._found: list[int] = []

    def write(self, piece: bytes) -> None:
        """See ``Sink``."""
        if self._onward is not None:
            self._onward.write(piece)
        data = np.frombuffer(piece, dtype=np.uint8)
        size = self._record.block_bytes
        while len(data):
            part, data = np.split(data, [min(len(data), size - self.bytes % size)])
            self._crc = google_crc32c.extend(self._crc, part)
            self.bytes += len(part)
            if self.bytes % size == 0:
                self._end_block()

    def _end_block(self) -> None:
        self._found.append(self._crc)
        self._crc = 0

    def restart(self) -> None:
        """See ``Sink``."""
        if self._onward is not None:
            self._onward.restart()
        self._begin()

    def problem(self, backend: Backend, shard: int, name: str) -> str:
        """What is wrong with the bytes that have passed: where, found, expected; "" if nothing is."""
        record = self._record
        if self.bytes % record.block_bytes:
            self._end_block()
        if self.bytes != record.bytes:
            rows = backend.manifest.shard_range(shard)
            found = f"{self.bytes:,} bytes, expected {record.bytes:,}"
            return f"shard {shard} (rows {rows.start}-{rows.stop - 1}): {found}"
        for block, crc in enumerate(self._found):
            if crc != record.crc(block):
                span = record.block(block)
                column, rows = backend.holds(shard, name, span.start, span.stop)
                return (
                    f'shard {shard} (rows {rows.start}-{rows.stop - 1}), column "{column}": crc32c {crc:08x}, '
                    f"expected {record.crc(block):08x}"
                )
        return ""
