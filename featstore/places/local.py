"""A folder of this machine, or of a mounted network disk, as a place.

Not obstore's LocalStore: that one follows links, and does not sync what it has written (docs/decisions/0032).
"""

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from featstore.files.atomic import TEMPORARY_PREFIX, make_folder, refused
from featstore.files.untrusted import folder_below, open_below
from featstore.places.base import (
    PIECE_BYTES,
    AccessRefused,
    Count,
    Fault,
    NotFollowed,
    Place,
    Retry,
    file_pieces,
    not_found,
)

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EINVAL)
"""Error codes of a file that is not there; the last one is that of pipes, sockets and devices."""


class LocalPlace(Place):
    """Files below a folder. Files are on disk when ``write`` returns; links below the folder are not followed."""

    def __init__(self, folder: Path, url: str = "", retry: Retry = Retry()) -> None:  # noqa: B008
        super().__init__(url or str(folder), retry)
        self.folder = folder

    def _size(self, name: str) -> int:
        handle = open_below(self.folder, name)
        try:
            return os.fstat(handle).st_size
        finally:
            os.close(handle)

    def _sizes(self, folder: str) -> dict[str, int]:
        def refuse(error: OSError) -> None:
            if not isinstance(error, FileNotFoundError):
                raise error

        found = {}
        for here, _, files in os.walk(self.folder / folder, onerror=refuse):
            for file in files:
                path = Path(here, file)
                status = path.lstat()
                if stat.S_ISREG(status.st_mode):
                    found[path.relative_to(self.folder).as_posix()] = status.st_size
        return found

    def _pieces(
        self, name: str, start: int, stop: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        with os.fdopen(open_below(self.folder, name), "rb") as file:
            file.seek(start)
            most = PIECE_BYTES if stop is None else min(PIECE_BYTES, stop - start)
            while piece := file.read(most):
                yield start, piece
                start += len(piece)

    def _write(self, name: str, data: bytes | Path, progress: Count) -> None:
        size = len(data) if isinstance(data, bytes) else data.stat().st_size
        with refused(self.folder / name, size):
            make_folder(self.folder)
            with folder_below(self.folder, name, create=True) as (folder, last):
                handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=self.folder)
                try:
                    with os.fdopen(handle, "wb") as file:
                        if isinstance(data, bytes):
                            file.write(data)
                            progress(size)
                        else:
                            for piece in file_pieces(data, progress):
                                file.write(piece)
                        file.flush()
                        os.fchmod(file.fileno(), 0o644)
                        os.fsync(file.fileno())
                    os.replace(temporary, last, dst_dir_fd=folder)  # into an open folder
                except BaseException:
                    Path(temporary).unlink(missing_ok=True)
                    raise
                os.fsync(folder)

    def _remove(self, name: str) -> None:
        with folder_below(self.folder, name) as (folder, last):
            os.unlink(last, dir_fd=folder)

    def _meaning(self, error: Exception, where: str) -> Exception | None:
        if not isinstance(error, OSError):
            return None
        text = error.strerror or str(error)
        if error.errno in MISSING:
            return not_found(where)
        if error.errno == errno.ELOOP:
            return NotFollowed(f"{where}: {text}.")
        if isinstance(error, PermissionError):
            return AccessRefused(f"{where}: access refused ({text}). Ask its owner for access.")
        return Fault(text)
