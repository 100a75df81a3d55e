"""Files below one URL: the interface that push, pull and the cache use, with retries, resumed transfers and limits.

A place does not interpret shards or manifests, and returns what the server sent: the caller compares checksums. A
request that may succeed later (a cut connection, a 500, a timeout) is repeated with growing pauses; one that cannot
(no such bucket, no credentials) is not. Each kind of place translates the errors of its library in one method,
``_meaning``.
"""

import os
import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any, ClassVar, Protocol, TypeVar

from featstore.errors import FeatstoreError, RemoteError, RemoteNotFound, StoreError
from featstore.files.atomic import refused
from featstore.files.untrusted import open_plain

PIECE_BYTES = 2 * 2**20
"""About so many bytes are in memory for each transfer."""

T = TypeVar("T")

Tag = tuple[str, str]
"""Names one version of a file: the server's entity tag, and its version where it keeps several; "" if not given."""

Count = Callable[[int], object]
"""Called with the bytes of each piece; with a negative number for bytes that are transferred again."""


def no_count(count: int) -> None:
    """Count nothing."""


@dataclass(frozen=True)
class Retry:
    """How failed requests are repeated, and how slow a transfer may be.

    Attributes:
        attempts: number of attempts, the first one included; counted anew once a transfer has come further.
        first_s: seconds before the second attempt; doubled each time, with a random part so that many readers do not
            return at once.
        timeout_s: seconds without a byte after which a request counts as failed.
        least_rate: bytes per second; a transfer that stays below it for ``timeout_s`` seconds counts as failed, and
            does not count as having come further. 0: no limit.
    """

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 20
    timeout_s: float = 60
    least_rate: float = 1000


class Fault(Exception):
    """A request failed in a way that may pass; ``Place`` repeats it."""


class TooSlow(Fault):
    """A transfer stayed below the least rate."""


class AccessRefused(RemoteError):
    """The server denies access; some answer so too where there is no such file."""


class NotFollowed(RemoteError):
    """A link or redirect that leads elsewhere."""


class NotSupported(RemoteError):
    """The server does not know such a request."""


class TooLong(RemoteError):
    """More bytes arrived than the file may have."""


class Sink(Protocol):
    """Takes the bytes of a file in order."""

    def write(self, piece: bytes, /) -> object:
        """Take the next bytes."""

    def restart(self) -> None:
        """Discard what was taken: the file is sent again from its first byte."""


