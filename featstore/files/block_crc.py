"""CRC-32C of each block of bytes that come in pieces."""

from collections.abc import Iterator

import google_crc32c
import numpy as np

from featstore.files.array_types import Bytes


class BlockCrc:
    """Checksums of blocks; pieces need not end where blocks end.

    Attributes:
        bytes: Bytes so far.

    Args:
        block_bytes: Bytes of a block; the last one may be shorter.
        start: Bytes before the first piece, which are not checked.
    """

    def __init__(self, block_bytes: int, start: int = 0) -> None:
        self.bytes = start
        self._block_bytes, self._crc, self._begun = block_bytes, 0, False

    def update(self, piece: bytes | Bytes) -> Iterator[int]:
        """Take a piece, and yield the checksum of each block that it completes."""
        data = np.frombuffer(piece, dtype=np.uint8)
        while len(data):
            left = self._block_bytes - self.bytes % self._block_bytes
            part, data = data[:left], data[left:]
            crc = google_crc32c.extend(self._crc, part)
            self.bytes += len(part)
            self._begun = len(part) < left
            self._crc = crc if self._begun else 0
            if not self._begun:
                yield crc

    def rest(self) -> list[int]:
        """The checksum of a last, shorter block; [] if there is none."""
        return [self._crc] if self._begun else []
