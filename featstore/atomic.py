"""Files that are either the old ones or the new ones, whole: write aside, fsync, rename, fsync the folder."""

import errno
import os
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from featstore.errors import StoreWriteError

TEMPORARY_PREFIX = ".partial-"
"""Begin of the name of every file that is not yet true; leftovers of a kill can be deleted at any time."""


def write_bytes(path: Path, *chunks: bytes | npt.NDArray[np.uint8]) -> int:
    """Write a file atomically and durably.

    Args:
        path: where the file goes; the folder is made if it is missing.
        chunks: written one after another; arrays are contiguous.

    Returns:
        Bytes written.

    Raises:
        StoreWriteError: the disk is full, read-only or broken. ``path`` is as it was before.
    """
    size = sum(len(chunk) for chunk in chunks)
    temporary = ""
    try:
        make_folder(path.parent)
        handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=path.parent)
        with os.fdopen(handle, "wb", buffering=0) as file:
            for chunk in chunks:
                _write_all(file.fileno(), memoryview(chunk))  # type: ignore[arg-type]  # an array is a buffer
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        Path(temporary).replace(path)
        sync_folder(path.parent)
    except OSError as error:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise StoreWriteError(_message(path, size, error)) from error
    except BaseException:
        if temporary:
            Path(temporary).unlink(missing_ok=True)
        raise
    return size


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


def _write_all(handle: int, data: memoryview) -> None:
    while data:
        data = data[os.write(handle, data) :]


def _message(path: Path, size: int, error: OSError) -> str:
    advice = {
        errno.ENOSPC: "free some space",
        errno.EDQUOT: "free some of the quota",
        errno.EROFS: "make the file system writable",
        errno.EACCES: "give this user the right to write there",
        errno.EFBIG: "raise the limit on file size, or use smaller shards (--store.shard_mb)",
    }.get(error.errno or 0, "check the disk")
    return (
        f"{path}: writing {size:,} bytes failed: {error.strerror or error}. Everything committed before is kept; "
        f"{advice}, then run the same command again."
    )