class Place(ABC):
    """Files below one URL. Safe to use from several threads; may be sent to another process, which connects again.

    Names are relative, with "/" between their parts. All methods raise ``RemoteError`` when every attempt failed, when
    access is refused, and when the place cannot do what is asked.

    Attributes:
        url: as it was given, without secrets, for messages.
        lists: whether ``sizes`` works; plain web servers have no listing.
        writes: whether ``write`` and ``remove`` work.
        checks: whether the server compares an upload with a checksum before it accepts it.
        conditional: whether ``put_if``, ``tag`` and ``entity_tags`` work.
    """

    url: str
    lists: bool = True
    writes: bool = True
    checks: bool = False
    conditional: bool = False

    own: ClassVar[Mapping[str, Callable[[], Any]]] = {"_stopped": threading.Event}
    """By name, attributes that each process makes for itself: connections and locks."""

    _stopped: threading.Event

    def __init__(self, url: str, retry: Retry) -> None:
        self.url = url
        self.retry = retry
        vars(self).update({name: make() for name, make in self.own.items()})

    # The methods that each kind of place has; each makes one attempt and raises the errors of its library.

    @abstractmethod
    def _size(self, name: str) -> int:
        """See ``size``."""

    @abstractmethod
    def _sizes(self, folder: str) -> dict[str, int]:
        """See ``sizes``."""

    @abstractmethod
    def _pieces(
        self, name: str, start: int, stop: int | None = None
    ) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, bytes) from a byte on; offset 0 first where the server cannot begin in the middle.

        Args:
            stop: One after the last byte that is needed, None for the end; more may be sent.
        """

    def _own_pieces(self, name: str) -> Iterator[tuple[int, bytes]]:
        """Yield a file from its beginning; a redirect to another host is an error."""
        return self._pieces(name, 0)

    @abstractmethod
    def _write(self, name: str, data: bytes | Path, progress: Count) -> None:
        """See ``write``."""

    @abstractmethod
    def _remove(self, name: str) -> None:
        """Delete one file."""

    @abstractmethod
    def _meaning(self, error: Exception, where: str) -> Exception | None:
        """Translate an error of the library: ``Fault`` if a repeated request may succeed, else a ``RemoteError``.

        Returns:
            None for a programming error.
        """

    def __getstate__(self) -> dict[str, object]:
        """Leave connections behind; each process opens its own."""
        return {name: value for name, value in vars(self).items() if name not in self.own}

    def __setstate__(self, state: dict[str, object]) -> None:
        """Connect again in another process."""
        vars(self).update({**state, **{name: make() for name, make in self.own.items()}})

    def size(self, name: str) -> int | None:
        """Return the bytes of a file; None where there is none."""
        try:
            return self._persist(name, lambda: self._size(name))
        except RemoteNotFound:
            return None

    def _stamp(self, name: str) -> tuple[int, str]:
        size = self._size(name)
        return size, str(size)

    def stamp(self, name: str) -> tuple[int, str]:
        """Return the bytes of a file, and a text that changes when the file is replaced.

        The text is the server's tag or time of change with the size; the size alone where a server gives neither.

        Raises:
            RemoteNotFound: there is none.
        """
        return self._persist(name, lambda: self._stamp(name))

    def sizes(self, folder: str = "") -> dict[str, int]:
        """Return the bytes of every file below a folder, by name relative to the URL; {} where there is none."""
        return self._persist(folder, lambda: self._sizes(folder))

    def read(self, name: str, *, most_bytes: int) -> bytes:
        """Read a small file.

        Args:
            most_bytes: A longer one is an error before it is in memory.
        """
        sink = _Memory()
        self.stream(name, sink, most_bytes=most_bytes)
        return bytes(sink.data)

    def read_part(self, name: str, part: range) -> bytes:
        """Read some bytes of a file; fewer where it ends before."""

        def attempt() -> bytes:
            found = bytearray()
            for offset, piece in self._pieces(name, part.start, part.stop):
                self._check_stopped()
                found += piece[max(0, part.start - offset) :]
                if len(found) >= len(part):
                    break
            return bytes(found[: len(part)])

        return self._persist(name, attempt)

    def stream(
        self,
        name: str,
        sink: Sink,
        *,
        most_bytes: int,
        start: int = 0,
        same_host: bool = False,
        progress: Count = no_count,
    ) -> int:
        """Pass a file on, piece by piece. After a cut it resumes at the next byte, where the server can.

        Args:
            most_bytes: Stop with an error when more arrive.
            start: Bytes that the sink has already.
            same_host: Refuse a redirect to another host: for a file without checksum, into which a hostile server could
                put a file of this network.
        """
        transfer = _Transfer(sink, progress, most_bytes, f"{self.url}/{name}", start)

        def attempt() -> int:
            pace = _Pace(self.retry)
            with _closing(
                self._own_pieces(name) if same_host else self._pieces(name, transfer.bytes)
            ) as pieces:
                for offset, piece in pieces:
                    self._check_stopped()
                    transfer.take(offset, piece)
                    pace.check(len(piece))
            return transfer.bytes

        return self._persist(name, attempt, lambda: transfer.most)

    def write(self, name: str, data: bytes | Path, *, progress: Count = no_count) -> None:
        """Create or replace a file, as a whole or not at all where the place can promise that."""
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
                f"{self.url}: no such bucket or folder. Create it first, or check the URL."
            ) from None

    def _put_if(self, name: str, data: bytes, tag: Tag | None) -> Tag | None:
        raise NotImplementedError

    def put_if(self, name: str, data: bytes, tag: Tag | None) -> Tag | None:
        """Create a file if there is none, or replace one version of it; in one request, as a whole or not at all.

        Args:
            tag: Of the version to replace; None: there must be no file.

        Returns:
            Tag of the new version; None if the condition does not hold. Where the answer of a request was lost, the
            repeated one does not find its condition either: compare the content.
        """
        return self._persist(name, lambda: self._put_if(name, data, tag))

    def _tag(self, name: str) -> Tag:
        raise NotImplementedError

    def tag(self, name: str) -> Tag | None:
        """Return the tag of a file; None where there is none."""
        try:
            return self._persist(name, lambda: self._tag(name))
        except RemoteNotFound:
            return None

    def _entity_tags(self, folder: str) -> dict[str, str]:
        raise NotImplementedError

    def entity_tags(self, folder: str) -> dict[str, str]:
        """Return the entity tag of every file below a folder, without quotation marks, by name relative to the URL."""
        return self._persist(folder, lambda: self._entity_tags(folder))

    def remove(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""
        if not self.writes:
            raise RemoteError(f"{self.url}: can be read only; nothing was removed.")
        for name in names:
            try:
                self._persist(name, lambda name=name: self._remove(name))  # type: ignore[misc]
            except RemoteNotFound:
                continue

    def finish(self) -> None:  # noqa: B027  # most places publish each file at once
        """Publish what was written so far, where the place holds it back until then."""

    def stop(self) -> None:
        """Make every call, also one that waits, end with an error soon."""
        self._stopped.set()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise RemoteError(f"{self.url}: stopped.")

    def _attempt(self, name: str, attempt: Callable[[], T]) -> T:
        with self._translated(name):
            return attempt()

    def _run(self, attempt: Callable[[], T]) -> T:
        """Run an attempt; in another thread where the library would keep Ctrl-C waiting."""
        return attempt()

    @contextmanager
    def _translated(self, name: str) -> Iterator[None]:
        """Raise what the library's errors mean."""
        try:
            yield
        except (FeatstoreError, Fault):
            raise
        except Exception as error:
            meaning = self._meaning(error, f"{self.url}/{name}".rstrip("/"))
            if meaning is None:
                raise
            raise meaning from error

    def _persist(
        self, name: str, attempt: Callable[[], T], reached: Callable[[], int] = lambda: 0
    ) -> T:
        """Make attempts until one succeeds; those that came further than any before do not count."""
        pause_s, failed, furthest = self.retry.first_s, 0, reached()
        while True:
            self._check_stopped()
            try:
                return self._run(partial(self._attempt, name, attempt))
            except Fault as fault:
                if reached() > furthest and not isinstance(fault, TooSlow):
                    failed, pause_s = 0, self.retry.first_s
                furthest = max(furthest, reached())
                failed += 1
                if failed >= self.retry.attempts:
                    where = f"{self.url}/{name}".rstrip("/")
                    raise RemoteError(
                        f"{where}: failed {failed} times in a row, the last time with: {fault}. Check the network and "
                        "the server, then run the same command again: it resumes."
                    ) from fault.__cause__
            self._stopped.wait(pause_s * random.uniform(0.5, 1))
            pause_s = min(2 * pause_s, self.retry.most_s)


