"""Compare files to what the ledger says of them: their size, and a checksum for each block of bytes.

Bytes are read with ``pread``, not through a memory map: a bad sector is then an error that can be named, and not the
end of the process.
"""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import google_crc32c

from featstore.errors import ShardCorrupt, command
from featstore.files.untrusted import open_plain, plain_size
from featstore.format.ledger import ObjectRecord

ADVICE = f"Run {command('extract')} --repair with the settings this store was made with; it makes that shard again."

PIECE_BYTES = 8 * 2**20
"""Bytes that are in memory at a time."""

Describe = Callable[[int, int], str]
"""What the bytes from .. to of a file hold, in words: shard, rows and column."""


def corrupt(path: Path, what: str, problem: str) -> ShardCorrupt:
    """Build the error for bytes that are not those that were written."""
    return ShardCorrupt(f"{path}: {what}: {problem}. {ADVICE}")


def check_size(store: Path, name: str, record: ObjectRecord, describe: Describe) -> None:
    """Compare the size of a file.

    Args:
        store: folder of the store.
        name: path of the file below it.
        record: what the ledger says of it.
        describe: words for its bytes.

    Raises:
        ShardCorrupt: it is missing, longer or shorter, or no plain file inside the store.
    """
    try:
        size = plain_size(store, name)
        found = f"{size:,} bytes" if size != record.bytes else ""
    except OSError as error:
        found = why_unreadable(error)
    if found:
        problem = f"{found}, expected {record.bytes:,} bytes"
        raise corrupt(store / name, describe(0, record.bytes), problem)


def check_blocks(
    path: Path, record: ObjectRecord, blocks: Iterable[int], describe: Describe
) -> None:
    """Compare some blocks of a file.

    Raises:
        ShardCorrupt: names the rows of the first block whose bytes differ, or that cannot be read.
    """
    for block, problem in damaged_blocks(path, record, blocks):
        span = record.block(block)
        raise corrupt(path, describe(span.start, span.stop), problem)


def damaged_blocks(
    path: Path, record: ObjectRecord, blocks: Iterable[int]
) -> Iterable[tuple[int, str]]:
    """Yield (block, what is wrong with it) for each block whose bytes differ or cannot be read."""
    try:
        handle = open_plain(path)
    except OSError as error:
        yield from ((block, why_unreadable(error)) for block in blocks)
        return
    try:
        for block in blocks:
            span = record.block(block)
            try:
                size, crc = _checksum(handle, span)
            except OSError as error:
                yield block, why_unreadable(error)
                continue
            if size < len(span):
                yield block, f"ends after {span.start + size:,} bytes, expected {record.bytes:,}"
                continue
            if crc != record.crc(block):
                yield block, f"crc32c {crc:08x}, expected {record.crc(block):08x}"
    finally:
        os.close(handle)


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
    """What the system says of a file, in words."""
    if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR):
        return "missing"
    return f"cannot be read ({error.strerror or error})"
