"""The small interface between a store and the place it is sent to or read from: files below one URL.

A place knows nothing of shards or manifests. What it returns is what the server sent: whoever reads compares checksums.
Every call tries again where that may help (a cut connection, a 500, a time-out), with growing pauses, and then raises
one error that says what was tried.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Retry:
    """How often a failed request is made again.

    Attributes:
        attempts: in all, the first one included.
        first_s: seconds before the second attempt; doubled each time, with a random part so that many readers do not
            come back at once.
        most_s: longest pause, seconds.
        timeout_s: seconds without a byte after which a request counts as failed.
    """

    attempts: int = 6
    first_s: float = 0.5
    most_s: float = 20
    timeout_s: float = 60


class Place(ABC):
    """Files below one URL. Safe to use from several threads; may be sent to another process, which connects again.

    Names are relative, with "/" between their parts. All methods raise ``RemoteError`` when every attempt failed, when
    access is refused, and when the place cannot do what is asked.

    Attributes:
        url: as it was given, without secrets, for messages.
        lists: whether ``sizes`` works; plain web servers have no listing.
        writes: whether ``write`` and ``remove`` work.
    """

    url: str
    lists: bool = True
    writes: bool = True

    @abstractmethod
    def size(self, name: str) -> int | None:
        """Bytes of a file; None where there is none."""

    @abstractmethod
    def sizes(self, folder: str = "") -> dict[str, int]:
        """Bytes of every file below a folder, by name relative to the URL; {} where there is none."""

    @abstractmethod
    def read(self, name: str, *, most_bytes: int) -> bytes:
        """A small file as a whole.

        Args:
            name: of the file.
            most_bytes: a longer one is an error before it is in memory.

        Raises:
            RemoteNotFound: there is none.
        """

    @abstractmethod
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
            progress: called with the bytes of each piece.

        Returns:
            Bytes written.

        Raises:
            RemoteNotFound: there is none.
            StoreWriteError: the local disk refused.
        """

    @abstractmethod
    def write(
        self,
        name: str,
        data: bytes | Path,
        *,
        progress: Callable[[int], None] = lambda count: None,
    ) -> None:
        """Make or replace a file, as a whole or not at all where the place can promise that."""

    @abstractmethod
    def remove(self, names: Iterable[str]) -> None:
        """Delete files; those that are not there are no error."""
