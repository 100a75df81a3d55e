"""Large files of samples, on a disk or behind a URL, as seekable files."""

import io
import os
import threading
from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from featstore.errors import RemoteError, RemoteNotFound, SourceError

if TYPE_CHECKING:
    from featstore.places.base import Place

WINDOW_BYTES = 4 * 2**20
"""A file behind a URL is listed, and images that follow each other are read, in requests of this size."""

LOCAL_BYTES = 2**17


class SourceFile(io.RawIOBase):
    """An open file, read at any position."""

    name: str  # path or URL, for messages
    size: int  # bytes
    # changes when the file is replaced: its size, with its time of change or the server's tag
    stamp: str
    buffer_bytes: int  # how much to read at once where it is read in order

    def __init__(self) -> None:
        super().__init__()
        self._position = 0

    @abstractmethod
    def pread(self, size: int, offset: int) -> bytes:
        """Return up to ``size`` bytes from an offset on; fewer at the end of the file."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self.size}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: Any) -> int:
        data = self.pread(min(len(buffer), max(0, self.size - self._position)), self._position)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def buffered(self) -> io.BufferedReader:
        """Return a reader for passes from begin to end; closing it closes the file."""
        return io.BufferedReader(self, self.buffer_bytes)


class LocalFile(SourceFile):
    """A file on a disk.

    Raises:
        OSError: it cannot be opened.
    """

    buffer_bytes = LOCAL_BYTES

    def __init__(self, path: str) -> None:
        super().__init__()
        self.name = path
        self._number = -1
        self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        found = os.fstat(self._number)
        self.size, self.stamp = found.st_size, f"{found.st_size} {found.st_mtime_ns}"

    def pread(self, size: int, offset: int) -> bytes:
        return os.pread(self._number, size, offset)

    def close(self) -> None:
        """Close the file; with its last user, so that no thread reads a closed one."""
        super().close()
        if self._number >= 0:
            os.close(self._number)
            self._number = -1


class RemoteFile(SourceFile):
    """A file at a place. Failed requests are repeated as the place does.

    Raises:
        SourceError: it is gone, or the server refuses.
    """

    buffer_bytes = WINDOW_BYTES

    def __init__(self, place: "Place", name: str) -> None:
        super().__init__()
        self._place, self._file = place, name
        self.name = f"{place.url}/{name}"
        self._window = b""
        self._start = 0
        self._lock = threading.Lock()
        with remote_refusals(self.name):
            self.size, self.stamp = place.stamp(name)

    def pread(self, size: int, offset: int) -> bytes:
        """See ``SourceFile.pread``; of images that follow each other, many come with one request."""
        size = min(size, self.size - offset)
        if size <= 0:
            return b""
        with self._lock:
            at = offset - self._start
            end = len(self._window)
            if not 0 <= at <= at + size <= end:
                follows = 0 <= at <= end + self.buffer_bytes // 4
                most = max(size, self.buffer_bytes) if follows else size
                with remote_refusals(self.name):
                    self._window = self._place.read_part(
                        self._file, range(offset, min(offset + most, self.size))
                    )
                self._start, at = offset, 0
            return self._window[at : at + size]


@contextmanager
def remote_refusals(name: str) -> Iterator[None]:
    """Turn errors of a place into those of a source."""
    try:
        yield
    except RemoteError as error:
        advice = "The same command resumes."
        if isinstance(error, RemoteNotFound):
            advice = "Files that were listed must stay there: put it back, then run the same command again to resume."
        raise SourceError(f"{name}: cannot be read: {str(error).rstrip('.')}. {advice}") from error
