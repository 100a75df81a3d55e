"""Read the images of one tar from begin to end, in large reads.

``tars.py`` lists tars once and reads by position; this keeps no list.
"""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from featstore.errors import SourceError
from featstore.files.tar_headers import BadTar, Member, members
from featstore.sources.find_files import unreadable
from featstore.sources.tars import is_image, several_images, split_name

READ_BYTES = 4 * 2**20  # tars are read in pieces of this size


class TarImage(NamedTuple):
    """An image in a tar that is being read."""

    key: str
    file: "TarReader"
    start: int
    stop: int

    def read(self) -> bytes:
        """Its bytes; before the next image is asked for.

        Raises:
            SourceError: the disk refused, or the file became shorter.
        """
        try:
            return self.file.read(self.start, self.stop)
        except BadTar as error:
            raise self.file.broken(error) from None


class TarReader:
    """Images of a tar; use as a context manager.

    Raises:
        SourceError: the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = self._stop = 0
        self._data = bytearray(READ_BYTES)
        try:
            self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._handle).st_size
        except OSError as error:
            raise unreadable(path, error) from None

    def __enter__(self) -> "TarReader":
        return self

    def __exit__(self, *error: object) -> None:
        os.close(self._handle)

    def images(self, *, image_member: str = "") -> Iterator[TarImage]:
        """Every image, by the rules of ``tars.py``: one for each key.

        Args:
            image_member: extension of the member that is the image; "" for any ending of an image.

        Raises:
            BadTar: it breaks off.
            SourceError: a key has several images.
        """
        seen: dict[str, Member] = {}
        keys: set[str] = set()
        for member in members(self.read, 0, self.size):
            found = split_name(member.name)
            if found is None or not is_image(found[1], image_member):
                continue
            if member.link:
                target = seen.get(member.link.removeprefix("./"))
                if target is None:
                    continue
                member = member._replace(data=target.data, size=target.size)
            elif not member.regular:
                continue
            if found[0] in keys:
                raise several_images(self.path, found[0], member.name)
            keys.add(found[0])
            seen[member.name.removeprefix("./")] = member
            yield TarImage(found[0], self, member.data, member.data + member.size)

    def read(self, start: int, stop: int) -> bytes:
        """Bytes from .. to.

        Raises:
            BadTar: the file ends before.
            SourceError: the disk refused.
        """
        if start < self._start or stop > self._stop:
            self._fill(start, stop - start)
        if stop > self._stop:
            raise BadTar(f"it ends at byte {self._stop:,}")
        return bytes(memoryview(self._data)[start - self._start : stop - self._start])

    def _fill(self, start: int, least: int) -> None:
        if least > len(self._data):
            self._data = bytearray(least)
        self._start = self._stop = start
        view = memoryview(self._data)
        try:
            while self._stop - start < least:
                count = os.preadv(self._handle, [view[self._stop - start :]], self._stop)
                if count == 0:
                    break
                self._stop += count
        except OSError as error:
            raise unreadable(self.path, error) from None

    def broken(self, error: BadTar) -> SourceError:
        """The error for a tar that breaks off."""
        return SourceError(f"{self.path}: cannot be read as a tar: {error}. Fetch it again.")
