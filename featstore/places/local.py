"""A folder of this machine, or of a mounted network disk, as a place."""

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from featstore.errors import RemoteNotFound
from featstore.files.atomic import (
    TEMPORARY_PREFIX,
    make_folder,
    refused,
    sync_folder,
    write_bytes,
)
from featstore.places.base import PIECE_BYTES, AccessRefused, Fault, Place, Retry, file_pieces


class LocalPlace(Place):
    """Files below a folder. Written files are on the disk when ``write`` returns."""

    def __init__(self, folder: Path, url: str = "", retry: Retry = Retry()) -> None:  # noqa: B008
        super().__init__(url or str(folder), retry)
        self.folder = folder

    def _size(self, name: str) -> int:
        with self._read(name):
            path = self.folder / name
            if not path.is_file():
                raise FileNotFoundError(path)
            return path.stat().st_size

    def _sizes(self, folder: str) -> dict[str, int]:
        root = str(self.folder / folder) if folder else str(self.folder)
        found = {}
        for here, _, files in os.walk(root):
            for file in files:
                path = Path(here, file)
                if path.is_file():
                    found[path.relative_to(self.folder).as_posix()] = path.stat().st_size
        return found

    def _pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        with self._read(name), open(_open_file(self.folder / name), "rb") as file:
            file.seek(start)
            while piece := file.read(PIECE_BYTES):
                yield start, piece
                start += len(piece)

    def _write(self, name: str, data: bytes | Path, progress: Callable[[int], None]) -> None:
        path = self.folder / name
        if isinstance(data, bytes):
            progress(len(data))
            write_bytes(path, data)
            return
        with refused(path, data.stat().st_size):
            make_folder(path.parent)
            handle, temporary = tempfile.mkstemp(prefix=TEMPORARY_PREFIX, dir=self.folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    for piece in file_pieces(data, progress):
                        file.write(piece)
                    file.flush()
                    os.fchmod(file.fileno(), 0o644)
                    os.fsync(file.fileno())
                Path(temporary).replace(path)
            except BaseException:
                Path(temporary).unlink(missing_ok=True)
                raise
            sync_folder(path.parent)

    def _remove(self, name: str) -> None:
        with self._read(name):
            (self.folder / name).unlink()

    def _read(self, name: str) -> "_Reading":
        return _Reading(f"{self.url}/{name}")


def _open_file(path: Path) -> int:
    """Open a file; a pipe, at which opening would wait for somebody who writes, is none."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise FileNotFoundError(path)
    return handle


class _Reading:
    """Says what went wrong with a file in the words of places."""

    def __init__(self, where: str) -> None:
        self._where = where

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, FileNotFoundError | NotADirectoryError | IsADirectoryError):
            raise RemoteNotFound(f"{self._where}: no such file.") from None
        if isinstance(error, PermissionError):
            raise AccessRefused(
                f"{self._where}: access refused ({error.strerror}). Ask whoever owns it."
            ) from None
        if isinstance(error, OSError):
            raise Fault(error.strerror or str(error)) from error
