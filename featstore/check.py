"""Compare files to what the ledger says of them: their size, and a checksum for each block of bytes.

Bytes are read with ``pread``, not through a memory map: a bad sector is then an error that can be named, and not the
end of the process.
"""

import errno
import os
from collections.abc import Callable, Iterable
from pathlib import Path

import google_crc32c

from featstore.errors import ShardCorrupt
from featstore.ledger import ObjectRecord

ADVICE = (
    "Run extract.py --repair with the settings this store was made with; it makes that shard again."
)

Describe = Callable[[int, int], str]
"""What the bytes from .. to of a file hold, in words: shard, rows and column."""


def corrupt(path: Path, what: str, problem: str) -> ShardCorrupt:
    """Build the error for bytes that are not those that were written."""
    return ShardCorrupt(f"{path}: {what}: {problem}. {ADVICE}")


def check_size(path: Path, record: ObjectRecord, describe: Describe) -> None:
    """Compare the size of a file.

    Raises:
        ShardCorrupt: it is missing, or longer or shorter.
    """
    size = path.stat().st_size if path.is_file() else -1
    if size != record.bytes:
        found = "missing" if size < 0 else f"{size:,} bytes"
        raise corrupt(path, describe(0, record.bytes), f"{found}, expected {record.bytes:,} bytes")


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
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        yield from ((block, _problem(error)) for block in blocks)
        return
    try:
        for block in blocks:
            span = record.block(block)
            try:
                data = os.pread(handle, len(span), span.start)
            except OSError as error:
                yield block, _problem(error)
                continue
            if len(data) < len(span):
                yield (
                    block,
                    f"ends after {span.start + len(data):,} bytes, expected {record.bytes:,}",
                )
                continue
            crc = google_crc32c.value(data)
            if crc != record.crc(block):
                yield block, f"crc32c {crc:08x}, expected {record.crc(block):08x}"
    finally:
        os.close(handle)


def _problem(error: OSError) -> str:
    if error.errno == errno.ENOENT:
        return "missing"
    return f"cannot be read ({error.strerror or error})"