def not_found(where: str) -> RemoteNotFound:
    """Build the error for a file that is not there."""
    return RemoteNotFound(f"{where}: no such file.")


@contextmanager
def _closing(pieces: Iterator[T]) -> Iterator[Iterator[T]]:
    """Close files and connections at the end of a block, also where an error keeps the generator alive."""
    try:
        yield pieces
    finally:
        if isinstance(pieces, Generator):
            pieces.close()


class FileSink:
    """Writes into a local file that is open for writing."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file

    def write(self, piece: bytes) -> None:
        """See ``Sink``; raises StoreWriteError where the disk refuses."""
        with refused(Path(str(self._file.name)), len(piece)):
            self._file.write(piece)

    def restart(self) -> None:
        with refused(Path(str(self._file.name)), 0):
            self._file.seek(0)
            self._file.truncate()


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
        self, sink: Sink, progress: Count, most_bytes: int, where: str, start: int
    ) -> None:
        self.bytes = self.most = start
        self._sink, self._progress, self._most_bytes = sink, progress, most_bytes
        self._where = where

    def take(self, offset: int, piece: bytes) -> None:
        """Take the next piece; its offset is 0 again where the server began anew."""
        if offset != self.bytes:
            self._sink.restart()
            self._progress(-self.bytes)
            self.bytes = 0
            if offset != 0:
                raise Fault(f"the server sent bytes from {offset:,} on, asked for others")
        if self.bytes + len(piece) > self._most_bytes:
            raise TooLong(
                f"{self._where}: longer than the {self._most_bytes:,} bytes that it may have. It was changed, or what "
                "describes it is wrong; ask its publisher."
            )
        self._sink.write(piece)
        self._progress(len(piece))
        self.bytes += len(piece)
        self.most = max(self.most, self.bytes)


class _Pace:
    """Compares one attempt with the least rate, once in each time-out."""

    def __init__(self, retry: Retry) -> None:
        self._retry = retry
        self._since, self._bytes = time.monotonic(), 0

    def check(self, count: int) -> None:
        """Count bytes that arrived.

        Raises:
            TooSlow: they are fewer than they must be.
        """
        self._bytes += count
        seconds = time.monotonic() - self._since
        if seconds >= self._retry.timeout_s:
            if self._bytes < self._retry.least_rate * seconds:
                raise TooSlow(
                    f"only {self._bytes:,} bytes arrived in {seconds:.0f} s, fewer than {self._retry.least_rate:,.0f} "
                    "a second"
                )
            self._since, self._bytes = time.monotonic(), 0


def file_pieces(path: Path, progress: Count) -> Iterator[bytes]:
    """Yield a local file in pieces, for sending it.

    Raises:
        StoreError: it cannot be read, or is a link.
    """
    try:
        with os.fdopen(open_plain(path), "rb") as file:
            while piece := file.read(4 * PIECE_BYTES):
                progress(len(piece))
                yield piece
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be read ({error.strerror or error}). Check the disk, then run the same command again."
        ) from error
