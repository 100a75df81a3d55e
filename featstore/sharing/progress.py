"""What a transfer has done so far, counted by several threads."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from featstore.text import format_bytes

Progress = Callable[[int, int], None]
"""Called with the bytes that have travelled, and those that will have; the latter is an estimate at first."""


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""


@dataclass(frozen=True, kw_only=True)
class Report:
    """What ``push`` or ``pull`` did.

    Attributes:
        url: of the place, without secrets.
        fingerprint: of the store that is there.
        rows: that it has.
        files, bytes: that travelled, those again that arrived damaged not counted twice.
        skipped_files, skipped_bytes: that were there already, and right.
        damaged: what arrived damaged, and was sent again until it was right: file and what was wrong.
        notes: what else somebody should know.
        seconds: that it took.
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


class Meter:
    """Counts, and tells ``progress``. Safe to use from several threads."""

    def __init__(self, progress: Progress, total: int) -> None:
        self.files = self.bytes = self.skipped_files = self.skipped_bytes = 0
        self.damaged: list[str] = []
        self.notes: list[str] = []
        self._progress, self._total = progress, total
        self._moving = 0
        self._start = time.perf_counter()
        self._lock = threading.Lock()

    def expect(self, size: int) -> None:
        """So many bytes are to come, as far as anybody knows."""
        with self._lock:
            self._total = self._moving + size

    def move(self, count: int) -> None:
        """Bytes are on their way; less than nothing where they come again."""
        with self._lock:
            self._moving += count
            self._tell()

    def arrive(self, size: int) -> None:
        """A file is there, and right."""
        with self._lock:
            self.files += 1
            self.bytes += size

    def skip(self, size: int) -> None:
        """A file was there already."""
        with self._lock:
            self.skipped_files += 1
            self.skipped_bytes += size
            self._total -= size
            self._tell()

    def leave_out(self, size: int) -> None:
        """A file is not wanted."""
        with self._lock:
            self._total -= size
            self._tell()

    def damage(self, what: str) -> None:
        """Something arrived damaged, and will be sent again."""
        with self._lock:
            self.damaged.append(what)

    def note(self, text: str) -> None:
        """Something that the report shall say."""
        with self._lock:
            self.notes.append(text)

    def _tell(self) -> None:
        self._progress(self._moving, max(self._total, self._moving))

    def so_far(self) -> str:
        """What is done, for the message of an error."""
        with self._lock:
            return (
                f"{self.files:,} files ({format_bytes(self.bytes)}) have arrived and were compared, "
                f"{self.skipped_files:,} were there before"
            )

    def report(self, *, url: str, fingerprint: str, rows: int) -> Report:
        """Close the count."""
        with self._lock:
            return Report(
                url=url,
                fingerprint=fingerprint,
                rows=rows,
                files=self.files,
                bytes=self.bytes,
                skipped_files=self.skipped_files,
                skipped_bytes=self.skipped_bytes,
                damaged=tuple(self.damaged),
                notes=tuple(self.notes),
                seconds=time.perf_counter() - self._start,
            )
