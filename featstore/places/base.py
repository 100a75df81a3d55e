"""The small interface between a store and the place it is sent to or read from: files below one URL.

A place knows nothing of shards or manifests. What it returns is what the server sent: whoever reads compares checksums.
Every call tries again where that may help (a cut connection, a 500, a time-out), with growing pauses, and then raises
one error that says what was tried. Here, and nowhere else, is what all kinds of places do alike: trying again, going on
after the bytes that have arrived, limits, and local files.
"""

import random
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from featstore.errors import RemoteError, RemoteNotFound
from featstore.files.atomic import refused

PIECE_BYTES = 2 * 2**20
"""About so many bytes are in memory for each transfer."""

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How often a failed request is made again.

    Attributes:
        attempts: in all, the first one included; counted anew once a transfer has come further.
        first_s: seconds before the second attempt; doubled each time, with a random part so that many readers do not
            come back at once.
        most_s: longest pause, seconds.
        timeout_s: seconds without a byte after which a request counts as failed.
    """

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 20
    timeout_s: float = 60


class Fault(Exception):
    """A request failed in a way that may pass; what makes it again knows where and how often."""


class AccessRefused(RemoteError):
    """The place does not let us; some answer so too where there is no such file."""


class TooLong(RemoteError):
    """More bytes came than there may be."""


class Sink(Protocol):
    """Takes the bytes of a file in order."""

    def write(self, piece: bytes, /) -> object:
        """The next bytes."""

    def restart(self) -> None:
        """What was taken is void: the file comes again from its first byte."""


class Place(ABC):
    """Files below one URL. Safe to use from several threads; may be sent to another process, which connects again.

    Names are relative, with "/" between their parts. All methods raise ``RemoteError`` when every attempt failed, when
    access is refused, and when the place cannot do what is asked.

    Attributes:
        url: as it was given, without secrets, for messages.
        retry: how often a failed request is made again.
        lists: whether ``sizes`` works; plain web servers have no listing.
        writes: whether ``write`` and ``remove`` work.
        checks: whether the place compares what it is sent with a checksum before it is there.
    """

    url: str
    lists: bool = True
    writes: bool = True
    checks: bool = False

    def __init__(self, url: str, retry: Retry) -> None:
        self.url = url
        self.retry = retry
        self._stopped = threading.Event()

    @abstractmethod
    def _size(self, name: str) -> int:
        """See ``size``; one attempt. Like all methods of this kind it raises ``Fault``, or what is final."""

    @abstractmethod
    def _sizes(self, folder: str) -> dict[str, int]:
        """See ``sizes``; one attempt."""

    @abstractmethod
    def _pieces(self, name: str, start: int) -> Iterator[tuple[int, bytes]]:
        """Pieces of a file from a byte on, each with its place: 0 first where the place cannot begin in the middle."""

    @abstractmethod
    def _write(self, name: str, data: bytes | Path, progress: Callable[[int], None]) -> None:
        """See ``write``; one attempt."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Delete one file; one attempt."""

    def __getstate__(self) -> dict[str, object]:
        """Leave connections behind; each process opens its own."""
        return {name: value for name, value in vars(self).items() if name != "_stopped"}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Open again in another process."""
        vars(self).update(state)
        self._stopped = threading.Event()

    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""
        try:
            return self._persist(name, lambda: self._size(name))
        except RemoteNotFound:
            return None

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by name relative to the URL; {} where there is none."""
        return self._persist(folder, lambda: self._sizes(folder))

    def read(self, name: str, *, most_bytes: int) -> bytes:
        """A small file as a whole.

        Args:
            name: of the file.
            most_bytes: a longer one is an error before it is in memory.

        Raises:
            RemoteNotFound: there is none.
        """
        sink = _Memory()
        self.stream(name, sink, most_bytes=most_bytes)
        return bytes(sink.data)

    def fetch(
        self,
        name: str,
        to: Path,
        *,
        most_bytes: int,
        progress: Callable[[int], None] = lambda count: None,
    ) -> int:
        """Copy a file into a local one, which is made or replaced; in pieces, so that memory is bounded.

        Args:
            name: of the file.
            to: a temporary name that belongs to the caller.
            most_bytes: stop with an error when more arrive.
            progress: called with the bytes of each piece, and with less than nothing for bytes that come again.

        Returns:
            Bytes written.

        Raises:
            RemoteNotFound: there is none.
            StoreWriteError: the local disk refused.
        """
        with refused(to, 0), to.open("wb") as file:
            return self.stream(name, FileSink(file), most_bytes=most_bytes, progress=progress)

    def stream(
        self,
        name: str,
        sink: Sink,
        *,
        most_bytes: int,
        progress: Callable[[int], None] = lambda count: None,
    ) -> int:
        """Pass a file on, piece by piece. After a cut it goes on with the byte that comes next, where the place can.

        Args:
            name: of the file.
            sink: gets the pieces.
            most_bytes: stop with an error when more arrive.
            progress: as for ``fetch``.

        Returns:
            Bytes of the file.

        Raises:
            RemoteNotFound: there is none.
        """
        transfer = _Transfer(sink, progress, most_bytes, f"{self.url}/{name}")

        def attempt() -> int:
            for start, piece in self._pieces(name, transfer.bytes):
                self._check_stopped()
                transfer.take(start, piece)
            return transfer.bytes

        return self._persist(name, attempt, lambda: transfer.most)

    def write(
        self,
        name: str,
        data: bytes | Path,
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Make or replace a file, as a whole or not at all where the place can promise that.

        Args:
            name: of the file.
            data: its bytes, or a local file.
            progress: as for ``fetch``.
        """
        if not self.writes:
            raise RemoteError(f"{self.url}: can be read only. Push to a place that can be written.")
        sent = 0

        def count(number: int) -> None:
            nonlocal sent
            self._check_stopped()
            sent += number
            progress(number)

        def attempt() -> None:
            nonlocal sent
            progress(-sent)
            sent = 0
            self._write(name, data, count)

        try:
            self._persist(name, attempt)
        except RemoteNotFound:
            raise RemoteError(
                f"{self.url}: cannot be written: there is no such bucket or folder. Make it first, or check the URL."
            ) from None

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""
        if not self.writes:
            raise RemoteError(f"{self.url}: can be read only; nothing was removed.")
        for name in names:
            try:
                self._persist(name, lambda name=name: self._remove(name))  # type: ignore[misc]
            except RemoteNotFound:
                continue

    def finish(self) -> None:  # noqa: B027  # most places keep nothing back
        """Make what was written so far visible, where the place keeps it back until then."""

    def stop(self) -> None:
        """Make every call, also one that waits, end with an error soon; for somebody who gives up."""
        self._stopped.set()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise RemoteError(f"{self.url}: stopped.")

    def _persist(
        self, name: str, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0
    ) -> T:
        """Make attempts until one succeeds; those that came further than any before do not count."""
        pause_s, failed, furthest = self.retry.first_s, 0, 0
        while True:
            self._check_stopped()
            try:
                return attempt()
            except Fault as fault:
                if reached() > furthest:
                    failed, furthest, pause_s = 0, reached(), self.retry.first_s
                failed += 1
                if failed >= self.retry.attempts:
                    where = f"{self.url}/{name}".rstrip("/")
                    raise RemoteError(
                        f"{where}: failed {failed} times in a row, at last with: {fault}. Check the network and the "
                        "server, then run the same again: what has arrived is kept."
                    ) from fault.__cause__
            self._stopped.wait(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, self.retry.most_s)


class FileSink:
    """Writes into a local file that is open for writing."""

    def __init__(self, file: "_File") -> None:
        self._file = file

    def write(self, piece: bytes) -> None:
        """See ``Sink``."""
        self._file.write(piece)

    def restart(self) -> None:
        """See ``Sink``."""
        self._file.seek(0)
        self._file.truncate()

    def flush(self) -> None:
        """Let others see what was written."""
        self._file.flush()


class _File(Protocol):
    def write(self, data: bytes, /) -> int: ...
    def seek(self, place: int, /) -> int: ...
    def truncate(self) -> int: ...
    def flush(self) -> None: ...


class _Memory:
    def __init__(self) -> None:
        self.data = bytearray()

    def write(self, piece: bytes) -> None:
        self.data += piece

    def restart(self) -> None:
        self.data.clear()


class _Transfer:
    """How far a file has come, over several attempts."""

    def __init__(
        self, sink: Sink, progress: Callable[[int], None], most_bytes: int, where: str
    ) -> None:
        self.bytes = self.most = 0
        self._sink, self._progress, self._most_bytes = sink, progress, most_bytes
        self._where = where

    def take(self, start: int, piece: bytes) -> None:
        """The next piece; ``start`` is 0 again where the place began anew."""
        if start != self.bytes:
            self._sink.restart()
            self._progress(-self.bytes)
            self.bytes = 0
            if start != 0:
                raise Fault(f"the server sent bytes from {start:,} on, asked for others")
        if self.bytes + len(piece) > self._most_bytes:
            raise TooLong(
                f"{self._where}: longer than the {self._most_bytes:,} bytes that it may have. Somebody changed it, or "
                "what describes it is wrong; ask whoever published it."
            )
        self._sink.write(piece)
        self._progress(len(piece))
        self.bytes += len(piece)
        self.most = max(self.most, self.bytes)


def file_pieces(path: Path, progress: Callable[[int], None]) -> Iterator[bytes]:
    """A local file in pieces, for sending it."""
    with path.open("rb") as file:
        while piece := file.read(4 * PIECE_BYTES):
            progress(len(piece))
            yield piece
