"""Compare files with the ledger: their size, and a checksum for each block of bytes.

Bytes are read with ``pread``, not through a memory map: a bad sector is then an error that can be named, and does not
end the process.
"""

import ctypes
import errno
import mmap
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import google_crc32c
import numpy as np

from featstore.containers.address_range import map_over
from featstore.errors import ShardCorrupt, StoreError, command
from featstore.files.array_types import Bytes
from featstore.files.untrusted import open_plain, plain_size
from featstore.format.ledger import ObjectRecord

ADVICE = f"Run {command('extract')} --repair with the settings this store was made with; it makes that shard again."

PIECE_BYTES = 8 * 2**20  # bytes that are in memory at a time

Describe = Callable[[int, int], str]
"""What the bytes from .. to of a file hold, in words: shard, rows and column."""


def corrupt_error(path: Path, what: str, problem: str) -> ShardCorrupt:
    """Build the error for bytes that are not those that were written."""
    return ShardCorrupt(f"{path}: {what}: {problem}. {ADVICE}")


class ObjectFile:
    """One object of a shard, compared to the ledger block by block.

    Size, blocks and mapping all go through one descriptor, because at any time the name may be given to another file: a
    store is repaired or replaced by renames. If that has happened, what was compared before is compared again.

    Attributes:
        checked: (blocks,) bool; whether each block was compared.
    """

    def __init__(self, store: Path, name: str, record: ObjectRecord, describe: Describe) -> None:
        """Compare the size of the file.

        Raises:
            ShardCorrupt: The file is missing, has another size, or is no plain file inside the store.
        """
        self.path, self.record = store / name, record
        self.checked = np.zeros(record.num_blocks, dtype=np.bool_)
        self._describe = describe
        self._identity: tuple[int, ...] = ()
        try:
            plain_size(store, name)
        except OSError as error:
            raise self._unreadable(error) from None

    def corrupt(self, problem: str) -> ShardCorrupt:
        """Build the error for a file that is not as it was written."""
        return corrupt_error(self.path, self._describe(0, self.record.bytes), problem)

    def _unreadable(self, error: OSError) -> StoreError:
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return StoreError(
                f"{self.path}: too many open files. Raise the limit (ulimit -n 4096), or close some."
            )
        return self.corrupt(f"{why_unreadable(error)}, expected {self.record.bytes:,} bytes")

    @contextmanager
    def opened(self, attach: Callable[[int], None] = lambda handle: None) -> Iterator[int]:
        """Open the file for the body of a ``with`` statement; gives a descriptor.

        Args:
            attach: Called with the descriptor when the file is opened first, and again when the name leads to another
                file; maps the file, for example.

        Raises:
            ShardCorrupt: The file is missing or has another size, or what was compared before differs now.
        """
        try:
            handle = open_plain(self.path)
        except OSError as error:
            raise self._unreadable(error) from None
        try:
            found = os.fstat(handle)
            if found.st_size != self.record.bytes:
                raise self.corrupt(f"{found.st_size:,} bytes, expected {self.record.bytes:,} bytes")
            identity = (found.st_dev, found.st_ino, found.st_mtime_ns)
            if identity != self._identity:
                self._compare(handle, np.flatnonzero(self.checked).tolist(), self._describe)
                attach(handle)
                self._identity = identity
            yield handle
        finally:
            os.close(handle)

    def check(self, handle: int, blocks: Iterable[int], describe: Describe | None = None) -> None:
        """Compare blocks that were not compared yet.

        Args:
            describe: Words for the bytes, if others than those of the whole file.

        Raises:
            ShardCorrupt: Names the rows of the first block whose bytes differ, or that cannot be read.
        """
        new = [block for block in blocks if not self.checked[block]]
        self._compare(handle, new, describe or self._describe)
        self.checked[new] = True

    def _compare(self, handle: int, blocks: Iterable[int], describe: Describe) -> None:
        for block, problem in _damaged(handle, self.record, blocks):
            span = self.record.block(block)
            raise corrupt_error(self.path, describe(span.start, span.stop), problem)


def map_file(handle: int, size: int) -> Bytes:
    """The bytes of a file, mapped into memory read-only; the mapping outlives the descriptor and holds none.

    ``mmap.mmap`` of a file keeps a copy of its descriptor, so that many shards would exceed ``ulimit -n``.
    """
    if not size:
        return np.empty(0, dtype=np.uint8)
    area = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    map_over(ctypes.addressof(ctypes.c_char.from_buffer(area)), size, handle)
    values: Bytes = np.frombuffer(area, dtype=np.uint8)
    values.flags.writeable = False
    return values


def damaged_blocks(
    path: Path, record: ObjectRecord, blocks: Iterable[int]
) -> Iterator[tuple[int, str]]:
    """Yield (block, what is wrong with it) for each block whose bytes differ or cannot be read."""
    try:
        handle = open_plain(path)
    except OSError as error:
        yield from ((block, why_unreadable(error)) for block in blocks)
        return
    try:
        yield from _damaged(handle, record, blocks)
    finally:
        os.close(handle)


def _damaged(handle: int, record: ObjectRecord, blocks: Iterable[int]) -> Iterator[tuple[int, str]]:
    for block in blocks:
        span = record.block(block)
        try:
            size, crc = _checksum(handle, span)
        except OSError as error:
            yield block, why_unreadable(error)
            continue
        if size < len(span):
            yield block, f"ends after {span.start + size:,} bytes, expected {record.bytes:,}"
        elif crc != record.crc(block):
            yield block, f"crc32c {crc:08x}, expected {record.crc(block):08x}"


def _checksum(handle: int, span: range) -> tuple[int, int]:
    """Bytes that are there of a span, and their CRC-32C; in pieces, as blocks are as large as their writer chose."""
    size = crc = 0
    for start in range(span.start, span.stop, PIECE_BYTES):
        data = os.pread(handle, min(PIECE_BYTES, span.stop - start), start)
        crc = google_crc32c.extend(crc, data)
        size += len(data)
        if not data:
            break
    return size, crc


def why_unreadable(error: OSError) -> str:
    """The system's error for a file, in words."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return "missing"
    return f"cannot be read ({error.strerror or error})"
