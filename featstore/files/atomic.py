"""Write files atomically: a temporary file, fsync, rename, fsync of the folder."""

import ctypes
import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from featstore.errors import StoreWriteError
from featstore.files.array_types import Bytes
from featstore.files.block_crc import BlockCrc
from featstore.files.untrusted import check_real_folder

TEMPORARY_PREFIX = ".partial-"
"""Begin of the name of every temporary file; leftovers of a kill can be deleted at any time."""

WRITE_BYTES = 8 * 2**20
"""Most bytes of one write. After each the system is asked to begin to put them on the disk, so that fsync finds little
left to do. A multiple of 2 MiB: Linux keeps a file in pieces of memory as large as the writes were, and only those of
2 MiB are mapped as huge pages, in which random rows of 2 KB are found 1.3 times as fast."""

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Staged:
    """A file under a temporary name."""

    path: Path
    temporary: Path
    bytes: int
    crc32c: str  # CRC-32C of each block, eight hexadecimal digits each
    synced: "Future[None]"  # done when the file is on disk


def write_bytes(path: Path, *chunks: bytes | Bytes) -> int:
    """Write a file atomically and durably.

    Args:
        path: where the file goes; the folder is made if it is missing.
        chunks: written one after another; arrays are contiguous.

    Raises:
        StoreWriteError: the disk is full, read-only or broken. ``path`` is as it was before.
    """
    with refused(path, sum(len(chunk) for chunk in chunks)):
        make_folder(path.parent)
    staged = stage(path, chunks, folder=path.parent)
    publish([staged])
    return staged.bytes


def stage(
    path: Path,
    parts: Sequence[bytes | Bytes],
    *,
    folder: Path,
    block_bytes: int = 2**62,
    tag: str = "",
    pool: ThreadPoolExecutor | None = None,
) -> Staged:
    """Write a file under a temporary name, and checksum it on the way, block by block.

    Args:
        parts: written one after another; arrays are contiguous.
        folder: where it lies until then; exists, on the same file system.
        block_bytes: bytes of a block; blocks do not care where parts end.
        tag: goes into the temporary name.
        pool: syncs the file while the caller continues; without, it is synced when this returns.

    Raises:
        StoreWriteError: the disk is full, read-only or broken. Nothing is left behind.
    """
    size = sum(len(part) for part in parts)
    with refused(path, size):
        handle, name = tempfile.mkstemp(prefix=f"{TEMPORARY_PREFIX}{tag}", dir=folder)
        try:
            try:
                with _checksums(parts, size, block_bytes) as checksums:
                    _write_parts(handle, parts)
                os.fchmod(handle, 0o644)
            except BaseException:
                os.close(handle)
                raise
            if pool is None:
                _sync_and_close(handle)
        except BaseException:
            _remove(Path(name))
            raise
    synced: Future[None] = Future()
    if pool is None:
        synced.set_result(None)
    else:
        synced = pool.submit(_sync_and_close, handle)
    return Staged(path, Path(name), size, checksums.result(), synced)


def settle(staged: Iterable[Staged]) -> None:
    """Wait until files are on disk."""
    for item in staged:
        with refused(item.path, item.bytes):
            item.synced.result()


def publish(staged: Sequence[Staged], pool: ThreadPoolExecutor | None = None) -> None:
    """Give files that are on disk their names, and sync every folder once.

    Raises:
        StoreWriteError: the disk refused; some files may have their names. No temporary name is left.
    """
    try:
        for item in staged:
            with refused(item.path, item.bytes):
                item.temporary.replace(item.path)
        sync_folders((item.path.parent for item in staged), pool)
    except BaseException:
        discard(staged)
        raise


def discard(staged: Iterable[Staged]) -> None:
    """Remove staged files that will not be named."""
    for item in staged:
        _remove(item.temporary)


def sync_folders(folders: Iterable[Path], pool: ThreadPoolExecutor | None = None) -> None:
    """Make renames inside folders durable, each folder once; in the pool side by side."""
    several = dict.fromkeys(folders)
    if pool is None or len(several) == 1:
        for folder in several:
            with refused(folder, 0):
                sync_folder(folder)
        return
    waiting = {folder: pool.submit(sync_folder, folder) for folder in several}
    for folder, future in waiting.items():
        with refused(folder, 0):
            future.result()


