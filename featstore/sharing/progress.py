"""Counts of a transfer, for its progress bar, its report and its errors."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from featstore.display.text import format_bytes
from featstore.errors import StoreError
from featstore.files.progress import Progress
from featstore.format.manifest import Manifest
from featstore.places.base import Place


@dataclass(frozen=True, kw_only=True)
class TransferReport:
    """What ``push`` or ``pull`` did, or would do.

    Attributes:
        files: Files that were transferred.
        bytes: Bytes of these; bytes that were transferred again are not counted twice.
        skipped_files: Files that were there already, and right. Both counts together are all files of the store.
        skipped_bytes: Bytes of these.
        damaged: Files that were damaged, and were transferred again until they were right: name and problem.
        notes: Other things that a user should know.
        dry_run: Nothing was transferred; the counts are those of a transfer.
    """

    url: str
    fingerprint: str
    rows: int
    files: int
    bytes: int
    skipped_files: int
    skipped_bytes: int
    damaged: tuple[str, ...]
    notes: tuple[str, ...]
    seconds: float
    dry_run: bool = False


class Meter:
    """Counts, and calls ``progress``. Safe to use from several threads.

    Args:
        total: Bytes of the files, as far as known.
        passes: How often each byte is transferred: twice where it is read back.
    """

    def __init__(self, progress: Progress, total: int, passes: int = 1) -> None:
        self.files = self.bytes = self.skipped_files = self.skipped_bytes = 0
        self.damaged: list[str] = []
        self.notes: list[str] = []
        self._progress, self._passes = progress, passes
        self._total, self._moved = total * passes, 0
        self._start = time.perf_counter()
        self._lock = threading.Lock()

    def expect(self, size: int) -> None:
        """Set the bytes that are still to come."""
        with self._lock:
            self._total = self._moved + size * self._passes

    def move(self, count: int) -> None:
        """Count bytes that were transferred; a negative number where they are transferred again."""
        with self._lock:
            self._moved += count
            self._tell()

    def arrive(self, size: int, kept: int = 0) -> None:
        """Count a file that has arrived, and is right; ``kept`` bytes of it were there from an earlier run."""
        with self._lock:
            self.files += 1
            self.bytes += size - kept
            self.skipped_bytes += kept

    def announce(self, size: int) -> None:
        """Add bytes to the total, or take those off it that are not wanted."""
        with self._lock:
            self._total += size * self._passes

    def skip(self, size: int, *, compared: bool = False) -> None:
        """Count a file that was there already; ``compared``: it was transferred once, to compare it."""
        with self._lock:
            self.skipped_files += 1
            self.skipped_bytes += size
            self._total -= size * (self._passes - compared)
            self._tell()

    def damage(self, what: str) -> None:
        """Note something that is damaged, and will be transferred again."""
        with self._lock:
            self.damaged.append(what)

    def note(self, text: str) -> None:
        """Note something for the report."""
        with self._lock:
            self.notes.append(text)

    def _tell(self) -> None:
        self._progress(self._moved, max(self._total, self._moved))

    def so_far(self) -> str:
        """The counts as a sentence."""
        with self._lock:
            return (
                f"So far {self.files:,} files ({format_bytes(self.bytes)}) were transferred and compared, "
                f"{self.skipped_files:,} were there before."
            )

    def report(self, place: Place, manifest: Manifest, *, dry_run: bool = False) -> TransferReport:
        with self._lock:
            return TransferReport(
                url=place.url,
                fingerprint=manifest.fingerprint,
                rows=manifest.num_rows,
                files=self.files,
                bytes=self.bytes,
                skipped_files=self.skipped_files,
                skipped_bytes=self.skipped_bytes,
                damaged=tuple(self.damaged),
                notes=tuple(self.notes),
                seconds=time.perf_counter() - self._start,
                dry_run=dry_run,
            )


@contextmanager
def counts_in_errors(meter: Meter, command: str) -> Iterator[None]:
    """Add the counts so far, and how to resume, to errors."""
    again = f"Run the same featstore {command} again to resume."
    try:
        yield
    except StoreError as error:
        raise type(error)(f"{error.args[0]} {meter.so_far()} {again}") from error.__cause__
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"interrupted. {meter.so_far()} {again}") from None


@contextmanager
def explain_system_errors(command: str) -> Iterator[None]:
    """Turn an error of the system that no other code has translated into a StoreError."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        raise StoreError(
            f"{where}{error.strerror or error}. Check the disk, then run the same featstore {command} again."
        ) from error
