"""Images of row groups of Parquet files, in files of the cache folder: read once as columns, then one by one.

A Parquet file is compressed by row group, so one image costs all images of its group. The first process that needs a
group writes its images into one file, and every process reads single images from there. The folder has a limit: the
files that were not used for longest are deleted.
"""

# n images of a group

import hashlib
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from featstore.files.atomic import refused, write_bytes
from featstore.files.cache_folder import cache_folder
from featstore.files.locks import FileLock

KEPT = 0.9  # share of the limit that is kept when files are deleted
LOCKS = 64  # processes that read different groups seldom wait for each other
LOCK_TIMEOUT_S = 600.0  # after this a group is read twice


class RowGroupCache:
    """The folder ``row_groups`` of the cache folder.

    Args:
        most_bytes: limit on all files; the file that was written last is kept whatever its size.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._folder = cache_folder() / "row_groups"

    def image(self, key: str, at: int, unpack: Callable[[], Sequence[bytes]]) -> bytes:
        """Return one image of a group, b"" where the row has none.

        Args:
            key: of the file in its version, the column and the group.
            unpack: reads all images of the group.

        Raises:
            StoreWriteError: the cache folder cannot be written.
        """
        digest = hashlib.sha256(key.encode()).hexdigest()[:32]
        path = self._folder / digest
        found = _read(path, at)
        if found is not None:
            return found
        with refused(self._folder, 0):
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = FileLock(self._folder / f"lock{int(digest, 16) % LOCKS}")
        lock.acquire(shared=False, timeout_s=LOCK_TIMEOUT_S)
        try:
            found = _read(path, at)
            if found is not None:
                return found
            images = unpack()
            self._keep(path, images)
            return images[at]
        finally:
            lock.release()

    def _keep(self, path: Path, images: Sequence[bytes]) -> None:
        ends = np.cumsum([len(image) for image in images], dtype="<i8")
        write_bytes(path, np.insert(ends, 0, 0) + 8 * (len(images) + 1), *images)
        self._make_room(path)

    def _make_room(self, new: Path) -> None:
        """Delete the files that were not used for longest; one that a process reads stays until it is closed."""
        files = []
        for file in self._folder.iterdir():
            with suppress(OSError):  # deleted by another process
                found = file.stat()
                files.append((found.st_mtime_ns, found.st_size, file))
        left = sum(size for _, size, _ in files)
        if left <= self._most_bytes:
            return
        for _, size, file in sorted(files):
            if left <= KEPT * self._most_bytes:
                break
            if file != new and not file.name.startswith("lock"):
                file.unlink(missing_ok=True)
                left -= size


def _read(path: Path, at: int) -> bytes | None:
    """One image of the file of a group; None if there is no such file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    try:
        span = os.pread(handle, 16, 8 * at)
        start, stop = np.frombuffer(span, "<i8").tolist() if len(span) == 16 else (0, 0)
        data = os.pread(handle, stop - start, start) if start else b""
        with suppress(OSError):  # another user's
            os.utime(handle, ns=(time.time_ns(), time.time_ns()))
    finally:
        os.close(handle)
    return data if start and len(data) == stop - start else None