class Disk:
    """Writes the files of many shards. Use as a context manager.

    Syncs run side by side: a file system that is asked for many at once writes its journal once, not many times.

    Folders are made durably: each is named on disk before anything goes into it. Those of the last shard are
    remembered, so that what all shards share is synced once, and memory stays the same however many shards there are.
    An existing folder is synced too, as another process may just have made it; only those that
    this process has synced are skipped.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.pool = ThreadPoolExecutor(8, "featstore-sync")
        self._known = {root}

    def __enter__(self) -> "Disk":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.pool.shutdown()

    def make_folders(self, folders: Iterable[Path]) -> None:
        """Make folders below the root, and their parents."""
        wanted = {self.root}
        for folder in folders:
            while folder not in wanted:
                wanted.add(folder)
                folder = folder.parent
        new = sorted(wanted - self._known, key=lambda folder: len(folder.parts))
        for folder in new:
            with refused(folder, 0):
                folder.mkdir(exist_ok=True)
                check_real_folder(folder)
        sync_folders((folder.parent for folder in new), self.pool)
        self._known = wanted


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents durably: each is named on disk before anything goes into it."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(exist_ok=True)
    sync_folder(folder.parent)


def sync_folder(folder: Path) -> None:
    """Make renames inside a folder durable."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def exchange(one: Path, other: Path) -> None:
    """Let two folders of one file system change names, in one step: at any moment both names are there.

    Raises:
        OSError: the system or the file system cannot do that, or refuses. Both are as they were.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except AttributeError:  # not Linux, or one of before 2018
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS), str(one)) from None
    if rename(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(one))
    for folder in {one.parent, other.parent}:
        sync_folder(folder)


def sync_tree(folder: Path) -> None:
    """Make everything below a folder durable."""
    for path in [*folder.rglob("*"), folder]:
        sync_folder(path)  # for a file it is the same call


@contextmanager
def refused(path: Path, size: int) -> Iterator[None]:
    """Turn an error of the disk into a ``StoreWriteError`` that names the file, its size and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreWriteError(_message(path, size, error)) from error


@contextmanager
def _checksums(
    parts: Sequence[bytes | Bytes], size: int, block_bytes: int
) -> Iterator["Future[str]"]:
    """The CRC-32C of each block, computed beside the writing where that is worth a thread: 0.2 s for each GB."""
    if size < WRITE_BYTES:
        done: Future[str] = Future()
        done.set_result(checksum_blocks(parts, block_bytes))
        yield done
        return
    with ThreadPoolExecutor(1, "featstore-crc32c") as pool:
        yield pool.submit(checksum_blocks, parts, block_bytes)


def checksum_blocks(parts: Sequence[bytes | Bytes], block_bytes: int) -> str:
    """CRC-32C of each block, eight digits each; blocks do not care where parts end."""
    sums = BlockCrc(block_bytes)
    found = [crc for part in parts for crc in sums.update(part)]
    return "".join(f"{crc:08x}" for crc in [*found, *sums.rest()])


def _write_parts(handle: int, parts: Sequence[bytes | Bytes]) -> None:
    written = hinted = 0
    for part in parts:
        for start in range(0, len(part), WRITE_BYTES):
            piece = memoryview(part)[start : start + WRITE_BYTES]  # type: ignore[arg-type]  # a buffer
            written += len(piece)
            while piece:
                piece = piece[os.write(handle, piece) :]
            if written - hinted >= WRITE_BYTES:
                _begin_writeback(handle, hinted, written - hinted)
                hinted = written


def _sync_and_close(handle: int) -> None:
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _begin_writeback(handle: int, start: int, size: int) -> None:
    # Linux begins to write dirty pages that it is told are not needed; Python has no sync_file_range.
    with suppress(OSError, AttributeError):
        os.posix_fadvise(handle, start, size, os.POSIX_FADV_DONTNEED)


def _remove(path: Path) -> None:
    with suppress(OSError):  # a leftover is harmless, and the first error is the one that matters
        path.unlink(missing_ok=True)


def _message(path: Path, size: int, error: OSError) -> str:
    advice = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of the quota",
        errno.EROFS: "make the file system writable",
        errno.EACCES: "give this user the right to write there",
        errno.EMFILE: "raise the limit on open files (ulimit -n 4096)",
        errno.EFBIG: "raise the limit on file size, or use smaller shards (--store.shard_mb)",
    }.get(error.errno or 0, "check the disk")
    return (
        f"{path}: writing {size:,} bytes failed: {error.strerror or error}. Everything committed before is kept; "
        f"{advice}, then run the same command again."
    )


def write_json(path: Path, values: Any) -> None:
    """Write JSON atomically; numbers that are not finite are a programming error."""
    write_bytes(path, (json.dumps(values, indent=2, allow_nan=False) + "\n").encode())
